"""Clone and remove, again and again: one source that runs throughout, and nothing that may stay of its clones."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from ramet.errors import RametError
from ramet.model.machine import VmState
from ramet.soak.life import Life
from ramet.soak.walk import clone_request
from ramet.soak.world import ANCHOR, Action, Guest, Manner, Step

SAMPLES = 40
_FROZEN_EVERY = 4
_BATCH_EVERY = 5


@dataclass
class Cycles:
    life: Life
    cycles: int
    samples: int = SAMPLES

    def run(self) -> None:
        """After the anchor has booted."""
        life = self.life
        life.sample()
        every = max(1, self.cycles // self.samples)
        manners = itertools.cycle(Manner if life.stage.privileged else (Manner.BARE, Manner.IDENTITY))
        for number, manner in zip(range(1, self.cycles + 1), manners, strict=False):
            names = tuple(f"c{number}-{one}" for one in range(2 if number % _BATCH_EVERY == 0 else 1))
            step = Step(number=number, action=Action.CLONE, vm=ANCHOR, names=names, manner=manner)
            self._cycle(step, frozen=number % _FROZEN_EVERY == 0)
            if number % every == 0:
                life.check(ANCHOR)
                life.sample()
            if life.is_hopeless:
                return

    def _cycle(self, step: Step, *, frozen: bool) -> None:
        life = self.life
        life.steps += 1
        life.doing = str(step)
        life.stage.tell(life.doing)
        began = time.monotonic()
        kind = f"clone of a {'frozen' if frozen else 'running'} VM, {step.manner.value}"
        how = "done"
        try:
            self._clone(step, frozen=frozen)
        except (RametError, OSError) as exc:
            how = "failed"
            life.problem(f"{type(exc).__name__}: {exc}")
        self._remove(step)
        life.count(kind, how)
        life.note(step=step.model_dump(mode="json"), frozen=frozen, how=how, took_s=round(time.monotonic() - began, 2))

    def _clone(self, step: Step, *, frozen: bool) -> None:
        life, client = self.life, self.life.stage.client
        number = life.world.guests[ANCHOR].number
        if frozen:
            client.finish_task(client.freeze_vm(ANCHOR), timeout_s=150)
        try:
            task = life.stage.finish(client.clone_vm(ANCHOR, clone_request(step)))
            client.finish_task(task)
            for result in client.clone_results(task):
                life.problem(*([f"{result.name}: {result.error or result.problem}"] if not _is_well(result) else []))
                life.ids.add(result.id)
        finally:
            if frozen:
                client.finish_task(client.thaw_vm(ANCHOR), timeout_s=150)
        for name in step.names:
            life.world.guests[name] = Guest(name, VmState.RUNNING, number, False)
        life.check(*step.names)

    def _remove(self, step: Step) -> None:
        life, client = self.life, self.life.stage.client
        for name in step.names:
            life.world.guests.pop(name, None)
            try:
                client.finish_task(client.remove_vm(name, True), timeout_s=150)
            except (RametError, OSError) as exc:
                life.problem(f"{name} is not removed: {exc}")


def _is_well(result: object) -> bool:
    return bool(getattr(result, "ok", False)) and getattr(result, "problem", None) is None
