"""A clone that is made ahead: loaded and paused, its memory shared with its frozen source, until somebody takes it.

    grow    prepare, fork, hatch: all of a frozen clone but its first instruction      (in the background)
    take    one write that makes the record the clone that is asked for, then `cont`   (while somebody waits)
    drop    end it, and leave nothing

What QEMU is born with cannot wait for the asker: MAC addresses, BIOS UUID, VM generation id, disks. `serves` says
whether a request leaves these open; everything else of a clone is the asker's, and set when it is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from typing import Any
from uuid import uuid4

from ramet.clone.moments import overlay_id
from ramet.clone.seedling import Seedling, hatch, new_record, prepare
from ramet.clone.zygote import fork_frozen
from ramet.errors import DamagedError, UnsupportedError
from ramet.hypervisor.process import QemuProcess
from ramet.machine.lifecycle import Happening
from ramet.machine.live import LiveMachine
from ramet.machine.power import end_process
from ramet.machine.steps import reach
from ramet.machine.wiring import attach_nic
from ramet.model.identity import Identity
from ramet.model.machine import Machine, Moment, Vm, VmState
from ramet.model.requests import CloneVm
from ramet.model.units import new_mac

_KEPT = frozenset({"id", "state", "process", "generation", "machine", "identity", "pool_of"})
"""Fields of a member's record that the asker's do not simply replace."""


def serves(request: CloneVm) -> bool:
    """Whether a clone that was made ahead can be what is asked for: nothing asked that is fixed at birth."""
    return request.pool and request.uuid is None and not any(change.mac for change in request.nics)


# -- grow --------------------------------------------------------------------------------------------------------------


async def grow(source: LiveMachine, moment: Moment) -> LiveMachine:
    """A ready clone of a frozen VM, with a durable record. After a failure, or a crash, nothing of it is left.

    The caller holds the source's lock (a shared 'clone').
    """
    member_id = source.rooms.book.new_vm_id()
    layers = [overlay_id(member_id, disk) for disk in source.vm.machine.disks]
    async with source.rooms.book.operation("pool", source.id, {"clones": [member_id], "layers": layers}):
        reach("pool.journalled")
        check_binary(source)
        device_state = await asyncio.to_thread(_device_state, source, moment)
        seedling = await prepare(source, member_record(source.vm, moment, member_id), moment.layers)
        try:
            reach("pool.prepared")
            seedling.forked(await fork_frozen(source, seedling.asked))
            reach("pool.forked")
            await hatch(seedling, device_state, bytes.fromhex(moment.pending_rpc_hex))
            await _make_ready(seedling)
        except BaseException:
            await seedling.discard()
            raise
    return seedling.live


def member_record(source: Vm, moment: Moment, member_id: str) -> Vm:
    """Hardware of its own, as a clone's; the rest is settled when it is taken."""
    record = new_record(source, _member_machine(source.machine, member_id), moment.id, "frozen", member_id)
    return record.changed(pool_of=source.id)


def _member_machine(source: Machine, member_id: str) -> Machine:
    return source.changed(
        name=f"pool-{member_id}",
        uuid=str(uuid4()),
        nics=tuple(nic.changed(mac=new_mac(), connected=False) for nic in source.nics),
        autostart=False,
    )


def check_binary(source: LiveMachine) -> None:
    """A fork runs the QEMU on disk, which must be the one that wrote the device state. Raises UnsupportedError."""
    process = source.vm.process
    if process is not None and process.qemu_build != source.rooms.qemu.build_id:
        raise UnsupportedError(
            f"QEMU was upgraded on disk since {source.name!r} started (it runs {process.qemu_version}).",
            hint="Restart the VM: its clones must run the same QEMU.",
        )


def _device_state(source: LiveMachine, moment: Moment) -> bytes:
    try:
        return source.rooms.paths.moment_state(moment.id).read_bytes()
    except FileNotFoundError:
        raise DamagedError(
            f"The device state of {source.name!r}'s moment is gone.", hint="Thaw the VM and freeze it again."
        ) from None


async def _make_ready(seedling: Seedling) -> None:
    """All that can be done before anyone asks: links down, limits; then it is durable, and found after a restart."""
    live = seedling.live
    process = live.require_process()
    for nic in live.vm.machine.nics:
        await live.qmp.set_link(nic.id, up=False)
    await asyncio.to_thread(live.confine, process)
    reach("pool.loaded")
    await live.move(Happening.LOADED, process=live.process_record(process, launched=False))
    reach("pool.recorded")


# -- take --------------------------------------------------------------------------------------------------------------


async def take(member: LiveMachine, want: Vm) -> float:
    """Make a ready clone the one that is asked for, and let it go. Returns when it ran (monotonic clock, seconds).

    `want` is the record that an ordinary clone would have got: its id, MAC addresses, UUID and disks are ignored, for
    the member has its own. Its name is taken with the same write that makes it a user's VM: ConflictError leaves the
    member as it was. After any other failure the member is fit for nothing but `drop`.
    """
    await member.change(**taken_fields(member.vm, want))
    reach("pool.taken")
    return await let_go(member)


def taken_fields(member: Vm, want: Vm) -> dict[str, Any]:
    """What changes in a member's record when it becomes the clone `want`."""
    fields = {name: getattr(want, name) for name in Vm.model_fields if name not in _KEPT}
    machine = _taken_machine(member.machine, want.machine)
    return {**fields, "machine": machine, "identity": _taken_identity(want.identity, member, machine), "pool_of": None}


def _taken_machine(member: Machine, want: Machine) -> Machine:
    macs = {nic.id: nic.mac for nic in member.nics}
    return want.changed(
        uuid=member.uuid,
        disks=member.disks,
        cdroms=member.cdroms,
        machine_type=member.machine_type,
        nics=tuple(nic.changed(mac=macs[nic.id]) for nic in want.nics),
    )


def _taken_identity(want: Identity, member: Vm, machine: Machine) -> Identity:
    """The plan with what the member's hardware already shows: its generation and its MAC addresses."""
    if want.plan is None:
        return want
    macs = {nic.id: nic.mac for nic in machine.nics}
    nics = tuple(nic.changed(mac=macs.get(nic.id, nic.mac)) for nic in want.plan.nics)
    return want.changed(plan=want.plan.changed(generation=member.generation, nics=nics))


def same_hardware(member: Vm, want: Vm) -> bool:
    """Whether the member has the NICs and disks that are asked for."""
    return _shape(member.machine) == _shape(want.machine)


def _shape(machine: Machine) -> tuple[object, ...]:
    nics = tuple((nic.id, nic.model, nic.is_user_mode) for nic in machine.nics)
    return nics, tuple(disk.id for disk in machine.disks), machine.memory_mib, machine.vcpus


async def let_go(live: LiveMachine) -> float:
    """The first instruction of a clone that was ready. Links are down already; those that may be up come up first."""
    process = live.require_process()
    for nic in live.vm.machine.nics:
        if nic.connected and not live.vm.identity.holds_links_down:
            await live.qmp.set_link(nic.id, up=True)
            if nic.id in live.taps:
                await attach_nic(live, nic, live.taps[nic.id])
    if live.rpc is not None:
        live.rpc.resume()
    await live.qmp.cont()
    running_at = time.monotonic()
    reach("pool.running")
    await live.move(Happening.STARTED, started_at=time.time())
    live.mark_expendable(process)
    with contextlib.suppress(UnsupportedError):  # a host without control groups: told when the VM was made ready
        if live.vm.machine.cpu_limit_percent is not None:
            live.limit_cpu()
    return running_at


# -- drop --------------------------------------------------------------------------------------------------------------


async def drop(member: LiveMachine) -> None:
    """End a member, ready or not, and remove everything of it. Finished by the next start if it is cut off."""
    rooms = member.rooms
    async with rooms.book.operation("remove", member.id, {"clones": [member.id]}):
        reach("pool.dropping")
        await _end(member)
        await member.detach()
        await asyncio.to_thread(member.unconfine)
        await rooms.book.forget(member.id)
        try:
            reach("pool.forgotten")
        finally:  # nobody would look for them any more
            for disk in member.vm.machine.disks:
                rooms.layers.remove(disk.layer)
            for directory in (rooms.paths.vm(member.id), rooms.paths.vm_run(member.id)):
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _end(member: LiveMachine) -> None:
    if member.process is not None:
        await end_process(member, member.process)
    elif member.vm.process is not None:  # it did not answer after a restart
        stray = QemuProcess.adopt(member.vm.process)
        if stray is not None:
            await end_process(member, stray)
            stray.close()


def is_ready(live: LiveMachine) -> bool:
    """Loaded, in a pool, and in touch with the daemon."""
    return live.vm.is_pooled and live.vm.state is VmState.READY and live.process is not None
