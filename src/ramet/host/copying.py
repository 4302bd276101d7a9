"""Copies of VMs: linked ones share their source's layers, full ones share nothing.

A linked copy is what a clone's disks are: the source's top layer becomes immutable, and both go on with an overlay over
it. Layers are counted, so either can be removed at any time. A full copy merges each chain into one layer of its own.

A source that is on goes on. Its copy is off, and has the disks as they were at one instant: those of a frozen source's
moment, and of one that runs as after a power cut. Once these layers are immutable, nobody waits for their copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from ramet.clone import chains
from ramet.clone.check import DISK_RESERVE_BYTES, HOSTNAME_KEY
from ramet.clone.moments import DiskTurn, drop_overlays, overlay_id, plan_turns
from ramet.clone.seedling import own_cdroms
from ramet.clone.workflows import disks_now
from ramet.errors import CapacityError, StateError
from ramet.host.floor import Floor
from ramet.host.tasks import TaskHandle
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.cancellation import to_its_end
from ramet.model.identity import hostname_from
from ramet.model.machine import Disk, Machine, Nic, Vm, VmState
from ramet.model.requests import CopyVm
from ramet.model.units import format_bytes, new_id, new_mac
from ramet.storage.flatten import flatten

Lock = AbstractAsyncContextManager[None]
COPIED = (VmState.OFF, VmState.RUNNING, VmState.FROZEN)


@dataclass(frozen=True)
class Shaping:
    """What is made of a copy before anybody sees it. One that fails in it, or is cut off by a crash, is gone."""

    vm_id: str
    """What the copy's id will be; from the book."""
    shape: Callable[[TaskHandle], Awaitable[None]]


def check_copy(floor: Floor, live: LiveMachine, request: CopyVm) -> None:
    """Every check there is, and no change."""
    if live.vm.state not in COPIED:
        raise StateError(
            f"{live.name!r} is {live.vm.state.value}: a copy is made of a VM that is off, running or frozen.",
            hint="Resume it first, or stop it.",
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
    _machine(live.vm.machine, request, live.vm.machine.disks)


def _bytes_on_disk(floor: Floor, live: LiveMachine) -> int:
    layers = floor.rooms.layers
    return sum(layer.bytes_on_disk for disk in live.vm.machine.disks for layer in layers.chain(disk.layer))


async def copy(
    floor: Floor, live: LiveMachine, request: CopyVm, handle: TaskHandle, lock: Lock, copy_id: str | None = None
) -> LiveMachine:
    """Needs the name reserved; `lock` is the source's. After a failure it is as it was, and nothing is left.

    Of a source that is on the lock is held until its disks' layers are immutable, and not while they are copied.
    Whoever says what the copy's id will be reshapes it, too, and ends that with `settle`: it is provisional.
    """
    provisional = copy_id is not None
    async with contextlib.AsyncExitStack() as locked:
        await locked.enter_async_context(lock)
        check_copy(floor, floor.find(live.id), request)
        copy_id = copy_id or floor.rooms.book.new_vm_id()
        disks = _Disks(floor, live, handle, locked, copy_id, new_id())
        return await _make(floor, live, request, disks, provisional=provisional)


async def _make(
    floor: Floor, live: LiveMachine, request: CopyVm, disks: _Disks, *, provisional: bool
) -> LiveMachine:
    copy_id = disks.copy_id
    async with floor.rooms.book.operation("copy", copy_id, {"clones": [copy_id], "layers": disks.names()}):
        reach("copy.journalled")
        async with disks.made(linked=request.linked) as own:
            try:
                vm = await _record(floor, live, request, copy_id, own, provisional=provisional)
            except BaseException:
                await asyncio.shield(_take_back(floor, copy_id))
                raise
            copied = LiveMachine(floor.rooms, vm)
            floor.add(copied)  # nothing is awaited in between: what is recorded can be reached
    _tell(floor, vm, live)
    return copied


async def settle(floor: Floor, copied: LiveMachine, source: LiveMachine) -> None:
    """A provisional copy is whole: from this write on it stays, and is seen."""
    reach("copy.settling")
    _, cancelled = await to_its_end(copied.change(provisional=False))
    reach("copy.settled")
    _tell(floor, copied.vm, source)
    if cancelled:
        raise asyncio.CancelledError


def _tell(floor: Floor, vm: Vm, source: LiveMachine) -> None:
    floor.rooms.book.emit("vm.created", f"{vm.name} was copied from {source.name}.", vm, source=source.id)


async def _record(
    floor: Floor, live: LiveMachine, request: CopyVm, copy_id: str, disks: Sequence[Disk], *, provisional: bool
) -> Vm:
    machine = _machine(live.vm.machine, request, disks)
    vm = Vm(id=copy_id, machine=machine, lineage_id=copy_id, created_at=time.time(), provisional=provisional)
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
        "disks": tuple(disks),
    }
    if (source.memory_target_mib or 0) >= update["memory_mib"]:
        update["memory_target_mib"] = None
    return source.changed(**update)


def _card(nic: Nic) -> Nic:
    """With an address of its own. In a fence of its own, too, where its port group has fences."""
    return Nic(id=nic.id, model=nic.model, mac=new_mac(), network=nic.network, connected=nic.connected)


# -- disks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Disks:
    """The disks of a copy: made for a block, and gone again when it fails."""

    floor: Floor
    live: LiveMachine
    handle: TaskHandle
    locked: contextlib.AsyncExitStack
    """Holds the source's lock."""
    copy_id: str
    moment_id: str

    def names(self) -> list[str]:
        """Every layer that may come of it."""
        owners = (self.copy_id, self.moment_id)
        return [overlay_id(owner, disk) for owner in owners for disk in self.live.vm.machine.disks]

    def made(self, *, linked: bool) -> AbstractAsyncContextManager[tuple[Disk, ...]]:
        if self.live.vm.state is not VmState.OFF:
            return self._of_one_that_is_on(linked)
        return self._linked() if linked else self._full(self.live.vm.machine.disks)

    @contextlib.asynccontextmanager
    async def _of_one_that_is_on(self, linked: bool) -> AsyncIterator[tuple[Disk, ...]]:
        """Its guest may want to reboot, and others to clone it, while its disks are read."""
        layers = await self._layers_of_an_instant()
        disks = tuple(disk.changed(layer=layers[disk.id]) for disk in self.live.vm.machine.disks)
        with self.live.rooms.layers.hold(*layers.values()):
            await self.locked.aclose()
            async with self._overlays(disks) if linked else self._full(disks) as own:
                yield own

    async def _layers_of_an_instant(self) -> dict[str, str]:
        """By disk: of the instant at which it was frozen, or of now."""
        if self.live.vm.frozen:
            return dict(self.floor.inventory.moments.find(self.live.vm.moment_id or "").layers)
        await self._shorten()
        with self.handle.step("stun"):
            return await disks_now(self.live, self.moment_id)

    @contextlib.asynccontextmanager
    async def _overlays(self, disks: Sequence[Disk]) -> AsyncIterator[tuple[Disk, ...]]:
        """Over layers that are immutable."""
        own: list[Disk] = []
        try:
            for disk in disks:
                own.append(self._overlay(disk, disk.layer))
            await asyncio.to_thread(self.live.rooms.layers.sync, *(disk.layer for disk in own))
            yield tuple(own)
        except BaseException:
            self._remove(own)
            raise

    @contextlib.asynccontextmanager
    async def _linked(self) -> AsyncIterator[tuple[Disk, ...]]:
        """Overlays over what the source has; it gets overlays as well, but for disks that it has not written to."""
        live = self.live
        await self._shorten()
        turns = plan_turns(live, self.moment_id, trust_pristine=True)
        own: list[Disk] = []
        try:
            for turn in turns:
                own.append(self._overlay(turn.disk, turn.frozen_layer))
            tops = [turn.overlay for turn in turns if turn.overlay is not None]
            await asyncio.to_thread(live.rooms.layers.sync, *tops, *(disk.layer for disk in own))
            # A cancelled write may have been done, and then the overlays are the source's disks.
            _, cancelled = await to_its_end(live.change(machine=_turned(live.vm.machine, turns)))
        except BaseException:
            self._remove(own)
            drop_overlays(live, turns)
            raise
        try:
            if cancelled:
                raise asyncio.CancelledError
            yield tuple(own)
        except BaseException:  # the source keeps its overlays: they are as good as what it had
            self._remove(own)
            raise

    @contextlib.asynccontextmanager
    async def _full(self, disks: Sequence[Disk]) -> AsyncIterator[tuple[Disk, ...]]:
        """The source is off and locked, or these layers are immutable: they stand still while they are read."""
        own: list[Disk] = []
        try:
            for number, disk in enumerate(disks):
                with self.handle.step(f"copy {disk.id}"):
                    own.append(await self._flattened(disk, number, len(disks)))
            yield tuple(own)
        except BaseException:
            self._remove(own)
            raise

    async def _shorten(self) -> None:
        if chains.needs_flatten(self.live):
            with self.handle.step("shorten chain"):
                try:
                    await chains.shorten(self.live, self.floor.image_layers())
                finally:
                    await self.floor.collect_layers()

    def _overlay(self, disk: Disk, under: str) -> Disk:
        name = overlay_id(self.copy_id, disk)
        return disk.changed(layer=self.live.rooms.layers.create_overlay(under, disk.size_bytes, layer_id=name).id)

    async def _flattened(self, disk: Disk, number: int, count: int) -> Disk:
        layers = self.live.rooms.layers
        chain = [layer.id for layer in layers.chain(disk.layer)]

        def progress(percent: float) -> None:
            self.handle.progress((number * 100 + percent) / count)

        layer = await flatten(layers, chain, None, progress, layer_id=overlay_id(self.copy_id, disk))
        return disk.changed(layer=layer.id)

    def _remove(self, disks: Sequence[Disk]) -> None:
        for disk in disks:
            self.live.rooms.layers.remove(disk.layer)


def _turned(machine: Machine, turns: Sequence[DiskTurn]) -> Machine:
    tops = {turn.disk.id: turn.overlay for turn in turns if turn.overlay is not None}
    return machine.changed(disks=tuple(disk.changed(layer=tops.get(disk.id, disk.layer)) for disk in machine.disks))
