"""The feature: clone a running VM, freeze one, clone a frozen one, thaw it. Each reads like its description.

    live clone    check, prepare, stun the source once, become: any number of clones, all from that instant
    freeze        the same stun, and the source stays at that instant; the moment is kept
    frozen clone  prepare, fork from the frozen source, become: no stun, any number of times
    thaw          the source goes on; its moment is let go

After any failure the source runs (or is still frozen), on disks that are whole, and what was begun is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence

from ramet.clone import moments
from ramet.clone.check import Order
from ramet.clone.holder import fork_from, held, planned_holder
from ramet.clone.moments import StaleVerdict, Taken
from ramet.clone.seedling import Seedling, become, new_record, prepare
from ramet.errors import DamagedError, RametError
from ramet.hypervisor.fork import ForkReply
from ramet.hypervisor.rundir import RunDir
from ramet.machine import blocks
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.machine import Moment
from ramet.model.units import new_id
from ramet.model.views import CloneTimings

Adopt = Callable[[LiveMachine], Awaitable[None]]
"""Called with a clone's LiveMachine when its record is about to be needed: the host takes it into the inventory."""


async def clone_running(live: LiveMachine, order: Order, adopt: Adopt) -> list[Seedling]:
    """Clone a VM that runs. It goes on after one stun, however many clones there are."""
    moment_id = new_id()
    async with live.rooms.book.operation("clone", live.id, _detail(live, order, moment_id)):
        reach("clone.journalled")
        try:
            return await _clone_running(live, order, moment_id, adopt, trust_pristine=True)
        except StaleVerdict:
            return await _clone_running(live, order, moment_id, adopt, trust_pristine=False)


async def _clone_running(
    live: LiveMachine, order: Order, moment_id: str, adopt: Adopt, *, trust_pristine: bool
) -> list[Seedling]:
    preparing = time.monotonic()
    turns = moments.plan_turns(live, moment_id, trust_pristine=trust_pristine)
    seedlings: list[Seedling] = []
    try:
        parents = {turn.disk.id: turn.frozen_layer for turn in turns}
        await _prepare_all(live, order, moment_id, parents, seedlings)
    except BaseException:
        moments.drop_overlays(live, turns)
        await _discard_all(seedlings)
        raise
    prepare_ms = _ms_since(preparing)
    reach("clone.prepared")
    try:
        if len(seedlings) == 1:
            taken = await moments.take(live, turns, [seedlings[0].asked], hold=False)
            await _become_from_stun(seedlings[0], taken, adopt)
        else:
            taken = await _take_with_holder(live, turns, moment_id, seedlings, adopt)
    except BaseException:
        await _discard_all(seedlings)
        raise
    for seedling in seedlings:
        _note_times(seedling, order, prepare_ms, taken.stun.total_ms)
    await blocks.seal(live)
    return seedlings


async def _become_from_stun(seedling: Seedling, taken: Taken, adopt: Adopt) -> None:
    await _become_forked(seedling, taken.result.forks[0], taken.device_state, taken.pending_rpc, adopt)


async def _become_forked(
    seedling: Seedling, reply: ForkReply, device_state: bytes, pending_rpc: bytes, adopt: Adopt
) -> None:
    seedling.forked(reply)
    reach("clone.forked")
    seedling.timings = seedling.timings.changed(fork=reply.fork_ms)
    await adopt(seedling.live)
    reach("clone.adopted")
    await become(seedling, device_state, pending_rpc)


async def _take_with_holder(
    live: LiveMachine,
    turns: tuple[moments.DiskTurn, ...],
    moment_id: str,
    seedlings: Sequence[Seedling],
    adopt: Adopt,
) -> Taken:
    """One fork in the stun; the clones are forked from the holder, while the source runs again."""
    async with planned_holder(live.rooms, moment_id, live.vm.machine.memory_mib) as plan:
        taken = await moments.take(live, turns, [plan.request], hold=False)
        async with held(live.rooms, taken.result.forks[0]):
            await _become_all(live, plan.run_dir, seedlings, taken.device_state, taken.pending_rpc, adopt)
    return taken


async def clone_frozen(live: LiveMachine, moment: Moment, order: Order, adopt: Adopt) -> list[Seedling]:
    """Clone a VM that is frozen: every clone goes on from that same instruction; the source does not move."""
    async with live.rooms.book.operation("clone", live.id, _detail(live, order, None)):
        reach("clone.journalled")
        preparing = time.monotonic()
        device_state = await asyncio.to_thread(_read_moment, live, moment)
        seedlings: list[Seedling] = []
        try:
            await _prepare_all(live, order, moment.id, moment.layers, seedlings)
            prepare_ms = _ms_since(preparing)
            reach("clone.prepared")
            pending = bytes.fromhex(moment.pending_rpc_hex)
            await _become_all(live, live.run_dir, seedlings, device_state, pending, adopt)
        except BaseException:
            await _discard_all(seedlings)
            raise
        for seedling in seedlings:
            _note_times(seedling, order, prepare_ms, 0.0)
        return seedlings


async def _become_all(
    live: LiveMachine,
    holder: RunDir,
    seedlings: Sequence[Seedling],
    device_state: bytes,
    pending_rpc: bytes,
    adopt: Adopt,
) -> None:
    """Fork and become, a few at a time: more at once than cores only makes each of them slower."""
    gate = asyncio.Semaphore(live.rooms.limits.parallel_forks)

    async def grow(seedling: Seedling) -> None:
        async with gate:
            reply: ForkReply = await fork_from(live.rooms, holder, seedling.asked)
            await _become_forked(seedling, reply, device_state, pending_rpc, adopt)

    try:
        async with asyncio.TaskGroup() as group:
            for seedling in seedlings:
                group.create_task(grow(seedling))
    except* RametError as failures:
        raise failures.exceptions[0] from None


async def freeze(live: LiveMachine) -> Moment:
    """Hold a running VM at this instant. On failure it runs on, and the guest's call says why."""
    next_state(live.vm.state, Operation.FREEZE, name=live.name)
    moment_id = new_id()
    detail = {"moment_id": moment_id, "layers": [moments.overlay_id(moment_id, d) for d in live.vm.machine.disks]}
    async with live.rooms.book.operation("freeze", live.id, detail):
        reach("freeze.journalled")
        try:
            return await _freeze(live, moment_id, trust_pristine=True)
        except StaleVerdict:
            return await _freeze(live, moment_id, trust_pristine=False)


async def _freeze(live: LiveMachine, moment_id: str, *, trust_pristine: bool) -> Moment:
    turns = moments.plan_turns(live, moment_id, trust_pristine=trust_pristine)
    machine = live.vm.machine
    taken = await moments.take(live, turns, [], hold=True)
    reach("freeze.taken")
    try:
        moment = Moment(
            id=moment_id,
            vm_id=live.id,
            machine=machine,
            layers=taken.layers,
            pending_rpc_hex=taken.pending_rpc.hex(),
            accelerator=live.require_accelerator(),
            qemu_build=live.rooms.qemu.build_id,
            at=time.time(),
        )
        await asyncio.to_thread(_write_moment, live, moment, taken.device_state)
        reach("freeze.written")
        await live.rooms.book.save_moment(moment)
        reach("freeze.recorded")
        await live.move(Operation.FREEZE, moment_id=moment.id)
    except BaseException:
        await live.qmp.cont()
        await live.rooms.book.drop_moment(moment_id)
        raise
    return moment


async def thaw(live: LiveMachine) -> None:
    """Let a frozen VM go on from where it was. Clones made from its moment are not touched."""
    next_state(live.vm.state, Operation.THAW, name=live.name)
    moment_id = live.vm.moment_id
    async with live.rooms.book.operation("thaw", live.id, {"moment_id": moment_id}):
        reach("thaw.journalled")
        await live.qmp.cont()
        reach("thaw.continued")
        await live.move(Operation.THAW, moment_id=None)
        await blocks.seal(live)
        if moment_id is not None:
            await live.rooms.book.drop_moment(moment_id)
        live.guest.thaw()


def _write_moment(live: LiveMachine, moment: Moment, device_state: bytes) -> None:
    path = live.rooms.paths.moment_state(moment.id)
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(device_state)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _read_moment(live: LiveMachine, moment: Moment) -> bytes:
    try:
        return live.rooms.paths.moment_state(moment.id).read_bytes()
    except FileNotFoundError:
        raise DamagedError(
            f"The device state of {live.name!r}'s moment is gone.", hint="Thaw the VM and freeze it again."
        ) from None


async def _prepare_all(
    live: LiveMachine, order: Order, moment_id: str, parents: dict[str, str], seedlings: list[Seedling]
) -> None:
    """Fills `seedlings` as it goes, so that the caller can discard what there is when one fails."""
    for machine, vm_id in zip(order.machines, order.vm_ids, strict=True):
        record = new_record(live.vm, machine, moment_id, order.workflow, vm_id)
        seedlings.append(await prepare(live, record, parents))


async def _discard_all(seedlings: Sequence[Seedling]) -> None:
    for seedling in seedlings:
        with contextlib.suppress(RametError, OSError):
            await seedling.discard()


def _note_times(seedling: Seedling, order: Order, prepare_ms: float, stun_ms: float) -> None:
    times = seedling.timings.model_dump() | {
        "check": order.check_ms,
        "prepare": prepare_ms,
        "stun": stun_ms,
        "total": (seedling.running_at - order.accepted_at) * 1000,
    }
    seedling.timings = CloneTimings.model_validate({name: round(value, 2) for name, value in times.items()})


def _detail(live: LiveMachine, order: Order, moment_id: str | None) -> dict[str, object]:
    """Everything the operation will make, by name, before it makes any of it: what recovery looks for."""
    owners = [*order.vm_ids, *([moment_id] if moment_id else [])]
    layers = [moments.overlay_id(owner, disk) for owner in owners for disk in live.vm.machine.disks]
    return {"moment_id": moment_id, "clones": list(order.vm_ids), "names": list(order.names), "layers": layers}


def _ms_since(start: float) -> float:
    return (time.monotonic() - start) * 1000
