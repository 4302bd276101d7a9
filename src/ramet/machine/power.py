"""Starting, stopping, suspending and resuming one VM. Each operation says what it needs, and what a failure leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from pathlib import Path

from ramet.errors import DeadlineError, PeerError, QemuError, RametError, StateError
from ramet.hypervisor.process import QemuProcess
from ramet.hypervisor.stun_client import release
from ramet.machine.lifecycle import Happening, Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.machine.wiring import wire
from ramet.model.machine import VmState
from ramet.network.firewall import Guard
from ramet.network.taps import tap_name

_OWN_END_S = 0.3
KILL_TIMEOUT_S = 10.0
CLOCK_TIMEOUT_S = 5.0


async def start(live: LiveMachine) -> None:
    """Power on, or resume from disk. Needs: off or suspended. After a failure: as before, nothing left behind."""
    operation = Operation.START if live.vm.state is VmState.OFF else Operation.RESUME
    suspended = live.vm.state is VmState.SUSPENDED
    next_state(live.vm.state, operation, name=live.name)
    async with live.rooms.book.operation("start", live.id, {}):
        reach("start.journalled")
        await _settle_machine_type(live)
        if not suspended:
            await _unlink(live.rooms.paths.suspended_state(live.id))  # a stale one would be taken for this start's
        await live.move(operation)
        try:
            await _launch(live, incoming=suspended)
        except BaseException as exc:
            await _abort_start(live, suspended)
            if isinstance(exc, RametError) and suspended:
                exc.hint = exc.hint or "Its saved state is kept; 'ramet vm stop --hard' discards it."
            raise
    if suspended:
        await _set_clock(live)


async def _settle_machine_type(live: LiveMachine) -> None:
    """The first start fixes the versioned machine type: a QEMU upgrade must not change hardware under a guest."""
    machine = live.vm.machine
    if machine.machine_type is None:
        await live.change(machine=machine.changed(machine_type=live.rooms.qemu.default_machine_type))


async def _launch(live: LiveMachine, *, incoming: bool) -> None:
    await _lift_guards(live)
    with await wire(live, attach=True, forked=False, incoming=incoming) as plan:
        reach("start.wired")
        process = await QemuProcess.launch(plan, live.rooms.user)
    try:
        await asyncio.to_thread(live.confine, process)
        reach("start.launched")
        await live.attach(process)
        reach("start.attached")
        if incoming:
            await _load_suspended(live)
        await restore_links(live, all_=incoming)
        # Recorded first: a guest that has executed must never be taken for one that can be resumed again from disk.
        await live.mark_running(process, launched=True)
        if incoming:
            await _unlink(live.rooms.paths.suspended_state(live.id))
        reach("start.recorded")
        await live.qmp.cont()
        reach("start.running")
    except BaseException as exc:
        reason = await _own_end(process) if isinstance(exc, PeerError) else None
        await end_process(live, process)
        if reason is not None:
            raise QemuError(f"QEMU did not start {live.name!r}: {reason.rstrip('.')}.") from exc
        raise


async def _own_end(process: QemuProcess) -> str | None:
    """Why it ended, if it did so by itself: its monitor is gone a moment before it is."""
    with contextlib.suppress(DeadlineError):
        await process.wait_exit(_OWN_END_S)
        return process.exit_reason()
    return None


async def _lift_guards(live: LiveMachine) -> None:
    """A clone that boots says nothing of its source's any more: its identity is on its disk. Its taps have the names of
    before, and what guarded them would still stand."""
    taps = [tap_name(live.id, nic.index) for nic in live.vm.machine.nics if not nic.is_user_mode]
    if live.vm.lineage is not None and taps and live.rooms.networks.privileged:
        await live.rooms.networks.set_port_guards(dict.fromkeys(taps, Guard()))


async def restore_links(live: LiveMachine, *, all_: bool) -> None:
    """A NIC that is disconnected has its link down from the first instant, and all have while an identity is due.

    `all_`: say of the others that they are up, too. A state that was saved with a link down brings it back like that,
    whatever the record has become since.
    """
    for nic in live.vm.machine.nics:
        up = nic.connected and not live.vm.identity.holds_links_down
        if all_ or not up:
            await live.qmp.set_link(nic.id, up=up)


async def _abort_start(live: LiveMachine, suspended: bool) -> None:
    live.taps.clear()
    await asyncio.to_thread(shutil.rmtree, live.run_dir.path, ignore_errors=True)
    await asyncio.to_thread(live.unconfine)
    if live.vm.state is VmState.STARTING:
        await live.move(Happening.START_FAILED, process=None)
    if suspended and live.vm.state is VmState.OFF and live.rooms.paths.suspended_state(live.id).exists():
        await live.change(fact=True, state=VmState.SUSPENDED)


async def end_process(live: LiveMachine, process: QemuProcess) -> None:
    """Kill and reap; waits until the record has followed."""
    process.kill()
    with contextlib.suppress(DeadlineError):
        await process.wait_exit(KILL_TIMEOUT_S)
    if not await live.wait_ended(KILL_TIMEOUT_S):
        await live.detach()
    process.close()  # one that was never attached is nobody else's


async def stop(live: LiveMachine, *, hard: bool, timeout_s: float) -> None:
    """Power off. Clean: through the guest agent, else ACPI, bounded; hard: at once, from any state that is on.

    After a clean stop that ran out of time the guest runs on, and DeadlineError says how to insist.
    """
    operation = Operation.KILL if hard else Operation.STOP
    next_state(live.vm.state, operation, name=live.name)
    if live.vm.state is VmState.SUSPENDED:
        await _unlink(live.rooms.paths.suspended_state(live.id))
        await live.move(operation)
        return
    if hard:
        await power_off(live)
        return
    await live.move(operation)
    try:
        reach("stop.recorded")
        ended = await _shut_down(live, timeout_s)
    finally:  # also when it failed, or was cancelled: the guest runs on
        if live.vm.state is VmState.STOPPING and live.process is not None:
            await live.change(fact=True, state=VmState.RUNNING)
    if not ended and live.vm.state is VmState.PAUSED:
        raise StateError(
            f"{live.name!r} could not shut down: it was paused ({live.vm.pause_reason}).",
            hint=f"Mend that and 'ramet vm resume {live.name}', or cut its power with --hard.",
            state=live.vm.state.value,
            operation="stop",
        )
    if not ended:
        raise DeadlineError(
            f"{live.name!r} did not shut down within {timeout_s:.0f} s; it runs on.",
            hint="Wait longer with --timeout, or cut its power with --hard.",
        )


async def _shut_down(live: LiveMachine, timeout_s: float) -> bool:
    """Ask by the agent first (it needs no desktop's consent), then press the button. True when the VM is off."""
    began = time.monotonic()
    with contextlib.suppress(RametError, TimeoutError, OSError):
        if await live.qmp.is_listening("agent"):
            await live.shutdown_by_agent(timeout_s=min(5.0, timeout_s / 2))
            if await live.wait_ended(timeout_s / 2):
                return True
    with contextlib.suppress(RametError):
        await live.qmp.system_powerdown()
    return await live.wait_ended(max(0.1, timeout_s - (time.monotonic() - began)))


async def power_off(live: LiveMachine) -> None:
    """Cut the power: SIGTERM lets QEMU flush and close its images; SIGKILL follows."""
    process = live.require_process()
    process.terminate()
    reach("stop.signalled")
    if not await live.wait_ended(KILL_TIMEOUT_S):
        await end_process(live, process)


async def restart(live: LiveMachine, *, hard: bool, timeout_s: float) -> None:
    """Power cycle: the VM comes back with its current configuration. A frozen VM loses its frozen state."""
    next_state(live.vm.state, Operation.RESTART, name=live.name)
    if hard or live.vm.state is not VmState.RUNNING:
        await power_off(live)
    else:
        await stop(live, hard=False, timeout_s=timeout_s)
    await start(live)


async def suspend(live: LiveMachine) -> None:
    """Write the whole state to disk and end the process. A failure leaves the VM running."""
    next_state(live.vm.state, Operation.SUSPEND, name=live.name)
    path = live.rooms.paths.suspended_state(live.id)
    async with live.rooms.book.operation("suspend", live.id, {"state_file": str(path)}):
        reach("suspend.journalled")
        try:
            if live.rpc is not None:  # read from now on, it would change the memory of a guest that stands still
                await live.rpc.quiesce()
            await live.qmp.stop()
            reach("suspend.stopped")
            await _save_with_memory(live, path)
            reach("suspend.written")
            await live.move(Operation.SUSPEND)
        except BaseException:
            try:
                await _unlink(path)
                # Waits for the end of a migration that is still under way: `cont` in the middle of it would be undone.
                await release(str(live.run_dir.stun), timeout_s=_memory_timeout_s(live))
            finally:
                live.let_guest_go()
            raise
        try:
            reach("suspend.recorded")
        finally:
            await power_off(live)


async def _save_with_memory(live: LiveMachine, path: Path) -> None:
    """The guest stands still, so this is right under emulation too, where a *live* migration of QEMU 7.2 is not."""
    temporary = path.with_suffix(".tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        await live.qmp.migrate_to_fd(fd, with_ram=True, timeout_s=_memory_timeout_s(live))
        await asyncio.to_thread(os.fsync, fd)
        temporary.rename(path)
        await asyncio.to_thread(_sync_directory, path.parent)
    finally:
        os.close(fd)
        await _unlink(temporary)


def _sync_directory(path: Path) -> None:
    """A renamed file's name must be on disk before the process whose memory it holds is ended."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _load_suspended(live: LiveMachine) -> None:
    fd = os.open(live.rooms.paths.suspended_state(live.id), os.O_RDONLY)
    try:
        await live.qmp.configure_migration(ignore_ram=False)
        await live.qmp.incoming(fd, timeout_s=_memory_timeout_s(live))
        await live.qmp.configure_migration()
    finally:
        os.close(fd)


async def _set_clock(live: LiveMachine) -> None:
    """The guest's clock stood still with it. Where an agent listens it is set; a guest without keeps its own time."""
    with contextlib.suppress(RametError, OSError, TimeoutError):
        if await live.qmp.is_listening("agent"):
            async with asyncio.timeout(CLOCK_TIMEOUT_S):
                await live.agent.set_time(time.time())


def _memory_timeout_s(live: LiveMachine) -> float:
    """For moving the whole memory to or from disk, at 20 MiB/s on a bad day."""
    return max(live.rooms.limits.load_s, live.vm.machine.memory_mib / 20)


async def resume_paused(live: LiveMachine) -> None:
    """Resume a guest that QEMU held (a disk that was full); it is told again when the reason persists."""
    next_state(live.vm.state, Operation.RESUME, name=live.name)
    await live.qmp.cont()
    # QEMU's events may have been first, and it may have been held again: what they said last must stand.
    is_running = (await live.qmp.status()).status == "running"
    if is_running and live.vm.state is VmState.PAUSED:
        await live.move(Operation.RESUME, pause_reason=None)


async def _unlink(path: Path) -> None:
    await asyncio.to_thread(path.unlink, True)
