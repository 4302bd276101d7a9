"""What the soak does next: chosen by a seed among what is possible now. Pure, and the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ramet.model.machine import VmState
from ramet.soak.world import ANCHOR, Action, Fault, Manner, Step, World

_DELAYS_MS = (0, 2, 5, 10, 20, 40, 80, 150, 300, 600, 1200)
_FAULTY = 0.3
_SECONDS = (Action.FREEZE, Action.SUSPEND, Action.STOP, Action.REMOVE, Action.THAW)
_BATCH = 3


@dataclass
class Chance:
    """`most` bounds the QEMU processes that there are at one time."""

    seed: int
    most: int = 4
    privileged: bool = True
    _random: random.Random = field(init=False)
    _names: int = 0
    _steps: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def step(self, world: World) -> Step:
        """The next one."""
        weights = {action: weight for action, weight in _WEIGHTS.items() if self._targets(action, world)}
        (action,) = self._random.choices(list(weights), list(weights.values()))
        vm = self._random.choice(self._targets(action, world))
        self._steps += 1
        step = Step(number=self._steps, action=action, vm=vm or None, **self._details(action, world))
        return self._with_fault(step, world)

    def _targets(self, action: Action, world: World) -> list[str]:
        """VMs that it may be done to; one that is '' where it needs none."""
        room = self.most - world.weight
        if action in _NEEDS_ROOM and room < 1:
            return []
        if action is Action.CREATE:
            return [""]
        found = world.in_state(*_FROM[action])
        return [name for name in found if _suits(action, name, world)]

    def _details(self, action: Action, world: World) -> dict[str, object]:
        room = self.most - world.weight
        if action is Action.CREATE:
            return {"names": (self._name(),)}
        if action is Action.CLONE:
            count = self._random.choice([1, 1, 1, *range(2, _BATCH + 1)])
            manners = list(Manner) if self.privileged else [Manner.BARE, Manner.IDENTITY]
            names = tuple(self._name() for _ in range(min(count, room)))
            return {"names": names, "manner": self._random.choice(manners)}
        if action is Action.SET_POOL:
            return {"size": self._random.randint(1, min(2, room))}
        return {}

    def _name(self) -> str:
        self._names += 1
        return f"g{self._names}"

    def _with_fault(self, step: Step, world: World) -> Step:
        if step.action is Action.KILL or self._random.random() > _FAULTY:
            return step
        weights: dict[Fault, float] = {Fault.KILL_DAEMON: 4, Fault.RESTART_DAEMON: 1}
        if step.vm is not None and world.guests[step.vm].is_on:
            weights.update({Fault.KILL_VM: 1.5, Fault.SECOND: 3})
        (fault,) = self._random.choices(list(weights), list(weights.values()))
        second = None
        if fault is Fault.SECOND:
            kinds = [one for one in _SECONDS if one is not step.action and _suits(one, step.vm or "", world)]
            second = self._random.choice(kinds)
        after_ms = self._random.choice(_DELAYS_MS)
        return step.changed(fault=fault, second=second, after_ms=after_ms)


def _suits(action: Action, name: str, world: World) -> bool:
    if action is Action.REMOVE:
        return name != ANCHOR
    if action is Action.DROP_POOL:
        return name in world.pools
    if action is Action.SET_POOL:
        return name not in world.pools
    return True


_ON = (VmState.RUNNING, VmState.FROZEN)
_FROM: dict[Action, tuple[VmState, ...]] = {
    Action.CLONE: _ON,
    Action.FREEZE: (VmState.RUNNING,),
    Action.THAW: (VmState.FROZEN,),
    Action.SUSPEND: (VmState.RUNNING,),
    Action.RESUME: (VmState.SUSPENDED,),
    Action.STOP: _ON,
    Action.START: (VmState.OFF,),
    Action.REMOVE: (*_ON, VmState.OFF, VmState.SUSPENDED),
    Action.TRY: (VmState.RUNNING,),
    Action.SET_POOL: (VmState.FROZEN,),
    Action.DROP_POOL: tuple(VmState),
    Action.KILL: _ON,
    Action.NOTHING: tuple(VmState),
}
_NEEDS_ROOM = {Action.CREATE, Action.CLONE, Action.START, Action.RESUME, Action.TRY, Action.SET_POOL}
_WEIGHTS: dict[Action, float] = {
    Action.CREATE: 1,
    Action.CLONE: 8,
    Action.FREEZE: 4,
    Action.THAW: 2,
    Action.SUSPEND: 1.5,
    Action.RESUME: 4,
    Action.STOP: 1,
    Action.START: 4,
    Action.REMOVE: 5,
    Action.TRY: 1,
    Action.SET_POOL: 3,
    Action.DROP_POOL: 0.7,
    Action.KILL: 1,
    Action.NOTHING: 1,
}
