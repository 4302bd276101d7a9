"""A VM on its way from a moment to a machine: prepared while the source runs, forked in the stun, then become.

    prepare  record, overlays, taps, log files, sockets, arguments        (source still running)
    forked   a fresh QEMU exists over the forked memory                   (the stun, or a holder, did it)
    hatch    device state with the clone's own MACs: loaded, and still     (source running again)
    release  links, cont: its first instruction; `become` is both

Resource handling: a seedling owns what it opened until `become` hands it to its LiveMachine; `discard` undoes all of
it, in every phase.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from ramet.clone.moments import overlay_id
from ramet.errors import DeadlineError, ForkError, QemuError
from ramet.hypervisor.devicestate import replace_macs
from ramet.hypervisor.fork import ForkReply, ForkRequest
from ramet.hypervisor.process import QemuProcess
from ramet.hypervisor.stray import end_behind
from ramet.machine.live import LiveMachine
from ramet.machine.paths import StatePaths
from ramet.machine.power import end_process
from ramet.machine.steps import reach
from ramet.machine.wiring import attach_nic, wire
from ramet.model.cancellation import uncut
from ramet.model.machine import Lineage, Machine, Vm, VmState
from ramet.model.views import CloneTimings


@dataclass
class Seedling:
    """One clone in the making."""

    live: LiveMachine
    source_macs: dict[str, str]
    request: ForkRequest | None = None
    process: QemuProcess | None = None
    timings: CloneTimings = field(default_factory=CloneTimings)
    forked_at: float = 0.0
    running_at: float = 0.0
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def layer_ids(self) -> tuple[str, ...]:
        return tuple(disk.layer for disk in self.live.vm.machine.disks)

    @property
    def asked(self) -> ForkRequest:
        """What the process that holds the memory is asked for."""
        assert self.request is not None
        return self.request

    def forked(self, reply: ForkReply) -> None:
        """The fork is done: its process is ours to end from here on. Takes over the reply's pidfd."""
        self.forked_at = time.monotonic()
        log_dir = self.live.rooms.paths.vm(self.live.id)
        try:
            self.process = QemuProcess.from_fork(reply.pid, reply.pidfd, log_dir=log_dir)
        except ProcessLookupError as exc:
            raise ForkError(f"The QEMU of {self.live.name!r} ended at once.", hint=f"See {log_dir}/qemu.log.") from exc

    def close_handed_over(self) -> None:
        """QEMU has its own copies of every descriptor: close ours, so that no lock and no tap outlives it."""
        self.stack.close()

    async def discard(self) -> None:
        """Undo everything, whatever phase it was in."""
        self.stack.close()
        if self.process is not None:
            await end_process(self.live, self.process)
            self.process.close()
        elif self.request is not None:  # whoever forked it may have died before it could say so
            await asyncio.to_thread(end_behind, self.live.run_dir, self.live.rooms.native)
        await self.live.detach()
        self.live.unconfine()
        await self.live.rooms.book.forget(self.live.id)
        if self.live.rooms.networks.privileged:
            for nic in self.live.vm.machine.nics:
                await self.live.rooms.networks.release_nic(self.live.id, nic)
        for layer_id in self.layer_ids:
            self.live.rooms.layers.remove(layer_id)
        paths = self.live.rooms.paths
        for directory in (paths.vm(self.live.id), paths.vm_run(self.live.id)):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def new_record(source: Vm, machine: Machine, moment_id: str, workflow: str, vm_id: str) -> Vm:
    """The clone's record: distinct from its first line, and with no reference to its source but for people."""
    now = time.time()
    return Vm.model_validate(
        {
            "id": vm_id,
            "machine": machine,
            "state": VmState.STARTING,
            "lineage": Lineage.model_validate(
                {
                    "source_id": source.id,
                    "source_name": source.machine.name,
                    "moment_id": moment_id,
                    "workflow": workflow,
                    "at": now,
                }
            ),
            "lineage_id": source.lineage_id or source.id,
            "created_at": now,
        }
    )


async def prepare(source: LiveMachine, record: Vm, parents: dict[str, str]) -> Seedling:
    """Overlays on `parents` (disk id -> immutable layer), taps, sockets, arguments. A failure leaves nothing."""
    rooms = source.rooms
    source_macs = {nic.id: nic.mac for nic in source.vm.machine.nics}
    overlays: list[str] = []
    try:
        disks = []
        for disk in record.machine.disks:
            layer = rooms.layers.create_overlay(parents[disk.id], disk.size_bytes, layer_id=overlay_id(record.id, disk))
            overlays.append(layer.id)
            disks.append(disk.changed(layer=layer.id))
        cdroms = await asyncio.to_thread(own_cdroms, rooms.paths, record)
        record = record.changed(machine=record.machine.changed(disks=tuple(disks), cdroms=cdroms))
        seedling = Seedling(LiveMachine(rooms, record), source_macs)
        seedling.live.accelerator = source.require_accelerator()
    except BaseException:
        for layer_id in overlays:
            rooms.layers.remove(layer_id)
        await asyncio.to_thread(shutil.rmtree, rooms.paths.vm(record.id), ignore_errors=True)
        raise
    try:
        await _open(seedling)
    except BaseException:
        await seedling.discard()
        raise
    return seedling


def own_cdroms(paths: StatePaths, record: Vm) -> tuple[str, ...]:
    """A seed that lies among its source's files becomes the clone's own: the source may go at any time."""
    own = []
    for cdrom in map(Path, record.machine.cdroms):
        if cdrom.is_relative_to(paths.vm(record.id).parent):
            target = paths.vm(record.id) / cdrom.name
            target.parent.mkdir(mode=0o711, exist_ok=True)
            target.unlink(missing_ok=True)
            os.link(cdrom, target)
            cdrom = target
        own.append(str(cdrom))
    return tuple(own)


async def _open(seedling: Seedling) -> None:
    plan = await wire(seedling.live, attach=False, forked=True, incoming=True)
    seedling.stack.enter_context(plan)
    stdio = seedling.stack.enter_context(plan.stdio())
    seedling.request = ForkRequest(plan.argv, plan.env, (*stdio, *plan.table.fds), plan.name)


async def hatch(seedling: Seedling, device_state: bytes, pending_rpc: bytes) -> None:
    """From a fresh QEMU to a VM that is loaded and stands still, a `cont` away from running."""
    live, process = seedling.live, seedling.process
    assert process is not None
    seedling.close_handed_over()
    _, patched = await asyncio.gather(
        live.attach(process, pending_rpc=pending_rpc), asyncio.to_thread(_with_own_macs, seedling, device_state)
    )
    seedling.timings = seedling.timings.changed(qemu=_ms_since(seedling.forked_at))
    loading = time.monotonic()
    await _load(live, process, patched)
    seedling.timings = seedling.timings.changed(load=_ms_since(loading))
    reach("clone.loaded")


async def release(seedling: Seedling) -> None:
    """From a loaded VM to one that runs. On failure the caller discards the seedling."""
    await set_links(seedling)
    await run(seedling)
    await record(seedling)
    # Until here it was held by the limits of the group it was born in; moving takes tens of milliseconds on v1.
    await confine(seedling)


async def run(seedling: Seedling) -> None:
    """The first instruction of a VM that is loaded, with its links as they are to be."""
    began = time.monotonic()
    await seedling.live.qmp.cont()
    seedling.running_at = time.monotonic()
    seedling.timings = seedling.timings.changed(running=(seedling.running_at - began) * 1000)
    reach("clone.running")


async def record(seedling: Seedling) -> None:
    """It runs, and its record says so."""
    await seedling.live.mark_running(seedling.live.require_process(), launched=False)


async def confine(seedling: Seedling) -> None:
    """Into its own control group, with its limits; to its end, or a group would be made that nobody removes."""
    work = asyncio.to_thread(seedling.live.confine, seedling.live.require_process())
    await uncut(work)


def _with_own_macs(seedling: Seedling, device_state: bytes) -> bytes:
    """The moment's device state with this clone's MAC addresses in it."""
    renames = {seedling.source_macs[nic.id]: nic.mac for nic in seedling.live.vm.machine.nics}
    return replace_macs(device_state, renames) if renames else device_state


def _memory_file(name: str, content: bytes) -> int:
    """A readable descriptor of `content`, at its start; the caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


async def _load(live: LiveMachine, process: QemuProcess, device_state: bytes) -> None:
    fd = _memory_file(f"state-{live.id}", device_state)
    try:
        await live.qmp.incoming(fd, timeout_s=live.rooms.limits.load_s)
    except QemuError as exc:
        raise await _in_qemus_words(live, process, exc) from exc
    finally:
        os.close(fd)


async def _in_qemus_words(live: LiveMachine, process: QemuProcess, error: QemuError) -> QemuError:
    """A QEMU that refuses a state ends (before 9.1), and says why in its log, which goes with the clone."""
    with contextlib.suppress(DeadlineError):
        await process.wait_exit(2.0)
        return QemuError(
            f"The QEMU of {live.name!r} did not take over the moment: {process.exit_reason()}.",
            hint="If its source is frozen, thaw it and freeze it again; else try again.",
        )
    return error


async def set_links(seedling: Seedling) -> None:
    """Before the first instruction: a clone without an identity of its own says nothing on any network."""
    live = seedling.live
    for nic in live.vm.machine.nics:
        connected = nic.connected and not live.vm.identity.holds_links_down
        await live.qmp.set_link(nic.id, up=connected)
        if connected and nic.id in live.taps:
            await attach_nic(live, nic, live.taps[nic.id])


def _ms_since(start: float) -> float:
    return (time.monotonic() - start) * 1000
