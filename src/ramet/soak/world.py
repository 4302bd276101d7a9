"""What should exist: the soak's own memory of its VMs, and what each step may make of them. Pure; nothing is called.

A step is an action, and perhaps a fault while it is under way. `outcomes` says which states a VM may be in after it:
the first is that of success, the others are right when the step was refused or cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ramet.model.base import Model
from ramet.model.machine import VmState

ANCHOR = "anchor"
"""The VM that lives through the whole soak; everything else is gone at the end of each round."""


class Action(StrEnum):
    CREATE = "create"
    CLONE = "clone"
    FREEZE = "freeze"
    THAW = "thaw"
    SUSPEND = "suspend"
    RESUME = "resume"
    STOP = "stop"
    START = "start"
    REMOVE = "remove"
    TRY = "try"
    SET_POOL = "set pool"
    DROP_POOL = "drop pool"
    KILL = "kill -9 of a VM"
    NOTHING = "nothing"


class Manner(StrEnum):
    """Of a clone."""

    BARE = "bare"
    IDENTITY = "identity"
    FENCED = "fenced"


class Fault(StrEnum):
    """What happens while an action is under way."""

    KILL_DAEMON = "kill -9 of the daemon"
    RESTART_DAEMON = "restart of the daemon"
    KILL_VM = "kill -9 of the VM"
    SECOND = "second action"


class Step(Model):
    """One step of the walk, whole enough to be done again."""

    number: int
    action: Action
    vm: str | None = None
    names: tuple[str, ...] = ()
    """Of VMs that it makes."""
    manner: Manner = Manner.BARE
    size: int = 0
    """Of a pool."""
    fault: Fault | None = None
    second: Action | None = None
    """On the same VM, at once."""
    after_ms: int = 0
    """Between the action and the fault."""

    def __str__(self) -> str:
        how = f" ({self.manner.value})" if self.action is Action.CLONE else f" ({self.size})" if self.size else ""
        what = " ".join(filter(None, [self.action.value, self.vm, *(("->", *self.names) if self.names else ())]))
        meets = f", {self.second or self.fault} after {self.after_ms} ms" if self.fault else ""
        return f"{self.number}: {what}{how}{meets}"


@dataclass
class Guest:
    """A VM that should exist."""

    name: str
    state: VmState
    number: int | None = None
    """What it last wrote to its disk, durably; None when it has no file system yet."""
    fresh: bool = True
    """Its guest booted, and nothing runs in it yet."""
    fenced: bool = False

    @property
    def is_on(self) -> bool:
        return self.state not in (VmState.OFF, VmState.SUSPENDED)


@dataclass
class World:
    guests: dict[str, Guest] = field(default_factory=dict)
    pools: dict[str, int] = field(default_factory=dict)

    @property
    def weight(self) -> int:
        """QEMU processes that there are, or will be when the pools are full."""
        on = sum(guest.is_on for guest in self.guests.values())
        return on + sum(self.pools.get(name, 0) for name in self.in_state(VmState.FROZEN))

    def in_state(self, *states: VmState) -> list[str]:
        return [name for name, guest in self.guests.items() if guest.state in states]


Outcomes = dict[str, list[VmState | None]]
"""By VM; None stands for a VM that is not there."""

_AFTER: dict[Action, VmState | None] = {
    Action.FREEZE: VmState.FROZEN,
    Action.THAW: VmState.RUNNING,
    Action.SUSPEND: VmState.SUSPENDED,
    Action.RESUME: VmState.RUNNING,
    Action.STOP: VmState.OFF,
    Action.START: VmState.RUNNING,
    Action.REMOVE: None,
    Action.KILL: VmState.OFF,
}


def outcomes(world: World, step: Step) -> Outcomes:
    """For each VM that the step is about: what success makes of it, then what else may be."""
    found = _of_action(world, step.action, step)
    if step.fault is Fault.SECOND and step.second is not None:
        for name, states in _of_action(world, step.second, step).items():
            found.setdefault(name, [world.guests[name].state])
            found[name] += states
    if step.fault is Fault.KILL_VM and step.vm is not None:
        found.setdefault(step.vm, [world.guests[step.vm].state])
        found[step.vm].append(VmState.OFF)
    return found


def _of_action(world: World, action: Action, step: Step) -> Outcomes:
    if action is Action.CREATE:
        return {name: [VmState.RUNNING, None, VmState.OFF] for name in step.names}
    if action is Action.CLONE:
        return {name: [VmState.RUNNING, None] for name in step.names}
    if action not in _AFTER or step.vm is None:
        return {}
    before = world.guests[step.vm].state
    between = [VmState.OFF] if action is Action.REMOVE else []
    return {step.vm: [_AFTER[action], before, *between]}


def settle(world: World, step: Step, name: str, state: VmState | None) -> None:
    """Note how a VM came out of a step."""
    if state is None:
        world.guests.pop(name, None)
        world.pools.pop(name, None)
        return
    guest = world.guests.get(name)
    if guest is None:
        guest = world.guests[name] = _born(world, step, name, state)
    elif state is VmState.OFF:  # its guest's memory is lost
        guest.fresh = True
    guest.state = state


def _born(world: World, step: Step, name: str, state: VmState) -> Guest:
    source = world.guests.get(step.vm or "") if step.action is Action.CLONE else None
    if source is None:
        return Guest(name, state)
    return Guest(name, state, source.number, False, source.fenced or step.manner is Manner.FENCED)
