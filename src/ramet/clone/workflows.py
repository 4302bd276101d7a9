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
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ramet.clone import moments
from ramet.clone.check import Order
from ramet.clone.growth import Adopt, Ground, Harvest, Told, discard_all, grow_all, hatch_forked, note_times, record_of
from ramet.clone.holder import fork_from, held, planned_holder
from ramet.clone.moments import StaleVerdict, Taken
from ramet.clone.quiesce import Quiesced, quiesced
from ramet.clone.seedling import prepare, release
from ramet.clone.zygote import begin, fork_frozen
from ramet.errors import DamagedError
from ramet.hypervisor.fork import ForkRequest
from ramet.hypervisor.stun_client import end_children
from ramet.machine import blocks
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.cancellation import to_its_end
from ramet.model.identity import Identity
from ramet.model.machine import Moment
from ramet.model.units import new_id


async def clone_running(live: LiveMachine, order: Order, adopt: Adopt, told: Told = lambda *_: None) -> Harvest:
    """Clone a VM that runs. It goes on after one stun, however many clones there are."""
    moment_id = new_id()
    async with live.rooms.book.operation("clone", live.id, _detail(live, order, moment_id)):
        reach("clone.journalled")
        try:
            harvest = await _clone_running(live, order, moment_id, adopt, told, trust_pristine=True)
        except StaleVerdict:
            harvest = await _clone_running(live, order, moment_id, adopt, told, trust_pristine=False)
        await blocks.seal(live)
        return harvest


async def _clone_running(
    live: LiveMachine, order: Order, moment_id: str, adopt: Adopt, told: Told, *, trust_pristine: bool
) -> Harvest:
    turns = moments.plan_turns(live, moment_id, trust_pristine=trust_pristine)
    if len(order.names) == 1:
        return await _one_from_stun(live, order, turns, moment_id, adopt)
    return await _many_from_holder(live, order, turns, moment_id, adopt, told)


async def _one_from_stun(
    live: LiveMachine, order: Order, turns: tuple[moments.DiskTurn, ...], moment_id: str, adopt: Adopt
) -> Harvest:
    """Prepared ahead, and forked in the stun itself."""
    preparing = time.monotonic()
    try:
        parents = {turn.disk.id: turn.frozen_layer for turn in turns}
        seedling = await prepare(live, record_of(live, order, 0, moment_id), parents)
    except BaseException:
        moments.drop_overlays(live, turns)
        raise
    prepare_ms = (time.monotonic() - preparing) * 1000
    try:
        taken, done = await _take(live, order, turns, [seedling.asked])
        seedling.live.vm = seedling.live.vm.changed(identity=_after(seedling.live.vm.identity, done))
        await hatch_forked(seedling, taken.result.forks[0], _ground(taken, moment_id), adopt)
        await release(seedling)
    except BaseException:
        await asyncio.shield(discard_all([seedling]))
        raise
    harvest = Harvest([seedling], stun_ms=taken.stun.total_ms, quiesced=done)
    note_times(harvest, order, prepare_ms)
    return harvest


async def _many_from_holder(
    live: LiveMachine, order: Order, turns: tuple[moments.DiskTurn, ...], moment_id: str, adopt: Adopt, told: Told
) -> Harvest:
    """One fork in the stun; the clones are forked from the holder, while the source runs again."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            plan = await stack.enter_async_context(planned_holder(live, moment_id))
        except BaseException:
            moments.drop_overlays(live, turns)
            raise
        taken, done = await _take(live, order, turns, [plan.request])
        await stack.enter_async_context(held(live.vm, live.rooms, taken.result.forks[0]))
        order = replace(order, identities=tuple(_after(identity, done) for identity in order.identities))
        fork = partial(fork_from, live.rooms, plan.run_dir)
        harvest = await grow_all(live, order, fork, _ground(taken, moment_id), adopt, told)
    harvest.stun_ms, harvest.quiesced = taken.stun.total_ms, done
    note_times(harvest, order)
    return harvest


async def _take(
    live: LiveMachine, order: Order, turns: tuple[moments.DiskTurn, ...], requests: Sequence[ForkRequest]
) -> tuple[Taken, Quiesced]:
    """The moment, with the guest quiesced for as long as that takes and no longer."""
    taken = None
    try:
        async with contextlib.AsyncExitStack() as stack:
            try:
                reach("clone.prepared")
                done = await stack.enter_async_context(quiesced(live, order.request))
            except BaseException:
                moments.drop_overlays(live, turns)
                raise
            taken = await moments.take(live, turns, requests, hold=False)
        return taken, done
    except BaseException:
        if taken is not None:  # cancelled while the source was woken: what was forked is nobody's
            await to_its_end(end_children(taken.result.forks))
        raise


def _after(identity: Identity, done: Quiesced) -> Identity:
    """A clone's guest was quiesced in its source, and its plan begins with waking it."""
    if identity.plan is None or not done.any:
        return identity
    plan = identity.plan.changed(thaw_hooks=done.hooks, thaw_file_systems=done.file_systems)
    return identity.changed(plan=plan)


def _ground(taken: Taken, moment_id: str) -> Ground:
    return Ground(taken.layers, taken.device_state, taken.pending_rpc, moment_id)


async def clone_frozen(
    live: LiveMachine, moment: Moment, order: Order, adopt: Adopt, told: Told = lambda *_: None
) -> Harvest:
    """Clone a VM that is frozen: every clone goes on from that same instruction; the source does not move."""
    async with live.rooms.book.operation("clone", live.id, _detail(live, order, None)):
        reach("clone.journalled")
        device_state = await asyncio.to_thread(_read_moment, live, moment)
        ground = Ground(moment.layers, device_state, bytes.fromhex(moment.pending_rpc_hex), moment.id)
        harvest = await grow_all(live, order, partial(fork_frozen, live), ground, adopt, told)
        note_times(harvest, order)
        return harvest


async def disks_now(live: LiveMachine, moment_id: str) -> dict[str, str]:
    """Disk id -> the layer that holds what a running VM has on it now, as after a power cut; immutable from then on.

    The VM goes on with overlays after one stun, in which nothing is forked. The caller's journal names them.
    """
    try:
        taken = await _disks_now(live, moment_id, trust_pristine=True)
    except StaleVerdict:
        taken = await _disks_now(live, moment_id, trust_pristine=False)
    await blocks.seal(live)
    return taken.layers


async def _disks_now(live: LiveMachine, moment_id: str, *, trust_pristine: bool) -> Taken:
    return await moments.take(live, moments.plan_turns(live, moment_id, trust_pristine=trust_pristine), [], hold=False)


async def freeze(live: LiveMachine) -> Moment:
    """Hold a running VM at this instant. On failure it runs on, and the guest's call says why."""
    next_state(live.vm.state, Operation.FREEZE, name=live.name)
    moment_id = new_id()
    detail = {"moment_id": moment_id, "layers": [moments.overlay_id(moment_id, d) for d in live.vm.machine.disks]}
    async with live.rooms.book.operation("freeze", live.id, detail):
        reach("freeze.journalled")
        try:
            moment = await _freeze(live, moment_id, trust_pristine=True)
        except StaleVerdict:
            moment = await _freeze(live, moment_id, trust_pristine=False)
        await begin(live)  # it links while nobody waits for it
        return moment


async def _freeze(live: LiveMachine, moment_id: str, *, trust_pristine: bool) -> Moment:
    turns = moments.plan_turns(live, moment_id, trust_pristine=trust_pristine)
    machine = live.vm.machine
    taken = await moments.take(live, turns, [], hold=True)
    try:
        reach("freeze.taken")
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
        try:
            await live.qmp.cont()
        finally:
            live.let_guest_go()
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
        try:
            reach("thaw.continued")
        finally:  # it runs, whatever else happens
            await _thawed(live, moment_id)


async def _thawed(live: LiveMachine, moment_id: str | None) -> None:
    await live.thawed()
    await live.move(Operation.THAW, moment_id=None)
    await blocks.seal(live)
    if moment_id is not None:
        await live.rooms.book.drop_moment(moment_id)
    live.guest.thaw()


def _write_moment(live: LiveMachine, moment: Moment, device_state: bytes) -> None:
    path = live.rooms.paths.moment_state(moment.id)
    temporary = path.with_suffix(".tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(device_state)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_moment(live: LiveMachine, moment: Moment) -> bytes:
    try:
        return live.rooms.paths.moment_state(moment.id).read_bytes()
    except FileNotFoundError:
        raise DamagedError(
            f"The device state of {live.name!r}'s moment is gone.", hint="Thaw the VM and freeze it again."
        ) from None


def _detail(live: LiveMachine, order: Order, moment_id: str | None) -> dict[str, object]:
    """Everything the operation will make, by name, before it makes any of it: what recovery looks for."""
    owners = [*order.vm_ids, *([moment_id] if moment_id else [])]
    layers = [moments.overlay_id(owner, disk) for owner in owners for disk in live.vm.machine.disks]
    return {"moment_id": moment_id, "clones": list(order.vm_ids), "names": list(order.names), "layers": layers}
