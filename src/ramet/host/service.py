"""The host as a whole: everything callers can ask of it, in one place, and nothing done here that is done elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Self

import structlog

import ramet
from ramet.errors import NotFoundError, RametError, StateError
from ramet.host.access_desk import AccessDesk
from ramet.host.autostart import autostart
from ramet.host.book import HostBook
from ramet.host.clones import CloneDesk
from ramet.host.composing import compose
from ramet.host.copies import Copies
from ramet.host.copying import Shaping
from ramet.host.debts import Debts
from ramet.host.doctor import examine
from ramet.host.events import EventLog
from ramet.host.execs import ExecDesk
from ramet.host.expiry import Expiry
from ramet.host.floor import Floor, let_go, lineage_children
from ramet.host.guests import GuestDesk
from ramet.host.identities import IdentityDesk
from ramet.host.inventory import Inventory
from ramet.host.journal import Journal
from ramet.host.listing import views_of
from ramet.host.locks import VmLocks
from ramet.host.memory_desk import MemoryDesk
from ramet.host.metrics import Metrics
from ramet.host.outputs import Outputs
from ramet.host.policies import MemoryPolicies
from ramet.host.pool_keeper import PoolLimits
from ramet.host.pools import PoolDesk
from ramet.host.recovery import Recovery
from ramet.host.refusing import open_inventory
from ramet.host.rotate import Rotator
from ramet.host.selftest import selftest
from ramet.host.settings import Settings
from ramet.host.stock import StockDesk
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.host.trying import TryDesk
from ramet.host.vm_logs import VmLogs
from ramet.host.vms import VmDesk
from ramet.hypervisor.version import find_qemu
from ramet.machine import hardware, power
from ramet.machine.balloon import balloon_view
from ramet.machine.live import LiveMachine
from ramet.machine.paths import StatePaths
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.host import Image, Network, Task
from ramet.model.identity import Customization
from ramet.model.machine import Vm, VmState
from ramet.model.pool import PoolView, SetPool
from ramet.model.requests import (
    AddDisk,
    BuildImage,
    ChangeNetwork,
    ChangeVm,
    CloneVm,
    CopyVm,
    CreateNetwork,
    CreateVm,
    Exec,
    ExportDisk,
    GrowDisk,
    ImportImage,
    NicChange,
    NicRequest,
    RegisterVm,
    StopVm,
)
from ramet.model.trying import TryCommand
from ramet.model.units import MIB
from ramet.model.views import CheckView, CloneForecast, ExecResult, HostView, TreeNode, VmView
from ramet.storage.images import export

log = structlog.stdlib.get_logger(__name__)

ADOPT_EVERY_S = 15.0


class Host:
    """One host. `open` composes it, recovers what a former daemon left, and ends it; VMs go on without it."""

    def __init__(
        self,
        settings: Settings,
        floor: Floor,
        tasks: TaskManager,
        events: EventLog,
        journal: Journal,
        metrics: Metrics,
        access: AccessDesk,
    ) -> None:
        self.settings = settings
        self.tasks = tasks
        self.events = events
        self.metrics = metrics
        self.access = access
        self.floor = floor
        self._journal = journal
        self._locks = VmLocks(name_of=self._name_of)
        self._vms = VmDesk(floor, tasks, self._locks)
        self._pools = PoolDesk(floor, tasks, self._locks, events, _pool_limits(settings))
        self._identities = IdentityDesk(floor, tasks, settings.parallel_identities)
        self.memory = MemoryDesk(floor, tasks, self._locks, settings)
        metrics.watch(floor, self.memory)
        self._policies = MemoryPolicies(floor, tasks, self._locks, self.memory.rows)
        self.sharing = self._policies.sharing
        self._clones = CloneDesk(
            floor, tasks, self._locks, self._pools, self._identities, self._vms.take_away, self.memory.accounts
        )
        self._guests = GuestDesk(floor, tasks)
        self._stock = StockDesk(floor, tasks)
        self._execs = ExecDesk(floor)
        self._outputs = Outputs()
        self._tries = TryDesk(floor, tasks, self._clones, self._vms, self._stock, self._outputs)
        self._recovery = Recovery(floor, journal)
        self._asked: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    # -- life ------------------------------------------------------------------------------------------------------

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Self]:
        """Raises UnsupportedError, with the remedy, when this host cannot run VMs at all."""
        async with contextlib.AsyncExitStack() as stack:
            paths = StatePaths(settings.state_dir)
            paths.prepare()
            store = await open_inventory(paths)
            stack.push_async_callback(store.aclose)
            inventory = await stack.enter_async_context(Inventory.open(store))
            events = await stack.enter_async_context(EventLog.open(paths.root / "events.jsonl", settings.event_history))
            debts = Debts()
            stack.push_async_callback(debts.pay)
            journal = Journal(inventory.journal, debts)
            book = HostBook(inventory, events, journal, paths, debts)
            stack.push_async_callback(_ended, asyncio.create_task(debts.run(), name="write what is owed"))
            qemu = await find_qemu(settings.qemu_binary)
            rooms = await compose(settings, paths, qemu, inventory, book, stack)
            floor = Floor(rooms, inventory)
            stack.push_async_callback(let_go, floor)  # before the tasks in the stack: they end first
            metrics = Metrics()
            tasks = await stack.enter_async_context(
                TaskManager.open(store, on_final=metrics.note_task, history=settings.task_history)
            )
            access = await stack.enter_async_context(AccessDesk.open(inventory, events, settings))
            host = cls(settings, floor, tasks, events, journal, metrics, access)
            book.on_forgotten = host.floor.drop
            await host._begin(book)
            copies = Copies(store, paths.records)
            stack.push_async_callback(_ended, asyncio.create_task(copies.run(), name="copy records"))
            stack.push_async_callback(_ended, asyncio.create_task(host._serve_guests(), name="guests' requests"))
            stack.push_async_callback(_ended, asyncio.create_task(host._adopt_lost(), name="adopt lost VMs"))
            stack.push_async_callback(_ended, asyncio.create_task(host._pools.keeper.run(), name="keep pools"))
            expiry = Expiry(host.floor, lambda vm_id: host.remove_vm(vm_id, True))
            stack.push_async_callback(_ended, asyncio.create_task(expiry.run(), name="end of VMs' time"))
            stack.push_async_callback(_ended, asyncio.create_task(host.memory.run(), name="measure memory"))
            stack.push_async_callback(_ended, asyncio.create_task(host._policies.run(), name="memory's policies"))
            rotator = Rotator(VmLogs(host.floor, settings).due, settings.rotate_every_s)
            stack.push_async_callback(_ended, asyncio.create_task(rotator.run(), name="rotate logs"))
            yield host

    async def _begin(self, book: HostBook) -> None:
        book.on_freeze_asked = lambda vm_id: self._asked.put_nowait(("freeze", vm_id))
        book.on_restart_asked = lambda vm_id: self._asked.put_nowait(("restart", vm_id))
        await self._stock.ensure_networks()
        await self._recovery.run()
        await self._stock.collect_directories()
        await self._tries.sweep()
        await self._identities.resume()
        await autostart(self.floor, self.tasks, self._vms, self.settings.autostart_delay_s)

    async def _serve_guests(self) -> None:
        """Guests that freeze themselves, or must be started again after a reset."""
        async with asyncio.TaskGroup() as group:
            while True:
                kind, vm_id = await self._asked.get()
                group.create_task(self._serve_guest(kind, vm_id), name=f"{kind} asked by {vm_id}")

    async def _serve_guest(self, kind: str, vm_id: str) -> None:
        try:
            if kind == "freeze":
                await self._clones.freeze_for_guest(vm_id)
            else:
                await self._vms.start_again(vm_id)
        except Exception as exc:
            log.warning("a guest's request could not be served", request=kind, vm=vm_id, error=str(exc))

    async def _adopt_lost(self) -> None:
        """VMs that did not answer at the start are asked again now and then, and groups of VMs that are off go."""
        while True:
            await asyncio.sleep(ADOPT_EVERY_S)
            try:
                await self._recovery.remove_groups()
                if await self._recovery.adopt_lost():
                    await self._identities.resume()  # nobody asked them either
            except (RametError, OSError) as exc:
                log.warning("a VM could not be adopted", error=str(exc))

    async def stop_all_vms(self) -> None:
        """Cut the power of every VM: for the end of demonstrations and tests."""
        await self._pools.keeper.close()
        for live in list(self.floor.machines.values()):
            if live.vm.is_on:
                with contextlib.suppress(RametError):
                    await power.power_off(live)

    def is_busy(self, vm_id: str) -> bool:
        """Whether an operation holds the VM."""
        return self._locks.is_busy(vm_id)

    def _name_of(self, vm_id: str) -> str:
        live = self.floor.machines.get(vm_id)
        return live.name if live else vm_id

    # -- VMs -------------------------------------------------------------------------------------------------------

    async def create_vm(self, request: CreateVm, by_uid: int | None = None) -> Task:
        return await self._vms.create(request, by_uid)

    async def copy_vm(
        self, ref: str, request: CopyVm, by_uid: int | None = None, shaping: Shaping | None = None
    ) -> Task:
        return await self._vms.copy(ref, request, by_uid, shaping)

    async def list_vms(self, unregistered: bool = False) -> list[VmView]:
        found = self.floor.unregistered() if unregistered else self.floor.shown()
        machines = sorted(found, key=lambda live: live.name)
        users = await asyncio.to_thread(self.floor.layer_users)
        leases = await self._guests.leases()
        return await views_of(machines, users, lambda live: self._guests.addresses(live, leases), self._locks.busy_with)

    async def show_vm(self, ref: str) -> VmView:
        live = self.floor.find(ref)
        users = await asyncio.to_thread(self.floor.layer_users)
        views = await views_of([live], users, self._guests.addresses, self._locks.busy_with)
        if not views:
            raise NotFoundError(f"{live.name!r} was removed just now.", ref=ref)
        (view,) = views
        return view.model_copy(update={"balloon": await balloon_view(live)})

    async def start_vm(self, ref: str) -> Task:
        return await self._vms.start(ref)

    async def stop_vm(self, ref: str, request: StopVm) -> Task:
        return await self._vms.stop(ref, request)

    async def restart_vm(self, ref: str, hard: bool = False) -> Task:
        return await self._vms.restart(ref, hard)

    async def suspend_vm(self, ref: str) -> Task:
        return await self._vms.suspend(ref)

    async def resume_vm(self, ref: str) -> Task:
        return await self._vms.resume(ref)

    async def freeze_vm(self, ref: str) -> Task:
        return await self._clones.freeze(ref)

    async def thaw_vm(self, ref: str) -> Task:
        return await self._vms.thaw(ref)

    async def change_vm(self, ref: str, request: ChangeVm) -> VmView:
        return await self._shown(await self._vms.change(ref, request))

    async def remove_vm(self, ref: str, force: bool = False) -> Task:
        return await self._vms.remove(ref, force)

    async def unregister_vm(self, ref: str) -> None:
        await self._vms.unregister(ref)

    async def register_vm(self, request: RegisterVm) -> VmView:
        return await self._shown(await self._vms.register(request))

    async def _shown(self, live: LiveMachine) -> VmView:
        return await self.show_vm(live.id)

    # -- clones ----------------------------------------------------------------------------------------------------

    async def clone_vm(self, ref: str, request: CloneVm, by_uid: int | None = None) -> Task:
        return await self._clones.clone(ref, request, by_uid)

    async def forecast_clone(self, ref: str, request: CloneVm) -> CloneForecast:
        return await self._clones.forecast(ref, request)

    async def identify_vm(self, ref: str, bare: bool = False) -> Task:
        return await self._identities.identify(ref, bare)

    async def customize_vm(self, ref: str, values: Customization) -> Task:
        return await self._identities.customize(ref, values)

    async def tree(self) -> list[TreeNode]:
        children = lineage_children(self.floor.inventory.users_vms())

        def node(vm: Vm) -> TreeNode:
            return TreeNode(
                id=vm.id,
                name=vm.name,
                state=vm.state.value,
                workflow=vm.lineage.workflow if vm.lineage else None,
                children=tuple(node(child) for child in children.get(vm.id, [])),
            )

        return [node(vm) for vm in children.get(None, [])]

    # -- pools -----------------------------------------------------------------------------------------------------

    async def set_pool(self, ref: str, request: SetPool) -> PoolView:
        return await self._pools.set(ref, request)

    async def remove_pool(self, ref: str) -> None:
        await self._pools.remove(ref)

    async def list_pools(self) -> list[PoolView]:
        return self._pools.views()

    # -- hardware --------------------------------------------------------------------------------------------------

    async def _reconfigure(self, ref: str, what: str, change: Any) -> VmView:
        live = self.floor.find(ref)
        async with self._locks.hold(live.id, what, wait_s=5.0):
            await change(live)
        return await self._shown(live)

    async def change_nic(self, ref: str, change: NicChange) -> VmView:
        return await self._reconfigure(ref, "change a NIC", lambda live: hardware.change_nic(live, change))

    async def add_nic(self, ref: str, request: NicRequest) -> VmView:
        return await self._reconfigure(ref, "add a NIC", lambda live: hardware.add_nic(live, request))

    async def remove_nic(self, ref: str, nic_id: str) -> VmView:
        return await self._reconfigure(ref, "remove a NIC", lambda live: hardware.remove_nic(live, nic_id))

    async def add_disk(self, ref: str, request: AddDisk) -> VmView:
        return await self._reconfigure(ref, "add a disk", lambda live: hardware.add_disk(live, request.size_mib))

    async def grow_disk(self, ref: str, disk_id: str, request: GrowDisk) -> VmView:
        return await self._reconfigure(
            ref, "grow a disk", lambda live: hardware.grow_disk(live, disk_id, request.size_mib)
        )

    async def remove_disk(self, ref: str, disk_id: str) -> VmView:
        view = await self._reconfigure(ref, "remove a disk", lambda live: hardware.remove_disk(live, disk_id))
        await self.floor.collect_layers()
        return view

    async def export_disk(self, ref: str, disk_id: str, request: ExportDisk) -> Task:
        live = self.floor.find(ref)
        self._export_layer(live, disk_id)

        async def work(handle: TaskHandle) -> Any:
            async with self._locks.hold(live.id, "export", wait_s=5.0):
                layer = self._export_layer(live, disk_id)  # what held a moment ago may not hold under the lock
                await export(self.floor.rooms.layers, layer, Path(request.path), request.format, handle.progress)
            return {"path": request.path}

        return await self.tasks.start("disk.export", live.name, work, vm_id=live.id, cancellable=True)

    def _export_layer(self, live: LiveMachine, disk_id: str) -> str:
        """The layer that holds the disk as it is, and that nobody writes to. StateError when there is none."""
        disk = hardware.find_disk(live, disk_id)
        if live.vm.state not in (VmState.OFF, VmState.SUSPENDED, VmState.FROZEN):
            raise StateError(
                f"{live.name!r} is {live.vm.state.value} and writes to {disk_id}.",
                hint="Stop, suspend or freeze it first, or export the disk of a clone.",
                state=live.vm.state.value,
                operation="export",
            )
        return self._clones.moment_of(live).layers[disk_id] if live.vm.frozen else disk.layer

    # -- guests ----------------------------------------------------------------------------------------------------

    async def exec_in_vm(self, ref: str, request: Exec) -> ExecResult:
        return await self._guests.exec(ref, request)

    async def spawn_in_vm(self, ref: str, request: Exec) -> int:
        return await self._guests.spawn(ref, request)

    async def ended_in_vm(self, ref: str, pid: int) -> ExecResult | None:
        return await self._guests.ended(ref, pid)

    def follow_exec(self, ref: str, request: FollowExec) -> AsyncGenerator[ExecEvent, None]:
        return self._execs.follow(ref, request)

    async def write_exec(self, exec_id: str, data: bytes, end: bool = False) -> None:
        await self._execs.write(exec_id, data, end)

    async def signal_exec(self, exec_id: str, name: str) -> None:
        await self._execs.signal(exec_id, name)

    async def try_command(self, ref: str, request: TryCommand, by_uid: int | None = None) -> Task:
        return await self._tries.start(ref, request, by_uid)

    def task_output(self, task_id: str) -> AsyncGenerator[ExecEvent, None]:
        return self._outputs.find(task_id).follow()

    async def wait_agent(self, ref: str, timeout_s: float) -> None:
        """Until the guest agent answers. DeadlineError when it does not."""
        await self._guests.wait_agent(ref, timeout_s)

    def read_file(self, ref: str, path: str) -> AsyncGenerator[bytes, None]:
        return self._guests.read_file(ref, path)

    async def write_file(self, ref: str, path: str, chunks: AsyncIterator[bytes], mode: int | None = None) -> None:
        await self._guests.write_file(ref, path, chunks, mode)

    async def screenshot(self, ref: str) -> bytes:
        return await hardware.screenshot(self.floor.find(ref))

    async def console_log(self, ref: str, max_bytes: int) -> bytes:
        return await self._guests.console_log(ref, max_bytes)

    async def install_tools(self, ref: str) -> Task:
        return await self._guests.install_tools(ref)

    async def open_stream(self, kind: str, ref: str, port: int | None = None) -> Any:
        return await self._guests.open_stream(kind, ref, port)

    async def address_of(self, ref: str) -> str:
        return await self._guests.address_of(ref)

    # -- images and networks ---------------------------------------------------------------------------------------

    async def build_image(self, request: BuildImage) -> Task:
        return await self._stock.build(request)

    async def import_image(self, request: ImportImage) -> Task:
        return await self._stock.import_image(request)

    async def list_images(self) -> list[Image]:
        return self._stock.images()

    async def remove_image(self, name: str) -> None:
        await self._stock.remove_image(name)

    async def create_network(self, request: CreateNetwork) -> Network:
        return await self._stock.create_network(request)

    async def list_networks(self) -> list[Network]:
        return self._stock.networks()

    async def show_network(self, name: str) -> Network:
        return self._stock.network(name)

    async def change_network(self, name: str, request: ChangeNetwork) -> Network:
        return await self._stock.change_network(name, request)

    async def remove_network(self, name: str) -> None:
        await self._stock.remove_network(name)

    # -- the host --------------------------------------------------------------------------------------------------

    async def host_view(self) -> HostView:
        vms, known = self.floor.inventory.users_vms(), self.floor.rooms.acceleration.known
        return HostView(
            version=ramet.__version__,
            state_dir=str(self.settings.state_dir),
            pid=os.getpid(),
            uid=os.geteuid(),
            privileged=self.floor.rooms.networks.privileged,
            qemu_version=self.floor.rooms.qemu.version_text,
            accelerator=known.accelerator.value if known else None,
            vms_total=len(vms),
            vms_on=sum(vm.is_on for vm in vms),
            settings=self.settings.model_dump(mode="json"),
        )

    async def doctor(self) -> list[CheckView]:
        return await examine(self.settings, self.floor.rooms, await self.floor.rooms.acceleration.report())

    async def selftest(self) -> Task:
        """Boot a small guest here, clone it live and frozen, compare checksums: the proof on the user's own host."""

        async def work(handle: TaskHandle) -> Any:
            return await selftest(self, handle)

        return await self.tasks.start("doctor.selftest", "this host", work, cancellable=True)


def _pool_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(
        parallel=settings.pool_parallel, delay_s=settings.pool_delay_s, reserve_bytes=settings.pool_reserve_mib * MIB
    )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
