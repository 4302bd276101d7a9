"""One VM as the daemon holds it: its record, its process, and the sessions with QEMU and the guest.

Resource handling: `attach` opens the sessions and starts one task that watches the process; `detach` (daemon's end, VMs
go on) and the process's own end close them. A VM that is off holds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ramet.errors import NotFoundError, RametError, StateError, UnsupportedError
from ramet.guest.agent import Agent
from ramet.guest.rpc_channel import RpcChannel
from ramet.hypervisor.cgroup import VmGroup
from ramet.hypervisor.ending import GUEST_RESET, read_ending
from ramet.hypervisor.process import QemuProcess
from ramet.hypervisor.qmp import QmpSession
from ramet.hypervisor.rundir import RunDir
from ramet.machine.lifecycle import Happening, Operation, next_state
from ramet.machine.rooms import Rooms
from ramet.machine.rpc_service import GuestService
from ramet.model.machine import Accelerator, Process, Vm, VmState

_log = logging.getLogger(__name__)

FOR_EVER_S = 1e9
MAX_THREADS = 1024
"""Of one QEMU, and of the forks that begin in its group: what one that was broken into could start."""

_FACTS = frozenset(
    {
        Happening.QEMU_ENDED,
        Happening.GUEST_STOPPED,
        Happening.GUEST_CONTINUED,
        Happening.START_FAILED,
        Operation.THAW,
    }
)
"""Recorded after they are true in QEMU."""

OOM_SCORE, OOM_SCORE_CLONE, OOM_SCORE_POOLED = 200, 300, 400
"""When memory is short the kernel ends what is largest: a frozen source, which frees nothing, for its clones have the
same pages. So clones go first, and before them those that wait in a pool. A QEMU inherits its parent's score, and the
daemon's protects the daemon."""


class LiveMachine:
    """A VM and what is open for it. The host makes one for every record; operations stand in the modules beside."""

    def __init__(self, rooms: Rooms, vm: Vm) -> None:
        self.rooms = rooms
        self.vm = vm
        self.process: QemuProcess | None = None
        self.taps: dict[str, str] = {}
        self.guest = GuestService(self)
        self.accelerator: Accelerator | None = vm.process.accelerator if vm.process else None
        self._qmp: QmpSession | None = None
        self._rpc: RpcChannel | None = None
        self._agent: Agent | None = None
        self._watch: asyncio.Task[None] | None = None
        self._events: asyncio.Task[None] | None = None
        self._reset_seen = False
        self.identifying = False
        """Its guest is being asked to take on an identity: a script runs in it."""
        self.squeezed_to: int | None = None
        """Bytes that the host's guard has asked the guest to do with; None while it has what its owner wants."""
        self.removed = False
        """Its record is gone: nothing that is still under way may write it again."""
        self.zygote: RunDir | None = None
        """Who is forked in its place while it is frozen; see ``ramet.clone.zygote``."""
        self.zygote_tried = False
        self.zygote_lock = asyncio.Lock()
        self.while_frozen = contextlib.AsyncExitStack()
        """Ends what lasts until the VM is thawed, its process ends, or the daemon lets go of it."""
        self._stopped_early: str | None = None
        """Why its guest stands still again, in the moment between its first instruction and the record of it."""
        self.group_left = False
        """It is off, and its control group could not be removed."""
        self.ended = asyncio.Event()
        self.ended.set()

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.vm.id

    @property
    def name(self) -> str:
        return self.vm.machine.name

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.rooms.paths.vm_run(self.id))

    @property
    def qmp(self) -> QmpSession:
        """The daemon's QMP session; StateError when the VM is off."""
        if self._qmp is None:
            raise self._off()
        return self._qmp

    @property
    def rpc(self) -> RpcChannel | None:
        return self._rpc

    @property
    def agent(self) -> Agent:
        """The guest agent's client; connects at its first command. StateError unless the guest runs."""
        next_state(self.vm.state, Operation.REACH_GUEST, name=self.name)
        if self._agent is None:
            self._agent = Agent(self.run_dir.agent)
        return self._agent

    @property
    def has_agent(self) -> bool:
        """Whether an agent session is open: a command may be under way."""
        return self._agent is not None

    def _off(self) -> StateError:
        state = self.vm.state.value
        return StateError(f"{self.name!r} is {state}.", hint="Start it first.", state=state, operation="")

    def require_accelerator(self) -> Accelerator:
        """What the VM runs on; known from its launch on, and a clone's from its source."""
        if self.accelerator is None:
            raise self._off()
        return self.accelerator

    @property
    def _group(self) -> VmGroup:
        return self.rooms.cgroups.group(self.vm.lineage_id or self.id, self.id)

    def confine(self, process: QemuProcess) -> None:
        """Put the process into the VM's control group, with its limits; on a host without them it runs as it is."""
        group, limit = self._group, self.vm.machine.cpu_limit_percent
        problem = group.create()
        problem = problem or group.add(process.pid) or group.set_pids_limit(MAX_THREADS)
        if limit is not None:
            problem = problem or group.set_cpu_limit(limit)
        if problem is not None:
            _log.info("%s runs without limits: %s", self.name, problem)
        self.mark_expendable(process)

    def mark_expendable(self, process: QemuProcess) -> None:
        """Say how soon the kernel is to end it when memory is short."""
        score = OOM_SCORE_POOLED if self.vm.is_pooled else OOM_SCORE_CLONE if self.vm.lineage else OOM_SCORE
        problem = process.set_oom_score(score)
        if problem is not None:
            _log.info("%s: %s", self.name, problem)

    def limit_cpu(self) -> None:
        """Apply a changed limit to a VM that is on. Raises UnsupportedError, with the reason, where it cannot be."""
        problem = self._group.set_cpu_limit(self.vm.machine.cpu_limit_percent)
        if problem is not None:
            raise UnsupportedError(f"The processors of {self.name!r} cannot be limited: {problem}.")

    def unconfine(self) -> None:
        """Remove the VM's control group; its processes have ended. One in which a clone is still being born stays."""
        self.group_left = self._group.remove() is not None

    def require_process(self) -> QemuProcess:
        if self.process is None:
            raise self._off()
        return self.process

    def resident_bytes(self) -> int:
        """Of the whole process, guest RAM in the main. From statm: smaps would walk the guest's page tables, which
        takes milliseconds and holds the guest up."""
        try:
            pages = int(Path(f"/proc/{self.require_process().pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    # -- the record ------------------------------------------------------------------------------------------------

    async def change(self, *, fact: bool = False, **update: Any) -> Vm:
        """Replace fields of the record, and make that durable.

        A `fact` is true already, whatever the disk says: it stands in memory, and is written when there is room.
        Anything else that cannot be written has not happened, and raises.
        """
        if self.removed:
            raise NotFoundError(f"{self.name!r} was removed.")
        before, after = self.vm, self.vm.changed(**update)
        self.vm = after
        try:
            await (self.rooms.book.save_fact(after) if fact else self.rooms.book.save(after))
        except Exception:
            if self.vm is after:  # nobody changed it further meanwhile
                self.vm = before
            raise
        return self.vm

    async def move(self, cause: Operation | Happening, **update: Any) -> Vm:
        """Follow the lifecycle table, and tell."""
        before = self.vm.state
        state = next_state(before, cause, name=self.name)
        await self.change(fact=cause in _FACTS, state=state, **update)
        if state is not before:
            if state is VmState.FROZEN:
                self.hold_guest()
            elif before is VmState.FROZEN:
                self.let_guest_go()
            self.rooms.book.emit("vm.state", f"{self.name} is {state.value}.", self.vm, before=before.value)
        return self.vm

    def hold_guest(self) -> None:
        """It stands still: nothing is read from it, said to it, or waited for, until `let_guest_go`."""
        if self._agent is not None:
            self._agent.hold(self._froze)

    def let_guest_go(self) -> None:
        """It goes on, or goes on where it stood."""
        if self._agent is not None:
            self._agent.release()
        if self._rpc is not None:
            self._rpc.resume()

    def _froze(self) -> StateError:
        return StateError(
            f"{self.name!r} froze: nothing in it answers.",
            hint=f"'ramet vm thaw {self.name}' lets it go on, and with it what runs there; or reach a clone of it.",
            state=VmState.FROZEN.value,
            operation=Operation.REACH_GUEST.value,
        )

    # -- sessions --------------------------------------------------------------------------------------------------

    async def attach(self, process: QemuProcess, *, pending_rpc: bytes = b"", inherited: bool = True) -> None:
        """Connect to a QEMU that runs.

        `pending_rpc` is what the guest had asked and nobody had answered: in its source, if `inherited`. In a pool no
        request is answered before the VM is taken (`rpc.resume`): the answers may depend on whose VM it becomes.
        """
        self.process = process
        self.ended.clear()
        self._reset_seen = False
        self._stopped_early = None
        self._watch = asyncio.create_task(self._supervise(process), name=f"watch {self.name}")
        self._qmp = await QmpSession.connect(self.run_dir.qmp, self.rooms.limits.qmp_s, name=self.name, process=process)
        self._rpc = await RpcChannel.open(
            self.run_dir.rpc,
            self.guest.handle,
            timeout_s=self.rooms.limits.qmp_s,
            pending=pending_rpc,
            inherited=self.guest.handle_inherited if inherited else None,
            held=self.vm.is_pooled,
        )
        self._agent = Agent(self.run_dir.agent)
        with contextlib.suppress(OSError):
            await self._agent.connect()
        await self._qmp.configure_migration()
        self._events = asyncio.create_task(self._follow_events(self._qmp), name=f"events {self.name}")

    async def detach(self) -> None:
        """Close the sessions; the VM goes on."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])
        await self.thawed()
        await self._close_sessions()
        if self.process is not None:
            self.process.close()
            self.process = None
        self.ended.set()

    async def drop_zygote(self) -> None:
        """End the zygote, if there is one. Another is made for the next freeze, not for this one."""
        self.zygote = None
        await self.while_frozen.aclose()

    async def thawed(self) -> None:
        """It is frozen no more: what lasted until now ends."""
        await self.drop_zygote()
        self.zygote_tried = False

    async def _close_sessions(self) -> None:
        events, sessions = self._events, (self._qmp, self._rpc, self._agent)
        self._qmp = self._rpc = self._agent = self._events = None
        if events is not None:
            events.cancel()
            await asyncio.wait([events])
        for session in sessions:
            if session is not None:
                with contextlib.suppress(RametError, OSError):
                    await session.close()

    # -- the watch -------------------------------------------------------------------------------------------------

    async def _supervise(self, process: QemuProcess) -> None:
        """Wait for the end of the process, then set things right."""
        await process.wait_exit(FOR_EVER_S)
        try:
            await self._process_ended(process)
        except Exception:
            _log.exception("while %s ended", self.name)

    async def _follow_events(self, qmp: QmpSession) -> None:
        """Never fails for one odd event: QEMU's word is recorded, or logged."""
        with qmp.events() as events:
            async for event in events:
                try:
                    await self._on_event(str(event.get("event")), dict(event.get("data") or {}))
                except Exception as exc:
                    _log.warning("%s: %s", self.name, exc)

    async def _on_event(self, event: str, data: dict[str, Any]) -> None:
        if event in ("SHUTDOWN", "RESET"):
            self._reset_seen = event == "SHUTDOWN" and data.get("reason") == GUEST_RESET
            self.rooms.book.emit(f"guest.{event.lower()}", f"{self.name}: {data.get('reason')}.", self.vm)
        elif event == "GUEST_PANICKED":
            await self._paused("guest panicked")
        elif event == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            await self._paused("disk full" if data.get("nospace") else f"disk error: {data.get('reason')}")
        elif event == "RESUME":
            self._stopped_early = None
            if self.vm.state is VmState.PAUSED:
                await self.move(Happening.GUEST_CONTINUED, pause_reason=None)

    async def _paused(self, reason: str) -> None:
        if self.vm.state in (VmState.RUNNING, VmState.STOPPING):
            await self.move(Happening.GUEST_STOPPED, pause_reason=reason)
        elif self.vm.state is VmState.STARTING:
            self._stopped_early = reason

    async def _process_ended(self, process: QemuProcess) -> None:
        """The record, the moment and the sockets follow the process: off."""
        reset = await self._ended_with_reset() and self.vm.state is not VmState.STOPPING
        vm = self.vm
        self._watch = None
        await self.thawed()
        await self._close_sessions()
        process.close()
        self.process = None
        self.taps.clear()
        if vm.state not in (VmState.OFF, VmState.SUSPENDED):
            await self.move(Happening.QEMU_ENDED, process=None, moment_id=None, pause_reason=None, started_at=None)
        elif vm.process is not None:
            await self.change(fact=True, process=None, started_at=None)
        if vm.moment_id is not None:
            await self.rooms.book.drop_moment(vm.moment_id)
        self.guest.fail_freeze("the VM ended")
        await asyncio.to_thread(shutil.rmtree, self.run_dir.path, ignore_errors=True)
        self.unconfine()
        self.ended.set()
        if reset:
            self.rooms.book.guest_asks_restart(self.id)

    async def _ended_with_reset(self) -> bool:
        """By QEMU's own log: it ends so soon after its last event that the monitor may not have told it."""
        ending = await asyncio.to_thread(read_ending, self.rooms.paths.vm(self.id))
        return ending.wants_restart if ending is not None else self._reset_seen

    async def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the process has ended and the record says so; False when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):  # wait_for of Python 3.11 can lose a cancellation
                await self.ended.wait()
        except TimeoutError:
            return False
        return True

    async def shutdown_by_agent(self, timeout_s: float) -> None:
        """Ask the guest agent to power off, whatever state the record is in."""
        agent = self._agent or Agent(self.run_dir.agent)
        self._agent = agent
        async with asyncio.timeout(timeout_s):
            await agent.shutdown()

    def process_record(self, process: QemuProcess, *, launched: bool) -> Process:
        """What a later daemon finds the process by."""
        qemu = self.rooms.qemu
        return process.record(self.require_accelerator(), qemu.version_text, qemu.build_id, launched=launched)

    async def mark_running(self, process: QemuProcess, *, launched: bool) -> None:
        """Record the process of a VM that now runs."""
        await self.move(
            Happening.STARTED, process=self.process_record(process, launched=launched), started_at=time.time()
        )
        if self._stopped_early is not None:
            await self._paused(self._stopped_early)
