"""Operations on single VMs, as tasks under the VM's lock. What each needs and does stands in ``machine``."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from ramet.clone import workflows
from ramet.errors import ConflictError, RametError, StateError, UsageError
from ramet.host.copying import Shaping, check_copy, copy, settle
from ramet.host.creating import check_create, create
from ramet.host.floor import Floor
from ramet.host.locks import VmLocks
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.machine import power
from ramet.machine.balloon import LISTENS, apply_memory_target
from ramet.machine.lifecycle import Operation, allows, next_state
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.cancellation import to_its_end
from ramet.model.host import Task
from ramet.model.machine import Vm, VmState
from ramet.model.requests import ChangeVm, CopyVm, CreateVm, RegisterVm, StopVm
from ramet.model.units import MIB
from ramet.network.firewall import Guard
from ramet.network.taps import tap_name

log = structlog.stdlib.get_logger(__name__)

PATIENCE_S = 5.0
"""How long a request waits for another operation on the same VM before it is refused."""
RESET_PATIENCE_S = 120.0


class VmDesk:
    """Starts tasks for what callers ask of one VM."""

    def __init__(self, floor: Floor, tasks: TaskManager, locks: VmLocks) -> None:
        self._floor = floor
        self._tasks = tasks
        self._locks = locks

    async def create(self, request: CreateVm, by_uid: int | None) -> Task:
        with self._floor.reserve(request.name):  # what can be known is told at once, not by a task
            machine = await check_create(self._floor, request)
            if request.start:
                self._floor.rooms.admission.check_start(request.name, machine.memory_mib * MIB)

        async def work(handle: TaskHandle) -> Any:
            with self._floor.reserve(request.name), handle.step("create"):
                live = await create(self._floor, request)
            if request.start:
                async with self._locks.hold(live.id, "start"):
                    with handle.step("start"):
                        await self.start_now(live)
            return {"id": live.id, "name": live.name}

        return await self._tasks.start("vm.create", request.name, work, by_uid=by_uid)

    async def copy(self, ref: str, request: CopyVm, by_uid: int | None, shaping: Shaping | None = None) -> Task:
        live = self._floor.find(ref)
        await until_free(self._locks, live, "copy")
        with self._floor.reserve(request.name):
            check_copy(self._floor, live, request)

        async def work(handle: TaskHandle) -> Any:
            with self._floor.reserve(request.name), handle.step("copy"):
                copied = await self._copied(live, request, handle, shaping)
            if request.start:
                async with self._locks.hold(copied.id, "start"):
                    with handle.step("start"):
                        await self.start_now(copied)
            return {"id": copied.id, "name": copied.name}

        return await self._tasks.start("vm.copy", request.name, work, vm_id=live.id, by_uid=by_uid, cancellable=True)

    async def _copied(
        self, live: LiveMachine, request: CopyVm, handle: TaskHandle, shaping: Shaping | None
    ) -> LiveMachine:
        lock = self._locks.hold(live.id, "copy", wait_s=PATIENCE_S)
        if shaping is None:
            return await copy(self._floor, live, request, handle, lock)
        try:
            copied = await copy(self._floor, live, request, handle, lock, shaping.vm_id)
            await shaping.shape(handle)
            handle.cancellable = False
            await settle(self._floor, copied, live)
        except BaseException:
            await to_its_end(self._unmake(shaping.vm_id))
            raise
        return copied

    async def _unmake(self, vm_id: str) -> None:
        """Of a copy that is provisional still. Nothing is written first, for the disk may be full of it: should the
        daemon die meanwhile, or its record not be erased yet, it is not seen either, and goes at the next start."""
        copied = self._floor.machines.get(vm_id)
        if copied is None or not copied.vm.provisional:
            return
        await self._forget(copied)
        for disk in copied.vm.machine.disks:
            try:
                await asyncio.to_thread(self._floor.rooms.layers.remove, disk.layer)
            except (RametError, OSError) as exc:
                log.warning("a layer of a copy that failed is left", layer=disk.layer, error=str(exc))
        await self._floor.collect_layers()

    async def start(self, ref: str) -> Task:
        live = self._floor.find(ref)
        operation = Operation.RESUME if live.vm.state is VmState.SUSPENDED else Operation.START
        if allows(live.vm.state, operation):
            check_memory(live)
        return await self._run(live, "vm.start", operation, lambda _: self.start_now(live))

    async def start_again(self, vm_id: str) -> None:
        """After a reset that ended QEMU. Whatever holds the VM meanwhile is waited for, within reason."""
        live = self._floor.find(vm_id)
        async with self._locks.hold(live.id, "restart", wait_s=RESET_PATIENCE_S):
            if live.vm.state is VmState.OFF and live.vm.is_shown:
                await self.start_now(live)

    async def start_now(self, live: LiveMachine) -> None:
        """Under the VM's lock."""
        check_memory(live)
        await power.start(live)
        await _follow_target(live)

    async def resume(self, ref: str) -> Task:
        live = self._floor.find(ref)

        async def work(_: TaskHandle) -> None:
            if live.vm.state is VmState.SUSPENDED:
                await self.start_now(live)
            else:
                await power.resume_paused(live)

        return await self._run(live, "vm.resume", Operation.RESUME, work)

    async def stop(self, ref: str, request: StopVm) -> Task:
        live = self._floor.find(ref)
        operation = Operation.KILL if request.hard else Operation.STOP
        return await self._run(
            live, "vm.stop", operation, lambda _: power.stop(live, hard=request.hard, timeout_s=request.timeout_s)
        )

    async def restart(self, ref: str, hard: bool) -> Task:
        live = self._floor.find(ref)
        return await self._run(live, "vm.restart", Operation.RESTART, lambda _: _restart(live, hard))

    async def suspend(self, ref: str) -> Task:
        live = self._floor.find(ref)
        return await self._run(live, "vm.suspend", Operation.SUSPEND, lambda _: power.suspend(live))

    async def thaw(self, ref: str) -> Task:
        live = self._floor.find(ref)
        if allows(live.vm.state, Operation.THAW):
            live.rooms.admission.check_thaw(live.name, live.id)

        async def work(_: TaskHandle) -> None:
            await workflows.thaw(live)
            await _follow_target(live)

        return await self._run(live, "vm.thaw", Operation.THAW, work)

    async def change(self, ref: str, request: ChangeVm) -> LiveMachine:
        """Hardware only while off; names, keys and flags at any time."""
        live = self._floor.find(ref)
        if request.memory_mib is not None or request.vcpus is not None:
            next_state(live.vm.state, Operation.RECONFIGURE, name=live.name)
        async with self._locks.hold(live.id, "change"):
            with contextlib.ExitStack() as names:
                if request.name is not None and request.name != live.name:
                    names.enter_context(self._floor.reserve(request.name))
                machine = live.vm.machine.changed(**_changes(live, request))
                await live.change(machine=machine, **_expiry(request))
            if request.cpu_limit_percent is not None and live.vm.is_on:
                live.limit_cpu()
            if request.memory_target_mib is not None and live.vm.state in LISTENS:
                await apply_memory_target(live)
        return live

    async def remove(self, ref: str, force: bool) -> Task:
        live = self._floor.find(ref)
        if not force:
            next_state(live.vm.state, Operation.REMOVE, name=live.name)

        async def work(handle: TaskHandle) -> None:
            if not force:
                next_state(live.vm.state, Operation.REMOVE, name=live.name)
            if live.vm.is_on:
                with handle.step("stop"):
                    await power.power_off(live)
            with handle.step("remove"):
                await self.remove_now(live)

        return await self._run(live, "vm.remove", None, work)

    async def unregister(self, ref: str) -> None:
        """Take a VM that is off out of the inventory, and keep it. Its name is free for others; a time to live ends."""
        live = self._floor.find(ref)
        async with self._locks.hold(live.id, "unregister", wait_s=PATIENCE_S):
            if live.vm.state not in (VmState.OFF, VmState.SUSPENDED):
                raise StateError(
                    f"Cannot unregister {live.name!r}: it is {live.vm.state.value}.",
                    hint="Stop it first.",
                    state=live.vm.state.value,
                    operation="unregister",
                )
            await live.change(registered=False, expires_at=None)
        self._floor.rooms.book.emit("vm.unregistered", f"{live.name} was unregistered.", live.vm)

    async def register(self, request: RegisterVm) -> LiveMachine:
        """Put one back. NotFoundError when there is none, ConflictError when its name is taken meanwhile."""
        live = self._floor.find_unregistered(request.ref)
        name = request.name or live.name
        with self._floor.reserve(name):
            async with self._locks.hold(live.id, "register", wait_s=PATIENCE_S):
                if live.vm.registered:
                    raise ConflictError(f"{live.name!r} was registered just now.")
                await live.change(machine=live.vm.machine.changed(name=name), registered=True)
        self._floor.rooms.book.emit("vm.registered", f"{live.name} was registered.", live.vm)
        return live

    async def take_away(self, vm_id: str) -> None:
        """End and remove a VM, whatever it does; for one that nobody was told of yet."""
        live = self._floor.find(vm_id)
        async with self._locks.hold(live.id, "remove", wait_s=PATIENCE_S):
            if live.vm.is_on:
                await power.power_off(live)
            await self.remove_now(live)

    async def remove_now(self, live: LiveMachine) -> None:
        """Under the VM's lock, of a VM that is off."""
        vm = live.vm
        async with self._floor.rooms.book.operation("remove", vm.id, {"clones": [vm.id]}):
            reach("remove.journalled")
            await self._forget(live)
        self._floor.rooms.book.emit("vm.removed", f"{vm.name} was removed.", vm)
        await self._floor.collect_layers()

    async def _forget(self, live: LiveMachine) -> None:
        vm = live.vm
        await live.detach()
        await self._floor.rooms.book.forget(vm.id)
        for clear in (self._unplug, self._delete_files):
            try:
                await clear(vm)
            except (RametError, OSError) as exc:  # it is removed all the same; the next start tidies up
                log.warning("something of a removed VM is left", vm=vm.name, error=str(exc))

    async def _unplug(self, vm: Vm) -> None:
        reach("remove.forgotten")
        if self._floor.rooms.networks.privileged:
            for nic in vm.machine.nics:
                await self._floor.rooms.networks.release_nic(vm.id, nic)
            await self._lift_guards(vm)

    async def _delete_files(self, vm: Vm) -> None:
        for directory in (self._floor.rooms.paths.vm(vm.id), self._floor.rooms.paths.vm_run(vm.id)):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        await asyncio.to_thread(LiveMachine(self._floor.rooms, vm).unconfine)
        reach("remove.cleared")

    async def _lift_guards(self, vm: Vm) -> None:
        """Of the VM's own ports; and of its clones', for what was its addresses may be anybody's from now on."""
        gone = [vm, *(live.vm for live in self._floor.machines.values() if _is_clone_of(live.vm, vm))]
        taps = [tap_name(one.id, nic.index) for one in gone if one.lineage for nic in one.machine.nics]
        if taps:
            with contextlib.suppress(RametError, OSError):
                await self._floor.rooms.networks.set_port_guards(dict.fromkeys(taps, Guard()))

    async def _run(
        self,
        live: LiveMachine,
        kind: str,
        operation: Operation | None,
        work: Callable[[TaskHandle], Awaitable[Any]],
    ) -> Task:
        """Refuse at once what the lifecycle or another operation forbids; then work under the lock, checked again."""
        await until_free(self._locks, live, kind.removeprefix("vm."))
        if operation is not None and not allows(live.vm.state, operation):
            next_state(live.vm.state, operation, name=live.name)

        async def under_lock(handle: TaskHandle) -> Any:
            async with self._locks.hold(live.id, kind.removeprefix("vm."), wait_s=PATIENCE_S):
                self._floor.find(live.id)  # it may have been unregistered, or removed, meanwhile
                with handle.step(kind.removeprefix("vm.")):
                    await work(handle)
            return {"id": live.id, "name": live.name, "state": live.vm.state.value}

        return await self._tasks.start(kind, live.name, under_lock, vm_id=live.id)


async def _restart(live: LiveMachine, hard: bool) -> None:
    await power.restart(live, hard=hard, timeout_s=60.0)
    await _follow_target(live)


async def _follow_target(live: LiveMachine) -> None:
    """A QEMU that was started anew knows no target, and one that was frozen may know an older one. A VM that runs with
    too much memory is no failed start: what cannot be said is logged."""
    if live.vm.state not in LISTENS:
        return
    try:
        await apply_memory_target(live)
    except RametError as exc:
        log.warning("a memory target could not be set", vm=live.name, error=str(exc))


def _is_clone_of(vm: Vm, source: Vm) -> bool:
    return vm.lineage is not None and vm.lineage.source_id == source.id


def _expiry(request: ChangeVm) -> dict[str, Any]:
    if request.ttl_s is None:
        return {}
    return {"expires_at": time.time() + request.ttl_s if request.ttl_s else None}


def _changes(live: LiveMachine, request: ChangeVm) -> dict[str, Any]:
    update: dict[str, Any] = request.model_dump(include={"name", "memory_mib", "vcpus", "autostart"}, exclude_none=True)
    if request.cpu_limit_percent is not None:
        update["cpu_limit_percent"] = request.cpu_limit_percent or None
    memory_mib = request.memory_mib or live.vm.machine.memory_mib
    if request.memory_target_mib is not None:
        if request.memory_target_mib > memory_mib:
            raise UsageError(f"{live.name!r} has {memory_mib} MiB; a target can only be less.")
        update["memory_target_mib"] = request.memory_target_mib or None
    elif memory_mib <= (live.vm.machine.memory_target_mib or 0):
        update["memory_target_mib"] = None  # there is nothing left that it would leave to the host
    config = {**live.vm.machine.extra_config, **{k.lower(): v for k, v in request.set_config.items()}}
    for key in request.unset_config:
        if key.lower() not in config:
            raise UsageError(f"{live.name!r} has no key {key!r}.", hint="See 'ramet vm show --json'.")
        del config[key.lower()]
    update["extra_config"] = config
    return update


def check_memory(live: LiveMachine) -> None:
    """Whether it may be started, by the host's policy. CapacityError says how much is missing."""
    live.rooms.admission.check_start(live.name, live.vm.machine.memory_mib * MIB)


async def until_free(locks: VmLocks, live: LiveMachine, operation: str, *, shared: bool = False) -> None:
    """Let short operations on the VM end first; BusyError, rather than a task that waits, when one lasts."""
    async with locks.hold(live.id, operation, shared=shared, wait_s=PATIENCE_S):
        pass
