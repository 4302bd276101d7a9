"""Trying a change: a clone off every network, a command in it, what it changed there, and the clone is gone again.

The clone is removed whatever happens, unless it is to be kept: at the end of the task, however that comes; at the next
start when the daemon died meanwhile; and when its time to live is over if even that did not happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import structlog

from ramet.errors import ConflictError, NotFoundError, RametError, StateError, from_dict
from ramet.guest.agent import Agent, ExecOutcome
from ramet.guest.following import OverdueError, follow
from ramet.guest.observing import Observation, changes, look
from ramet.host.clones import CloneDesk
from ramet.host.execs import exit_code_of, exited_event, piece_event
from ramet.host.floor import Floor
from ramet.host.outputs import OutputLog, Outputs
from ramet.host.stock import StockDesk
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.host.vms import VmDesk
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.execution import ExecEvent
from ramet.model.host import Task, TaskState
from ramet.model.machine import Nic
from ramet.model.requests import CloneVm, CreateNetwork, NicChange
from ramet.model.trying import TRY_MARK, TRY_NETWORK, Changes, TryCommand, TryReport, TryTimings
from ramet.model.views import CloneResult

log = structlog.stdlib.get_logger(__name__)

TIMED_OUT = 124
"""The exit code of a command whose time was over, as of timeout(1)."""
_SPARE_S = 1800.0
"""What cloning, looking and removing may take of a clone's time to live."""
_GUEST_S = 120.0
_NETWORK_S = 10.0
"""To have an address in the trial's network: what a network sets off in the guest is over before the first look."""
_REMOVE_TRIES = 5


@dataclass
class _Trial:
    """What is known of one trial so far."""

    source: LiveMachine
    request: TryCommand
    name: str
    network: str | None
    clone_id: str = ""
    outcome: ExecOutcome | None = None
    changes: Changes | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ms: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)


class TryDesk:
    """Starts trials as tasks, and removes what a former daemon left of its own."""

    def __init__(
        self, floor: Floor, tasks: TaskManager, clones: CloneDesk, vms: VmDesk, stock: StockDesk, outputs: Outputs
    ) -> None:
        self._floor = floor
        self._tasks = tasks
        self._clones = clones
        self._vms = vms
        self._stock = stock
        self._outputs = outputs

    async def sweep(self) -> None:
        """At start: no trial runs, so their clones have no use."""
        for live in [live for live in self._floor.machines.values() if TRY_MARK in live.vm.machine.extra_config]:
            await self._remove(live.id)

    async def start(self, ref: str, request: TryCommand, by_uid: int | None) -> Task:
        """The task's result is a `TryReport`; its output is that of the command."""
        source = self._floor.find(ref)
        network = await self._network(request.network)
        trial = _Trial(source, request, request.name or self._new_name(source.name), network)
        forecast = self._order(trial)
        await self._clones.forecast(source.id, forecast)  # refusals come at once, before there is a task

        async def work(handle: TaskHandle) -> TryReport:
            output = self._outputs.open(handle.id)
            try:
                return await self._try(trial, handle, output, by_uid)
            finally:
                output.close()

        task = await self._tasks.start("try", source.name, work, vm_id=source.id, cancellable=True, by_uid=by_uid)
        self._outputs.open(task.id)
        return task

    def _new_name(self, source: str) -> str:
        while True:
            name = f"{source[:50].rstrip('._-')}-try-{secrets.token_hex(3)}"
            if not self._floor.is_taken(name):
                return name

    async def _network(self, name: str) -> str | None:
        """The port group to be alone in; None where this daemon can have no port groups: its cards are on none then."""
        if not self._floor.rooms.networks.privileged:
            if name != TRY_NETWORK:
                raise NotFoundError(f"There is no port group {name!r}.", hint="See 'ramet network ls'.")
            return None
        known = self._floor.inventory.networks.get(name)
        if known is None:
            with contextlib.suppress(ConflictError):  # another trial made it meanwhile
                await self._stock.create_network(CreateNetwork(name=name, isolated=True))
        elif name == TRY_NETWORK and not known.isolated:
            raise StateError(
                f"The port group {name!r} is not isolated.",
                hint="Choose another: --network NAME.",
                state="",
                operation="try",
            )
        return name

    def _order(self, trial: _Trial) -> CloneVm:
        cards = trial.source.vm.machine.nics
        keep = trial.request.keep
        return CloneVm(
            names=(trial.name,),
            nics=tuple(_alone(nic, trial.network) for nic in cards),
            wait_network_s=_NETWORK_S,
            extra_config={} if keep else {TRY_MARK: "remove"},
            ttl_s=None if keep else trial.request.timeout_s + _SPARE_S,
        )

    # -- the trial -------------------------------------------------------------------------------------------------

    async def _try(self, trial: _Trial, handle: TaskHandle, output: OutputLog, by_uid: int | None) -> TryReport:
        async with self._clone(trial, handle, by_uid) as live:
            reach("try.cloned")
            with _timed(trial, handle, "guest"):
                await live.agent.ping(timeout_s=_GUEST_S)
            token = secrets.token_hex(8)
            before = await self._look(trial, handle, live.agent, token, None)
            reach("try.looked")
            with _timed(trial, handle, "command"):
                await self._run(trial, live.agent, output)
            reach("try.ran")
            output.close()
            if before is not None:
                await self._look(trial, handle, live.agent, token, before)
        return _report(trial)

    @asynccontextmanager
    async def _clone(self, trial: _Trial, handle: TaskHandle, by_uid: int | None) -> AsyncIterator[LiveMachine]:
        """The clone, which is removed at the end of the block. One to be kept stays once its guest runs."""
        stays = False
        try:
            with _timed(trial, handle, "clone"):
                result = await self._cloned(trial, handle, by_uid)
            trial.ms["stun"] = result.timings_ms.stun
            trial.warnings += [*result.warnings, *([result.problem] if result.problem else [])]
            stays = trial.request.keep
            yield self._floor.find(result.id)
        finally:
            if not stays and trial.clone_id:
                with _timed(trial, handle, "remove"):
                    await _to_the_end(self._remove(trial.clone_id))

    async def _cloned(self, trial: _Trial, handle: TaskHandle, by_uid: int | None) -> CloneResult:
        task = await self._clones.clone(trial.source.id, self._order(trial), by_uid)
        try:
            task = await self._ended(task.id)
        except asyncio.CancelledError:
            await _to_the_end(self._cancel_clone(trial, task.id, handle.cancel_requested))
            raise
        if task.state is not TaskState.SUCCESS:
            raise from_dict(task.error or {"message": "The clone was not made."})
        return self._take_note(trial, task)

    def _take_note(self, trial: _Trial, task: Task) -> CloneResult:
        result = CloneResult.model_validate(task.result[0])
        if not result.ok:
            raise from_dict(result.error or {"message": "The clone was not made."})
        trial.clone_id = result.id
        return result

    async def _cancel_clone(self, trial: _Trial, task_id: str, ask: bool) -> None:
        """A cancelled clone takes itself back; one that was done before that is ours to remove."""
        with contextlib.suppress(RametError):
            if ask:  # when the daemon stops, it is being cancelled already
                await self._tasks.cancel(task_id)
            task = await self._ended(task_id)
            if task.state is TaskState.SUCCESS:
                self._take_note(trial, task)

    async def _ended(self, task_id: str) -> Task:
        while not (task := await self._tasks.wait(task_id, 60.0)).state.is_final:
            pass
        return task

    async def _run(self, trial: _Trial, agent: Agent, output: OutputLog) -> None:
        request = trial.request
        async with follow(agent, request.argv, env=request.env) as command:
            output.put(ExecEvent(kind="started"))
            try:
                async for piece in command.output(timeout_s=request.timeout_s):
                    output.put(piece_event(piece))
            except OverdueError:
                return
            trial.outcome = command.outcome
        if trial.outcome is not None:
            output.put(exited_event(trial.outcome))

    async def _look(
        self, trial: _Trial, handle: TaskHandle, agent: Agent, token: str, before: Observation | None
    ) -> Observation | None:
        """A guest that cannot be looked at is a trial all the same."""
        with _timed(trial, handle, "before" if before is None else "after"):
            try:
                seen = await look(agent, token, after=before is not None)
            except (RametError, OSError) as exc:
                trial.problems.append(exc.message if isinstance(exc, RametError) else str(exc))
                return None
        if before is not None:
            trial.changes = changes(before, seen)
        return seen

    async def _remove(self, vm_id: str) -> None:
        """Its time to live ends what cannot be removed now."""
        for _ in range(_REMOVE_TRIES):
            try:
                await self._vms.take_away(vm_id)
            except NotFoundError:
                return
            except (RametError, OSError) as exc:
                log.warning("the clone of a trial could not be removed", vm=vm_id, error=str(exc))
            else:
                return


def _alone(nic: Nic, network: str | None) -> NicChange:
    """A card in user mode leads out by the host, and cannot be on a port group in a clone: it is unplugged."""
    if nic.is_user_mode:
        return NicChange(id=nic.id, connected=False)
    return NicChange(id=nic.id, network=network or "", connected=True)


@contextmanager
def _timed(trial: _Trial, handle: TaskHandle, name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        with handle.step(name):
            yield
    finally:
        trial.ms[name] = round((time.monotonic() - began) * 1000, 3)


def _report(trial: _Trial) -> TryReport:
    outcome = trial.outcome
    trial.ms["total"] = round((time.monotonic() - trial.began) * 1000, 3)
    return TryReport(
        source=trial.source.name,
        clone=trial.name,
        clone_id=trial.clone_id,
        kept=trial.request.keep,
        network=trial.network,
        exit_code=TIMED_OUT if outcome is None else exit_code_of(outcome),
        signal=outcome.signal if outcome is not None else None,
        timed_out=outcome is None,
        changes=trial.changes,
        changes_problem=" ".join(trial.problems) or None,
        warnings=tuple(trial.warnings),
        timings_ms=TryTimings(**trial.ms),
    )


async def _to_the_end(work: Awaitable[None]) -> None:
    """Also when cancelled, once or more often: the work is bounded, and the cancellation goes on after it."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()
