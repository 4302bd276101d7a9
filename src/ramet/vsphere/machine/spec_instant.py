"""An instant clone in the API's words, as a request to the host.

    order_of(world, live, spec) -> Order                 # changes nothing; faults name what is wrong

As in the original the clone is bare: its guest goes on as the source's, and whoever asked customizes it. Its links come
up as its source's are, or as the spec's cards say. `ramet.identity = auto` in the config gives it one of its own.
"""

from __future__ import annotations

import uuid as uuid_module
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ramet.model.base import explain
from ramet.model.requests import CloneVm
from ramet.model.units import check_name as usable_name
from ramet.vsphere.core.world import World
from ramet.vsphere.machine.spec_devices import edits_for_clone
from ramet.vsphere.machine.spec_location import Place, place_of
from ramet.vsphere.machine.spec_options import IDENTITY, options_of
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.machine.live import LiveMachine


@dataclass(frozen=True, slots=True)
class Order:
    request: CloneVm
    place: Place


def order_of(world: World, live: LiveMachine, spec: Any) -> Order:
    """Faults in the order in which a caller would mend them: the name, where to, the devices, the rest."""
    name = check_name(spec.name, "spec.name")
    place = place_of(world, spec.location, "spec.location")
    machine = live.vm.machine
    changes = spec.location.deviceChange if spec.location is not None else ()
    edits = edits_for_clone(world, machine, changes, "spec.location.deviceChange")
    options = options_of(spec.config, "spec.config")
    identity, options = options.taking(IDENTITY)
    emptied = {key: "" for key in options.unset if key in machine.extra_config}
    try:
        request = CloneVm(
            names=(name,),
            bare=_is_bare(identity),
            connect=_is_bare(identity),
            nics=edits,
            uuid=_uuid(spec.biosUuid),
            extra_config={**options.set, **emptied},
        )
    except ValidationError as exc:
        raise vmodl.fault.InvalidArgument(invalidProperty="spec", msg=explain(exc)) from exc
    return Order(request, place)


def _is_bare(identity: str | None) -> bool:
    if identity not in (None, "bare", "auto"):
        raise vmodl.fault.InvalidArgument(
            invalidProperty="spec.config", msg=f"{IDENTITY} is 'auto' or 'bare', not {identity!r}."
        )
    return identity != "auto"


def _uuid(text: str | None) -> str | None:
    if not text:
        return None
    try:
        return str(uuid_module.UUID(text.replace(" ", "")))
    except ValueError as exc:
        raise vmodl.fault.InvalidArgument(invalidProperty="spec.biosUuid", msg=f"{text!r} is not a UUID.") from exc


def check_name(name: str | None, where: str) -> str:
    """InvalidName for what no VM of this host can be called."""
    if not name:
        raise vmodl.fault.InvalidArgument(invalidProperty=where, msg="A name is needed.")
    try:
        return usable_name(name)
    except ValueError as exc:
        raise vim.fault.InvalidName(name=name, msg=f"{exc}.") from exc
