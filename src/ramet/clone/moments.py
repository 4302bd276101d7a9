"""Taking a moment of a running VM: the stun, and nothing in it that could be done before or after.

A moment is a process that holds the RAM, a device state of some hundred KiB, and one immutable layer for each disk.
Taking one gives the source a new overlay for every disk it has written to since the last moment; an overlay without
writes is used again, so that a hundred clones of an idle source do not deepen its chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.errors import RametError
from ramet.hypervisor.blocknodes import format_node
from ramet.hypervisor.fork import ForkRequest
from ramet.hypervisor.stun_client import end_children, release
from ramet.hypervisor.stun_plan import PristineCheck, SnapshotStep, StunPlan, StunResult
from ramet.machine import blocks
from ramet.machine.lifecycle import Happening
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.machine import Disk, Stun

_FLUSH_ROUNDS: Final = 4
_SHORT_FLUSH_S: Final = 0.01
"""What a stun can afford. A disk that was busy writes back in hundreds of milliseconds, then in a few."""


@dataclass(frozen=True)
class DiskTurn:
    """What a moment does to one disk of its source."""

    disk: Disk
    frozen_layer: str
    """Immutable from the moment on: what clones are built on."""
    overlay: str | None
    """The source's new top; None when its old top was without writes, and stays."""


@dataclass(frozen=True)
class Taken:
    """A moment that was taken: everything a VM can be made from, but the process that holds its memory."""

    device_state: bytes
    pending_rpc: bytes
    stun: Stun
    result: StunResult
    turns: tuple[DiskTurn, ...]

    @property
    def layers(self) -> dict[str, str]:
        return {turn.disk.id: turn.frozen_layer for turn in self.turns}


class StaleVerdict(Exception):  # noqa: N818 - not an error: a reason to plan again
    """A disk counted on as unwritten was written before the stop: plan again, with an overlay for it."""


def overlay_id(owner_id: str, disk: Disk) -> str:
    """The layer a disk gets in an operation: known before anything is made, so that the journal names it first."""
    return blocks.layer_name(owner_id, disk.id)


def plan_turns(live: LiveMachine, moment_id: str, *, trust_pristine: bool) -> tuple[DiskTurn, ...]:
    """Decide for each disk, and make the overlays the source will write to. On failure none is left."""
    turns: list[DiskTurn] = []
    try:
        for disk in live.vm.machine.disks:
            turns.append(_turn(live, disk, moment_id, trust_pristine))
    except BaseException:
        drop_overlays(live, turns)
        raise
    return tuple(turns)


def _turn(live: LiveMachine, disk: Disk, moment_id: str, trust_pristine: bool) -> DiskTurn:
    layers = live.rooms.layers
    parent = layers.layer(disk.layer).parent
    if trust_pristine and parent is not None and layers.is_pristine(disk.layer):
        return DiskTurn(disk, parent, None)
    overlay = layers.create_overlay(disk.layer, disk.size_bytes, layer_id=overlay_id(moment_id, disk))
    return DiskTurn(disk, disk.layer, overlay.id)


def overlays_of(turns: Sequence[DiskTurn]) -> dict[str, str]:
    """Disk id -> the overlay it gets."""
    return {turn.disk.id: turn.overlay for turn in turns if turn.overlay is not None}


def drop_overlays(live: LiveMachine, turns: Sequence[DiskTurn]) -> None:
    """Remove overlays that QEMU was not told of."""
    for layer_id in overlays_of(turns).values():
        live.rooms.layers.remove(layer_id)


async def take(live: LiveMachine, turns: tuple[DiskTurn, ...], requests: Sequence[ForkRequest], *, hold: bool) -> Taken:
    """Stun the source, and record what its disks became. With `hold` it stays stopped.

    Whatever fails, the source is as it was: running, on disks that are whole. Raises StaleVerdict, or the stun's error.
    """
    resident = live.resident_bytes()
    untouched = True
    try:
        await _flush(live, turns)
        await blocks.add_overlays(live, overlays_of(turns))
        with _memory_file(f"moment-{live.id}") as state_fd:
            async with _quiet(live, hold=hold) as drain:
                untouched = False
                return await _stun_and_record(live, turns, requests, state_fd, drain, resident, hold)
    except BaseException:
        if untouched:
            await asyncio.shield(blocks.drop_overlays(live, list(overlays_of(turns).values())))
        raise


async def _stun_and_record(
    live: LiveMachine,
    turns: tuple[DiskTurn, ...],
    requests: Sequence[ForkRequest],
    state_fd: int,
    drain: Callable[[], None],
    resident: int,
    hold: bool,
) -> Taken:
    pending: list[bytes] = []

    def on_stopped() -> None:
        """QEMU writes nothing more: what the guest had asked until now is the moment's, what it asks later is not."""
        drain()
        pending.append(live.rpc.pending() if live.rpc is not None else b"")
        reach("freeze.stopped" if hold else "clone.stopped")

    result = await _stun(live, turns, _plan(live, turns, requests, state_fd, hold), on_stopped)
    try:
        return await _record(live, turns, result, state_fd, pending[-1], resident)
    except BaseException:
        # QEMU writes to the overlays already: a record that said otherwise would have them deleted as nobody's.
        await asyncio.shield(blocks.set_tops(live, overlays_of(turns)))
        await asyncio.shield(_take_back(live, result))
        raise


@contextlib.contextmanager
def _memory_file(name: str) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


async def _stun(
    live: LiveMachine, turns: tuple[DiskTurn, ...], plan: StunPlan, on_stopped: Callable[[], None]
) -> StunResult:
    try:
        return await live.rooms.stun.stun(plan, on_stopped)
    except RametError as exc:
        await _after_failed_stun(live, turns, exc)
        raise
    except asyncio.CancelledError:
        # The stun was undone, but disks that moved on to their overlays stay there: QEMU knows.
        await asyncio.shield(blocks.follow_disks(live))
        raise


async def _record(
    live: LiveMachine,
    turns: tuple[DiskTurn, ...],
    result: StunResult,
    state_fd: int,
    pending: bytes,
    resident: int,
) -> Taken:
    """What the stun did, made durable, and read what it left."""
    if not result.held:
        reach("clone.taken")
    stun = Stun(at=time.time(), resident_bytes=resident, **result.timings_ms())
    await blocks.set_tops(
        live,
        overlays_of(turns),
        stuns=(*live.vm.stuns, stun)[-live.rooms.limits.recent_stuns :],
        cloned_once=True,
    )
    return Taken(await asyncio.to_thread(_read_all, state_fd), pending, stun, result, turns)


async def _take_back(live: LiveMachine, result: StunResult) -> None:
    """Nobody will make anything of this moment: end its children, and let a source that is held run on."""
    await end_children(result.forks)
    if result.held:
        await release(str(live.run_dir.stun), timeout_s=live.rooms.limits.qmp_s)


def _plan(
    live: LiveMachine, turns: tuple[DiskTurn, ...], requests: Sequence[ForkRequest], state_fd: int, hold: bool
) -> StunPlan:
    layers = live.rooms.layers
    return StunPlan(
        qmp_path=str(live.run_dir.stun),
        fork_path=str(live.run_dir.fork),
        state_fd=state_fd,
        snapshots=tuple(
            SnapshotStep(format_node(t.disk.layer), format_node(t.overlay)) for t in turns if t.overlay is not None
        ),
        pristine=tuple(PristineCheck(str(layers.path(t.disk.layer))) for t in turns if t.overlay is None),
        forks=tuple(requests),
        hold=hold,
        bound_ms=live.rooms.limits.stun_bound_ms,
    )


async def _flush(live: LiveMachine, turns: tuple[DiskTurn, ...]) -> None:
    """Write dirty data back now: `stop` flushes every disk, and with a dirty one that would be seconds of stun.

    Again where it took long, for the guest went on writing: what is left for the stun is what the last round left.
    """
    paths = [live.rooms.layers.path(turn.disk.layer) for turn in turns]

    def flush() -> None:
        for _ in range(_FLUSH_ROUNDS):
            began = time.monotonic()
            for path in paths:
                _write_back(path)
            if time.monotonic() - began <= _SHORT_FLUSH_S:
                return

    await asyncio.to_thread(flush)


def _write_back(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def _quiet(live: LiveMachine, *, hold: bool) -> AsyncIterator[Callable[[], None]]:
    """No agent command under way and no reply half sent at the stun; yields what drains guest RPC after the stop.

    With `hold`, and without an error, that lasts until the guest is let go.
    """
    async with contextlib.AsyncExitStack() as stack:
        if live.has_agent:
            await stack.enter_async_context(live.agent.quiet())
        rpc = live.rpc  # the VM's is gone when its QEMU ends meanwhile
        try:
            if rpc is not None:
                await rpc.quiesce()
            yield rpc.drain if rpc is not None else lambda: None
        except BaseException:
            live.let_guest_go()
            raise
        if hold:
            live.hold_guest()
        else:
            live.let_guest_go()


async def _after_failed_stun(live: LiveMachine, turns: tuple[DiskTurn, ...], error: RametError) -> None:
    """The source runs again. Either all of its disks moved on to their overlays, or none did."""
    if error.fields.get("restored") is False:
        await live.move(Happening.GUEST_STOPPED, pause_reason="it could not be resumed after a stun")
    if error.fields.get("disks_known") is False:
        await blocks.follow_disks(live)  # only QEMU knows whether they moved on; what is unused is collected later
        return
    if error.fields.get("snapshotted"):
        await blocks.set_tops(live, overlays_of(turns))
        return
    await blocks.drop_overlays(live, list(overlays_of(turns).values()))
    if error.fields.get("step") == "pristine":
        raise StaleVerdict from error


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0)
