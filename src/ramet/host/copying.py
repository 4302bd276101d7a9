"""Copies of VMs that are off: linked ones share their source's layers, full ones share nothing.

A linked copy is what a clone's disks are: the source's top layer becomes immutable, and both go on with an overlay over
it. Layers are counted, so either can be removed at any time. A full copy merges each chain into one layer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

from ramet.clone import chains
from ramet.clone.check import DISK_RESERVE_BYTES, HOSTNAME_KEY
from ramet.clone.moments import DiskTurn, drop_overlays, overlay_id, plan_turns
from ramet.clone.seedling import own_cdroms
from ramet.errors import CapacityError, StateError
from ramet.host.floor import Floor
from ramet.host.tasks import TaskHandle
from ramet.hypervisor.stun_client import to_its_end
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.identity import hostname_from
from ramet.model.machine import Disk, Machine, Nic, Vm, VmState
from ramet.model.requests import CopyVm
from ramet.model.units import format_bytes, new_id, new_mac
from ramet.storage.flatten import flatten


def check_copy(floor: Floor, live: LiveMachine, request: CopyVm) -> None:
    """Every check there is, and no change."""
    if live.vm.state is not VmState.OFF:
        raise StateError(
            f"{live.name!r} is {live.vm.state.value}: a copy is made of a VM that is off.",
            hint="Stop it first; or clone it while it runs.",
            state=live.vm.state.value,
            operation="copy",
        )
    free = floor.rooms.layers.free_bytes()
    needed = DISK_RESERVE_BYTES + (0 if request.linked else _bytes_on_disk(floor, live))
    if free < needed:
        raise CapacityError(
            f"Only {format_bytes(free)} is free under {floor.rooms.paths.layers}; {format_bytes(needed)} is needed.",
            hint="Remove VMs or images, or free space on that disk.",
        )
    _machine(live.vm.machine, request, ())


def _bytes_on_disk(floor: Floor, live: LiveMachine) -> int:
    layers = floor.rooms.layers
    return sum(layer.bytes_on_disk for disk in live.vm.machine.disks for layer in layers.chain(disk.layer))


async def copy(floor: Floor, live: LiveMachine, request: CopyVm, handle: TaskHandle) -> LiveMachine:
    """Needs the source's lock, and the name reserved. After a failure the source is as it was, and nothing is left."""
    check_copy(floor, live, request)
    copy_id, moment_id = new_id(), new_id()
    owners = (copy_id, moment_id)
    made = [overlay_id(owner, disk) for owner in owners for disk in live.vm.machine.disks]
    async with floor.rooms.book.operation("copy", copy_id, {"clones": [copy_id], "layers": made}):
        reach("copy.journalled")
        disks = _linked_disks if request.linked else _full_disks
        async with disks(floor, live, copy_id, moment_id, handle) as own:
            try:
                vm = await _record(floor, live, request, copy_id, own)
            except BaseException:
                await asyncio.shield(_take_back(floor, copy_id))
                raise
            copied = LiveMachine(floor.rooms, vm)
            floor.add(copied)  # nothing is awaited in between: what is recorded can be reached
    floor.rooms.book.emit("vm.created", f"{vm.name} was copied from {live.name}.", vm, source=live.id)
    return copied


async def _record(floor: Floor, live: LiveMachine, request: CopyVm, copy_id: str, disks: Sequence[Disk]) -> Vm:
    machine = _machine(live.vm.machine, request, disks)
    vm = Vm(id=copy_id, machine=machine, lineage_id=copy_id, created_at=time.time())
    cdroms = await asyncio.to_thread(own_cdroms, floor.rooms.paths, vm)
    vm = vm.changed(machine=machine.changed(cdroms=cdroms))
    reach("copy.layered")
    await floor.rooms.book.save(vm)
    reach("copy.recorded")
    return vm


async def _take_back(floor: Floor, copy_id: str) -> None:
    await floor.rooms.book.forget(copy_id)
    await asyncio.to_thread(shutil.rmtree, floor.rooms.paths.vm(copy_id), ignore_errors=True)


def _machine(source: Machine, request: CopyVm, disks: Sequence[Disk]) -> Machine:
    config = {**source.extra_config, **request.set_config}
    if HOSTNAME_KEY in source.extra_config and HOSTNAME_KEY not in request.set_config:
        config[HOSTNAME_KEY] = hostname_from(request.name)
    update: dict[str, Any] = {
        "name": request.name,
        "uuid": str(uuid4()),
        "nics": tuple(_card(nic) for nic in source.nics),
        "extra_config": config,
        "autostart": False,
        "memory_mib": request.memory_mib or source.memory_mib,
        "vcpus": request.vcpus or source.vcpus,
        "disks": tuple(disks) or source.disks,
    }
    if (source.memory_target_mib or 0) >= update["memory_mib"]:
        update["memory_target_mib"] = None
    return source.changed(**update)


def _card(nic: Nic) -> Nic:
    """With an address of its own. In a fence of its own, too, where its port group has fences."""
    return Nic(id=nic.id, model=nic.model, mac=new_mac(), network=nic.network, connected=nic.connected)


# -- disks -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _linked_disks(
    floor: Floor, live: LiveMachine, copy_id: str, moment_id: str, handle: TaskHandle
) -> AsyncIterator[tuple[Disk, ...]]:
    """Overlays over what the source has; it gets overlays as well, but for disks that it has not written to."""
    if chains.needs_flatten(live):
        with handle.step("shorten chain"):
            try:
                await chains.shorten(live, floor.image_layers())
            finally:
                await floor.collect_layers()
    turns = plan_turns(live, moment_id, trust_pristine=True)
    own: list[Disk] = []
    try:
        for turn in turns:
            own.append(_overlay(live, copy_id, turn))
        tops = [turn.overlay for turn in turns if turn.overlay is not None]
        await asyncio.to_thread(live.rooms.layers.sync, *tops, *(disk.layer for disk in own))
        # A cancelled write may have been done, and then the overlays are the source's disks.
        _, cancelled = await to_its_end(live.change(machine=_turned(live.vm.machine, turns)))
    except BaseException:
        _remove(live, own)
        drop_overlays(live, turns)
        raise
    try:
        if cancelled:
            raise asyncio.CancelledError
        yield tuple(own)
    except BaseException:  # the source keeps its overlays: they are as good as what it had
        _remove(live, own)
        raise


def _overlay(live: LiveMachine, copy_id: str, turn: DiskTurn) -> Disk:
    layer_id = overlay_id(copy_id, turn.disk)
    layer = live.rooms.layers.create_overlay(turn.frozen_layer, turn.disk.size_bytes, layer_id=layer_id)
    return turn.disk.changed(layer=layer.id)


def _turned(machine: Machine, turns: Sequence[DiskTurn]) -> Machine:
    tops = {turn.disk.id: turn.overlay for turn in turns if turn.overlay is not None}
    return machine.changed(disks=tuple(disk.changed(layer=tops.get(disk.id, disk.layer)) for disk in machine.disks))


@contextlib.asynccontextmanager
async def _full_disks(
    floor: Floor, live: LiveMachine, copy_id: str, moment_id: str, handle: TaskHandle
) -> AsyncIterator[tuple[Disk, ...]]:
    """The source is off and locked, so its layers stand still while they are read."""
    own: list[Disk] = []
    try:
        for number, disk in enumerate(live.vm.machine.disks):
            with handle.step(f"copy {disk.id}"):
                own.append(await _flattened(live, copy_id, disk, handle, number))
        yield tuple(own)
    except BaseException:
        _remove(live, own)
        raise


async def _flattened(live: LiveMachine, copy_id: str, disk: Disk, handle: TaskHandle, number: int) -> Disk:
    layers, count = live.rooms.layers, len(live.vm.machine.disks)
    chain = [layer.id for layer in layers.chain(disk.layer)]

    def progress(percent: float) -> None:
        handle.progress((number * 100 + percent) / count)

    layer = await flatten(layers, chain, None, progress, layer_id=overlay_id(copy_id, disk))
    return disk.changed(layer=layer.id)


def _remove(live: LiveMachine, disks: Sequence[Disk]) -> None:
    for disk in disks:
        live.rooms.layers.remove(disk.layer)
