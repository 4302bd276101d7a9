"""The mixed soak: a random walk through what users and accidents do, in rounds, each of which ends at rest."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ramet.errors import DeadlineError, RametError, from_dict
from ramet.model.host import Task, TaskState
from ramet.model.machine import VmState
from ramet.model.pool import SetPool
from ramet.model.requests import CloneVm, NicChange, StopVm
from ramet.model.trying import TryCommand
from ramet.soak import guests, truth
from ramet.soak.chance import Chance
from ramet.soak.life import Life
from ramet.soak.world import ANCHOR, Action, Fault, Manner, Step, outcomes, settle

ROUND = 12
"""Steps between two rests."""
_REFUSALS = {"busy", "state", "conflict", "stun-too-long", "capacity"}
_CUT_OFF = {"qemu", "fork", "guest", "peer", "cancelled", "not-found", "deadline", "error", "tool", "interrupted"}
"""What is right as well when something was killed meanwhile."""
_DEATH_S = 30.0
_CHANGING = (VmState.STARTING, VmState.STOPPING)


@dataclass
class Walk:
    """Goes until `seconds` are over, or the `recorded` steps are done."""

    life: Life
    seconds: float
    recorded: Iterable[Step] | None = None
    round_steps: int = ROUND
    chance: Chance = field(init=False)

    def __post_init__(self) -> None:
        self.chance = Chance(self.life.seed, privileged=self.life.stage.privileged)

    def run(self) -> None:
        """The whole soak, after the anchor has booted."""
        life = self.life
        life.sample()
        for step in self._steps():
            self._step(step)
            if life.steps % self.round_steps == 0:
                self._rest()
        if life.steps % self.round_steps:
            self._rest()

    def _steps(self) -> Iterator[Step]:
        if self.recorded is not None:
            yield from self.recorded
            return
        until = time.monotonic() + self.seconds
        while time.monotonic() < until and not self.life.is_hopeless:
            yield self.chance.step(self.life.world)

    def _step(self, step: Step) -> None:
        life = self.life
        life.steps += 1
        life.doing = str(step)
        if step.vm is not None and step.vm not in life.world.guests:
            return  # of a record, whose run went otherwise
        began = time.monotonic()
        life.stage.tell(life.doing)
        life.note(step=step.model_dump(mode="json"))
        try:
            how = self._perform(step)
            self._settle(step, how)
        except (RametError, OSError) as exc:
            how = "failed"
            life.problem(f"{type(exc).__name__}: {exc}")
            self._revive()
            self._believe(step, {})
        life.count(step.action.value, how)
        life.note(number=step.number, how=how, took_s=round(time.monotonic() - began, 2))

    # -- doing it ------------------------------------------------------------------------------------------------------

    def _perform(self, step: Step) -> str:
        """How it went: done, refused, cut_off or failed."""
        tasks: list[Task] = []
        how = self._submit(step.action, step, tasks)
        if step.fault is not None:
            time.sleep(step.after_ms / 1000)
            self.life.faults[step.fault.value] += 1
            self._disturb(step, tasks)
        if step.fault in (Fault.KILL_DAEMON, Fault.RESTART_DAEMON):
            return "cut_off"
        ends = [self._end(task, step) for task in tasks]
        return next((one for one in (how, *ends) if one != "done"), "done")

    def _submit(self, action: Action, step: Step, tasks: list[Task]) -> str:
        try:
            task = self._begin(action, step)
        except RametError as exc:
            return self._judge(exc, step)
        if task is not None:
            tasks.append(task)
        return "done"

    def _begin(self, action: Action, step: Step) -> Task | None:
        client, vm = self.life.stage.client, step.vm or ""
        plain: dict[Action, Callable[[str], Task]] = {
            Action.FREEZE: client.freeze_vm,
            Action.THAW: client.thaw_vm,
            Action.SUSPEND: client.suspend_vm,
            Action.RESUME: client.resume_vm,
            Action.START: client.start_vm,
        }
        if action in plain:
            return plain[action](vm)
        if action is Action.CREATE:
            return client.create_vm(guests.request(step.names[0], privileged=self.life.stage.privileged))
        if action is Action.CLONE:
            return client.clone_vm(vm, clone_request(step))
        if action is Action.STOP:
            return client.stop_vm(vm, StopVm(hard=True))
        if action is Action.REMOVE:
            return client.remove_vm(vm, True)
        if action is Action.TRY:
            return client.try_command(vm, TryCommand(argv=("/bin/sh", "-c", "echo tried > /tmp/tried"), timeout_s=60))
        self._at_once(action, step)
        return None

    def _at_once(self, action: Action, step: Step) -> None:
        client, vm, world = self.life.stage.client, step.vm or "", self.life.world
        if action is Action.SET_POOL:
            world.pools[vm] = step.size
            client.set_pool(vm, SetPool(size=step.size))
        elif action is Action.DROP_POOL:
            world.pools.pop(vm, None)
            client.remove_pool(vm)
        elif action is Action.KILL:
            self._kill_vm(vm)

    def _disturb(self, step: Step, tasks: list[Task]) -> None:
        stage = self.life.stage
        if step.fault is Fault.KILL_DAEMON:
            stage.kill()
            stage.start()
        elif step.fault is Fault.RESTART_DAEMON:
            stage.stop()
            stage.start()
        elif step.fault is Fault.KILL_VM and step.vm is not None:
            self._kill_vm(step.vm)
        elif step.second is not None:
            self._submit(step.second, step, tasks)

    def _kill_vm(self, name: str) -> None:
        """Wherever it is; it may be going already. Returns when it is gone."""
        with contextlib.suppress(RametError, ProcessLookupError):
            pid = self.life.stage.client.show_vm(name).pid
            if pid is not None:
                _kill(pid)

    def _end(self, task: Task, step: Step) -> str:
        ended = self.life.stage.finish(task)
        if ended.state is TaskState.SUCCESS:
            errors = [one.error for one in self.life.stage.client.clone_results(ended) if one.error] \
                if ended.kind == "clone" else []
            return self._judge(from_dict(errors[0]), step) if errors else "done"
        return self._judge(from_dict(ended.error or {"code": "cancelled", "message": "It was cancelled."}), step)

    def _judge(self, exc: RametError, step: Step) -> str:
        """Whether an error is a right answer; one that is not is a problem."""
        if exc.code in _REFUSALS or (step.fault is Fault.SECOND and exc.code == "not-found"):
            return "refused"
        if step.fault not in (None, Fault.SECOND) and exc.code in _CUT_OFF:
            return "cut_off"
        if isinstance(exc, DeadlineError) and not exc.fields:
            exc = DeadlineError(f"A bound was passed. {exc}")
        self.life.problem(f"{exc.code}: {exc}")
        return "failed"

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _settle(self, step: Step, how: str) -> None:
        """Compare with what may be, and believe what is."""
        self.life.settle_tasks()
        self._until_still()
        right = outcomes(self.life.world, step)
        if how == "done" and step.fault is None:
            right = {name: states[:1] for name, states in right.items()}
        self._believe(step, right)
        self.life.check(*step.names, *([step.vm] if step.vm else []))

    def _until_still(self) -> None:
        """A process that was killed is recorded as soon as it is reaped."""
        stage = self.life.stage

        def still() -> bool:
            views = stage.client.list_vms()
            return all(view.state not in _CHANGING for view in views) and not any(map(truth.without_process, views))

        stage.until(still, "all VMs are in a state that lasts", 60)

    def _believe(self, step: Step, right: dict[str, list[VmState | None]]) -> None:
        world = self.life.world
        self.life.remember()
        states = {vm.name: vm.state for vm in self.life.stage.client.list_vms()}
        new = [name for name in step.names if name not in world.guests]  # first, while their source is known
        for name in [*new, *sorted(states.keys() - set(new) | world.guests.keys())]:
            found, guest = states.get(name), world.guests.get(name)
            before = guest.state if guest else None
            if found not in right.get(name, [before]):
                may = ", ".join(str(one.value if one else "not there") for one in right.get(name, [before]))
                self.life.problem(f"{name} is {found.value if found else 'not there'}, and may be: {may}")
            if found is not before:
                settle(world, step, name, found)
        pools = {pool.vm: pool.size for pool in self.life.stage.client.list_pools()}
        world.pools = pools

    def _revive(self) -> None:
        """After a failure: a daemon that answers, whatever it was."""
        stage = self.life.stage
        try:
            stage.client.host_view()
        except RametError:
            stage.kill()
            stage.start()

    # -- rest ----------------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Every guest right, then nothing but the anchor; and what is left over is counted."""
        life = self.life
        try:
            life.check(*life.world.guests)
            life.problem(*truth.untrue(life.stage, life.world))
            self._only_anchor()
            life.check(ANCHOR)
            life.sample()
        except (RametError, OSError) as exc:
            life.problem(f"no rest: {type(exc).__name__}: {exc}")
            self._revive()

    def _only_anchor(self) -> None:
        life, client = self.life, self.life.stage.client
        for pool in client.list_pools():
            client.remove_pool(pool.vm)
        for vm in client.list_vms():
            if vm.name != ANCHOR:
                client.finish_task(client.remove_vm(vm.name, True), timeout_s=150)
        life.world.pools.clear()
        life.world.guests = {ANCHOR: life.world.guests[ANCHOR]}
        guest = life.world.guests[ANCHOR]
        wake = {VmState.FROZEN: client.thaw_vm, VmState.OFF: client.start_vm, VmState.SUSPENDED: client.resume_vm}
        if guest.state in wake:
            client.finish_task(wake[guest.state](ANCHOR), timeout_s=150)
            guest.state = VmState.RUNNING


def _kill(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], _DEATH_S)
    finally:
        os.close(fd)


def clone_request(step: Step) -> CloneVm:
    """Exact copies, or machines of their own, or those in a fence."""
    if step.manner is Manner.BARE:
        return CloneVm(names=step.names, bare=True)
    nics = (NicChange(id="net0", network="copies"),) if step.manner is Manner.FENCED else ()
    return CloneVm(names=step.names, nics=nics, wait_network_s=2)
