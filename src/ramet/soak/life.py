"""What both soaks share: the VM that lives through all of it, rest, samples, and what was found."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import ramet
from ramet.errors import RametError
from ramet.model.host import Task
from ramet.model.machine import VmState
from ramet.soak import census, growth, guests, truth
from ramet.soak.report import Counts, Problem, Report, Sample
from ramet.soak.stage import Stage
from ramet.soak.world import ANCHOR, Guest, World

ENOUGH = 20
"""Problems after which a soak ends."""


@dataclass
class Life:
    """One soak under way. `log` takes a line of JSON for each step."""

    stage: Stage
    kind: str
    seed: int
    log: IO[str]
    world: World = field(default_factory=World)
    problems: list[Problem] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    actions: dict[str, Counts] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    doing: str = "the beginning"
    steps: int = 0
    checked: int = 0
    ids: set[str] = field(default_factory=set)
    """Of all VMs that ever were."""
    _began: float = field(default_factory=time.monotonic)
    _log_read: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def is_hopeless(self) -> bool:
        return len(self.problems) >= ENOUGH

    def problem(self, *whats: str) -> None:
        for what in whats:
            self.problems.append(Problem(step=self.doing, what=what))
            self.stage.tell(f"PROBLEM after {self.doing}: {what}")
            self.note(problem=what)

    def note(self, **facts: object) -> None:
        """A line in the log of actions."""
        self.log.write(json.dumps({"at_s": round(self.seconds, 3), **facts}) + "\n")
        self.log.flush()

    def count(self, action: str, how: str) -> None:
        counts = self.actions.get(action, Counts())
        self.actions[action] = counts.changed(**{how: getattr(counts, how) + 1})

    # -- the guests ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Boot the VM that lives through it all. Raises RametError."""
        task = self.stage.client.create_vm(guests.request(ANCHOR, privileged=self.stage.privileged))
        self.stage.client.finish_task(task, timeout_s=300)
        self.world.guests[ANCHOR] = Guest(ANCHOR, VmState.RUNNING)
        guests.furnish(self.stage, self.world.guests[ANCHOR])
        self.remember()

    def remember(self) -> None:
        self.ids |= {vm.id for vm in self.stage.client.list_vms()}

    def check(self, *names: str) -> None:
        """The memory and the disks of guests that should run."""
        for name in names:
            guest = self.world.guests.get(name)
            if guest is None or guest.state is not VmState.RUNNING:
                continue
            try:
                if guest.fresh:
                    guests.furnish(self.stage, guest)
            except RametError as exc:
                self.problem(f"{name} could not be furnished: {exc}")
                continue
            self.checked += 1
            self.problem(*guests.check(self.stage, guest))

    # -- rest ----------------------------------------------------------------------------------------------------------

    def settle_tasks(self) -> None:
        """Until nothing is under way any more. A task that is an error of ours is a problem."""
        busy: list[Task] = []

        def idle() -> bool:
            busy[:] = [task for task in self.stage.client.list_tasks() if not task.state.is_final]
            return not busy

        try:
            self.stage.until(idle, "all tasks have ended")
        except RametError:
            self.problem(*(f"{task.kind} of {task.target} hangs in '{task.doing}'" for task in busy))

    def look_for_bugs(self) -> None:
        """In the tasks that there were, and in what the daemon said."""
        for task in self.stage.client.list_tasks():
            if task.error is not None and task.error.get("code") == "internal":
                self.problem(f"{task.kind} of {task.target} failed by a bug: {task.error.get('message')}")
        found, self._log_read = truth.log_problems(self.stage.log, self._log_read)
        self.problem(*found)

    def sample(self) -> None:
        """Of a host at rest with nothing but the anchor."""
        self.settle_tasks()
        self.problem(*truth.untrue(self.stage, self.world), *truth.strays(self.stage, self.ids))
        self.look_for_bugs()
        view = self.stage.client.show_vm(ANCHOR)
        if view.pid is None:
            self.problem("the anchor has no process")
            return
        values = census.take(self.stage, view.pid, self.ids)
        one = Sample(
            at=self.steps, seconds=round(self.seconds, 1), daemon=str(self.stage.pid), vm=str(view.pid), values=values
        )
        self.samples.append(one)
        self.note(sample=one.model_dump())

    def report(self, log_name: str) -> Report:
        return Report(
            version=ramet.__version__, kind=self.kind, seed=self.seed, steps=self.steps,
            took_s=round(self.seconds, 1), guests_checked=self.checked, actions=self.actions, faults=dict(self.faults),
            problems=tuple(self.problems), growth=tuple(_growth(self.samples)), samples=tuple(self.samples),
            log=log_name,
        )  # fmt: skip


def _growth(samples: Sequence[Sample]) -> list[growth.Growth]:
    found = []
    for name, tolerance in census.TOLERANCE.items():
        points = [
            growth.Point(sample.at, sample.values[name], census.life_of(name, sample.daemon, sample.vm))
            for sample in samples
            if name in sample.values
        ]
        one = growth.judge(name, points, tolerance, is_count=census.is_count(name))
        if one is not None:
            found.append(one)
    return found
