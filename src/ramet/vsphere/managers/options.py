"""Options: the host's advanced ones, and those of the server. What is shown is what holds; what cannot hold is refused.

`Mem.ShareForceSalting` is page sharing between VMs that are not related: 2, the default, shares inside a lineage only;
0 shares among all guests, as `ramet host set page-sharing host` does. 1 would salt by a key of each VM: the kernel's
page merging has no domains, so it is refused, as are all other values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ramet.errors import from_dict
from ramet.model.host import TaskState
from ramet.model.sharing import PageSharing, SetPageSharing
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.world import World
from ramet.vsphere.inventory.host_facts import HostFacts
from ramet.vsphere.types import Support, vim, vmodl

SERVER_MOID = "VpxSettings"
HOST_MOID = ids.HOST_OPTIONS
SALTING = "Mem.ShareForceSalting"
_MODES = {0: PageSharing.HOST, 2: PageSharing.OFF}
_SETTLE_S = 600.0


@dataclass(frozen=True)
class Option:
    """One option. `change` is None for one that only shows what is so."""

    key: str
    summary: str
    value: Callable[[World], Any]
    least: int = 0
    most: int = 0
    change: Callable[[World, Any], Any] | None = None

    def now(self, world: World) -> Any:
        value = self.value(world)
        return Support.long(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _salting(world: World) -> int:
    return 0 if world.host.sharing.mode is PageSharing.HOST else 2


async def _set_salting(world: World, value: Any) -> None:
    mode = _MODES.get(value) if isinstance(value, int) and not isinstance(value, bool) else None
    if mode is None and value == 1:
        raise fault(
            vmodl.fault.NotSupported,
            "The kernel's page merging has no domains, so VMs cannot be salted one by one: 2 shares inside a lineage, "
            "0 among all guests.",
        )
    if mode is None:
        raise _wrong(SALTING, "The value is 0 (among all guests) or 2 (inside a lineage).")
    if mode is world.host.sharing.mode:
        return
    task = await world.host.sharing.set(SetPageSharing(mode=mode))
    ended = await world.host.tasks.wait(task.id, _SETTLE_S)
    if ended.state is TaskState.ERROR:
        raise from_dict(ended.error or {})
    world.updates.touch(HOST_MOID)


HOST_OPTIONS = (
    Option("Mem.AllocGuestLargePage", "Guests' memory is backed by large pages.", lambda world: 0, 0, 1),
    Option("Mem.AllocUsePSharePages", "Pages of like content are shared.", lambda world: 1, 0, 1),
    Option(
        SALTING,
        "Sharing of pages: 2 inside a lineage, 0 among all guests.",
        _salting,
        0,
        2,
        _set_salting,
    ),
)
SERVER_OPTIONS = (
    Option("VirtualCenter.FQDN", "Name of this server.", lambda world: world.part(HostFacts).name),
    Option("VirtualCenter.InstanceName", "Name of this server.", lambda world: world.part(HostFacts).name),
    Option("config.vpxd.hostnameUrl", "Where this server is.", lambda world: world.part(HostFacts).name),
    Option("event.maxAgeEnabled", "Old events are forgotten.", lambda world: True),
    Option("task.maxAgeEnabled", "Old tasks are forgotten.", lambda world: True),
)


class OptionManager(Mo):
    wire = vim.option.OptionManager

    def __init__(self, world: World, moid: str, options: Sequence[Option]) -> None:
        super().__init__(world, moid)
        self._options = {option.key: option for option in sorted(options, key=lambda option: option.key)}
        self._changing = asyncio.Lock()

    @prop("setting")
    def get_settings(self) -> list[Any]:
        return [self._shown(option) for option in self._options.values()]

    @prop("supportedOption")
    def get_supported(self) -> list[Any]:
        return [_definition(option, option.now(self.world)) for option in self._options.values()]

    @operation("QueryOptions")
    async def query(self, call: Call, name: str | None = None) -> list[Any]:
        """One by its name, a subtree by the beginning of its names, all without a name. InvalidName for none."""
        found = [option for option in self._options.values() if not name or _is_in(option.key, name)]
        if not found:
            raise fault(vim.fault.InvalidName, f"There is no option {str(name)[:80]!r}.", name=str(name)[:80])
        return [self._shown(option) for option in found]

    @operation("UpdateOptions", privilege="Global.Settings")
    async def update(self, call: Call, changedValue: Sequence[Any]) -> None:
        """Checked as a whole first. InvalidName, InvalidArgument, NotSupported."""
        async with self._changing:
            changes = [(self._changeable(one.key, one.value), one.value) for one in changedValue]
            for option, value in changes:
                if option.change is not None:
                    await option.change(self.world, value)

    def _changeable(self, key: str, value: Any) -> Option:
        option = self._options.get(key)
        if option is None:
            raise fault(vim.fault.InvalidName, f"There is no option {key[:80]!r}.", name=key[:80])
        if option.change is None and value != option.now(self.world):
            raise fault(vmodl.fault.NotSupported, f"{key} shows what is so; it cannot be set.")
        return option

    def _shown(self, option: Option) -> Any:
        return vim.option.OptionValue(key=option.key, value=option.now(self.world))


def _is_in(key: str, name: str) -> bool:
    return key == name or key.startswith(name if name.endswith(".") else f"{name}.")


def _definition(option: Option, value: Any) -> Any:
    kind: Any
    fixed = option.change is None
    if isinstance(value, bool):
        kind = vim.option.BoolOption(valueIsReadonly=fixed, supported=True, defaultValue=value)
    elif isinstance(value, int):
        default = 2 if option.key == SALTING else value
        bounds = {"min": Support.long(option.least), "max": Support.long(option.most)}
        kind = vim.option.LongOption(valueIsReadonly=fixed, defaultValue=Support.long(default), **bounds)
    else:
        kind = vim.option.StringOption(valueIsReadonly=fixed, defaultValue=value)
    return vim.option.OptionDef(key=option.key, label=option.key, summary=option.summary, optionType=kind)


def _wrong(key: str, sentence: str) -> Exception:
    return fault(vmodl.fault.InvalidArgument, f"{key}: {sentence}", invalidProperty="changedValue")
