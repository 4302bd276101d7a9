"""A holder: a child forked in the stun that runs no guest, keeps a moment's memory, and only serves forks.

So any number of clones of a running VM cost it one stun. It is a zygote (``native/zygote.c``): QEMU over the forked
memory, linked, that waits before its main, so that none of its forks has to do that again. With the setting `zygotes`
off it is the tiny program of ``native/holder.c``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from ramet.errors import ForkError, RametError
from ramet.hypervisor.descriptors import DescriptorTable, SocketKind
from ramet.hypervisor.fork import ZYGOTE, ForkClient, ForkReply, ForkRequest, environment
from ramet.hypervisor.plan import QEMU_ENVIRONMENT
from ramet.hypervisor.process import QemuProcess
from ramet.hypervisor.rundir import RunDir
from ramet.hypervisor.stray import end_behind
from ramet.hypervisor.stun_client import end_children
from ramet.machine.live import LiveMachine
from ramet.machine.rooms import Rooms
from ramet.memory.holdings import Holding
from ramet.model.cancellation import to_its_end
from ramet.model.machine import Vm
from ramet.model.memory import MemoryKind
from ramet.model.units import MIB

OOM_SCORE_HOLDER = 100
"""When memory is short its clones go first (300), then the source (200): what it holds is theirs."""


@dataclass
class HolderPlan:
    """A holder that is ready to be forked; `request` names descriptors that `planned_holder` closes."""

    run_dir: RunDir
    request: ForkRequest


@contextlib.asynccontextmanager
async def planned_holder(source: LiveMachine, moment_id: str) -> AsyncIterator[HolderPlan]:
    """Socket, memory file and arguments. The socket's directory goes with the context."""
    run_dir = RunDir(source.rooms.paths.vm_run(f"m-{moment_id}"))
    zygote = await has_zygotes(source)
    try:
        with holder_request(source, run_dir, f"ramet-hold-{moment_id[:4]}", zygote=zygote) as request:
            yield HolderPlan(run_dir, request)
    finally:
        await asyncio.to_thread(clear_holder, source.rooms, run_dir)


def clear_holder(rooms: Rooms, run_dir: RunDir) -> None:
    """Remove a holder's directory. Blocks. It has ended, but where the source died before it could tell of its fork."""
    end_behind(run_dir, rooms.native)
    shutil.rmtree(run_dir.path, ignore_errors=True)


@contextlib.contextmanager
def holder_request(source: LiveMachine, run_dir: RunDir, name: str, *, zygote: bool) -> Iterator[ForkRequest]:
    """What to fork a holder with, that will serve in `run_dir`. Its descriptors close with the context: as soon as the
    holder has its own, for ours would keep callers waiting on one that has died."""
    rooms = source.rooms
    run_dir.create()
    with DescriptorTable(forked=True) as table:
        null = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]
        try:
            ram = table.ram_file(source.vm.machine.memory_mib * MIB)
            control = table.listen(run_dir.fork, SocketKind.SEQPACKET)
            env = environment(rooms.native, ram_fd=ram, control_fd=control, owner_uid=os.geteuid())
            if zygote:
                program, env = rooms.qemu.binary, env | QEMU_ENVIRONMENT | {ZYGOTE: "1"}
            else:
                program = rooms.native.holder
            yield ForkRequest((str(program),), env, (*null, *table.fds), name)
        finally:
            for fd in null:
                os.close(fd)


@contextlib.asynccontextmanager
async def held(
    source: Vm, rooms: Rooms, reply: ForkReply, kind: MemoryKind = MemoryKind.HOLDER
) -> AsyncIterator[QemuProcess]:
    """Ends the holder when its moment is let go. `kind`: what the ledger of memory calls it."""
    process = QemuProcess.from_fork(reply.pid, reply.pidfd)
    process.set_oom_score(OOM_SCORE_HOLDER)
    try:
        with rooms.holdings.keep(_holding(source, process, kind)):
            yield process
    finally:
        process.kill()
        await process.wait_exit(10.0)
        process.close()


def _holding(source: Vm, process: QemuProcess, kind: MemoryKind) -> Holding:
    return Holding(
        id=f"{kind.value}-{process.pid}",
        name=f"{kind.value} of {source.name}",
        kind=kind,
        lineage_id=source.lineage_id or source.id,
        pid=process.pid,
        start_ticks=process.start_ticks,
        ram_bytes=source.machine.memory_mib * MIB,
    )


async def has_zygotes(live: LiveMachine) -> bool:
    """Whether a fork of the VM can be a zygote: the setting is on, and the library in its QEMU knows of them."""

    def ask() -> bool:
        with ForkClient.connect(live.run_dir.fork, timeout_s=live.rooms.limits.fork_s) as client:
            return client.query().zygotes

    with contextlib.suppress(RametError, OSError):
        return live.rooms.limits.zygotes and await asyncio.to_thread(ask)
    return False


async def fork_from(rooms: Rooms, run_dir: RunDir, request: ForkRequest) -> ForkReply:
    """One fork from whoever serves at `run_dir`: a frozen VM's QEMU, or a holder. In a thread: the socket blocks."""

    def fork() -> ForkReply:
        try:
            with ForkClient.connect(run_dir.fork, timeout_s=rooms.limits.fork_s) as client:
                return client.fork(request)
        except OSError as exc:
            raise ForkError(f"The memory's holder does not answer: {exc.strerror or exc}.") from exc

    reply, cancelled = await to_its_end(asyncio.to_thread(fork))
    if cancelled:  # the child is there, and nobody waits for it
        await end_children([reply])
        raise asyncio.CancelledError
    return reply
