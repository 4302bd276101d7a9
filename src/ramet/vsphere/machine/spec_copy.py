"""A CloneSpec: a copy of a VM that is off, and what is to be different about it.

copy_of(world, live, folder, name, spec) -> CopyOrder        # changes nothing
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ramet.model.requests import CopyVm
from ramet.vsphere import ids
from ramet.vsphere.core.world import World
from ramet.vsphere.machine.spec_instant import check_name
from ramet.vsphere.machine.spec_location import place_of
from ramet.vsphere.machine.spec_reconfigure import Wish, wish_of
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.machine.live import LiveMachine

LINKED = ("createNewChildDiskBacking", "moveChildMostDiskBacking")
"""Kinds of `diskMoveType` that leave the lower layers where they are; there is no snapshot to begin from, and none is
needed: the source's disks as they are now are immutable from then on."""
_REFUSED = {
    "snapshot": "There are no snapshots: the copy begins with the disks as they are.",
    "memory": "InstantClone_Task clones a VM with its memory.",
}


@dataclass(frozen=True, slots=True)
class CopyOrder:
    request: CopyVm
    folder: str
    wishes: tuple[Wish, ...]
    """What its location says of its devices, and what its config says."""
    template: bool
    power_on: bool
    customization: Any
    """The spec for the copy's first boot."""


def copy_of(world: World, live: LiveMachine, folder: Any, name: str, spec: Any) -> CopyOrder:
    check_name(name, "name")
    for field, why in _REFUSED.items():
        if getattr(spec, field, None):
            raise vmodl.fault.NotSupported(msg=f"spec.{field}: {why}")
    if spec.template and spec.powerOn:
        raise vmodl.fault.InvalidArgument(invalidProperty="spec.powerOn", msg="A template is not powered on.")
    location = spec.location
    wanted = location.folder if location is not None and location.folder is not None else folder
    place = place_of(world, vim.vm.RelocateSpec(folder=wanted), "folder")
    place_of(world, location, "spec.location")
    linked = location is not None and location.diskMoveType in LINKED
    return CopyOrder(
        request=CopyVm(name=name, linked=linked),
        folder=place.folder or ids.VM_FOLDER,
        wishes=_wishes(world, live, spec),
        template=bool(spec.template),
        power_on=bool(spec.powerOn),
        customization=spec.customization,
    )


def _wishes(world: World, live: LiveMachine, spec: Any) -> tuple[Wish, ...]:
    """The name is the method's own parameter."""
    machine = live.vm.machine
    changes = spec.location.deviceChange if spec.location is not None else None
    wishes = []
    if changes:
        wishes.append(wish_of(world, machine, vim.vm.ConfigSpec(deviceChange=changes), is_on=False))
    if spec.config is not None:
        config = spec.config
        config.name = None
        wishes.append(wish_of(world, machine, config, is_on=False))
    return tuple(wishes)
