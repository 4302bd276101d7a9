"""A host without machines: records what it is asked, with real tasks and events. Also runs as a daemon of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ramet.api.contract import StreamKind
from ramet.api.server import serve
from ramet.errors import ConflictError, GuestError, NotFoundError, StateError
from ramet.host.access_desk import AccessDesk
from ramet.host.events import EventLog
from ramet.host.inventory import Inventory
from ramet.host.settings import Settings
from ramet.host.sqlite_store import SqliteStore
from ramet.host.stock import changed_network
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.host import Image, Network, Task
from ramet.model.machine import Machine, VmState
from ramet.model.memory import HostMemory, MemoryHistory, MemoryPoint, MemoryRow
from ramet.model.pool import PoolState, PoolView, SetPool
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
from ramet.model.sharing import PageSharing, PageSharingView, SetPageSharing
from ramet.model.trying import TryCommand, TryReport
from ramet.model.views import (
    CheckView,
    CloneForecast,
    CloneResult,
    CloneTimings,
    ExecResult,
    HostView,
    TreeNode,
    VmView,
)
from ramet.serve import main

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


class FakeMemory:
    """One VM, web, alone on a host; remembers nothing but one point."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    async def view(self, refs: Sequence[str], now: bool) -> HostMemory:
        self.asked.append((tuple(refs), now))
        if set(refs) - {"web"}:
            raise NotFoundError(f"There is no VM {refs[0]!r}.")
        row = MemoryRow(id="1", name="web", lineage_id="1", measured_at=5.0, resident_bytes=4096, unique_bytes=4096)
        return HostMemory(at=6.0, total_bytes=1 << 30, available_bytes=1 << 29, rows=(row,))

    def history(self, ref: str | None, span: str) -> MemoryHistory:
        self.asked.append((ref, span))
        point = dict.fromkeys(("resident", "unique", "common", "saved", "overhead"), 1024)
        points = (MemoryPoint(at=1.0, **{f"{name}_bytes": value for name, value in point.items()}),)
        return MemoryHistory(name=ref or "host", every_s=10.0, points=points)


class FakeSharing:
    """Off, until it is set."""

    def __init__(self, tasks: TaskManager) -> None:
        self.mode = PageSharing.OFF
        self._tasks = tasks

    async def view(self) -> PageSharingView:
        return PageSharingView(mode=self.mode, saved_bytes=4096)

    async def set(self, request: SetPageSharing, by_uid: int | None) -> Task:
        async def work(handle: TaskHandle) -> dict[str, str]:
            self.mode = request.mode
            return {"mode": request.mode.value}

        return await self._tasks.start("host.page-sharing", request.mode.value, work, by_uid=by_uid)


class FakeMetrics:
    def text(self) -> bytes:
        return b"# HELP ramet_vms VMs by state.\nramet_vms 1.0\n"


class FakeHost:
    def __init__(self, tasks: TaskManager, events: EventLog, settings: Settings, access: AccessDesk) -> None:
        self.tasks = tasks
        self.access = access
        self.events = events
        self.memory = FakeMemory()
        self.sharing = FakeSharing(tasks)
        self.metrics = FakeMetrics()
        self.settings = settings
        self.asked: list[tuple[Any, ...]] = []
        self.inputs: asyncio.Queue[bytes] = asyncio.Queue()
        self.views: dict[str, VmView] = {}
        self.kept: dict[str, VmView] = {}
        self.files: dict[str, bytes] = {}
        self.networks: dict[str, Network] = {}
        self.images: dict[str, Image] = {}
        self.go = asyncio.Event()
        """Lets the work of `selftest` end."""
        self.stopped = False

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[FakeHost]:
        store = await SqliteStore.open(settings.state_dir / "inventory.db")
        try:
            async with (
                EventLog.open(settings.state_dir / "events.jsonl") as events,
                TaskManager.open(store) as tasks,
                Inventory.open(store) as inventory,
                AccessDesk.open(inventory, events, settings) as access,
            ):
                events.emit("host.started", "The host started.")
                yield cls(tasks, events, settings, access)
        finally:
            await store.aclose()

    def _find(self, ref: str) -> VmView:
        if ref not in self.views:
            raise NotFoundError(f"There is no VM {ref!r}.", hint="Did you mean 'web'?", ref=ref)
        return self.views[ref]

    async def _task(self, kind: str, ref: str, result: Any = None, by_uid: int | None = None) -> Task:
        async def work(handle: TaskHandle) -> Any:
            with handle.step("only"):
                return result

        return await self.tasks.start(kind, ref, work, by_uid=by_uid)

    async def _ask(self, kind: str, ref: str, *arguments: Any) -> Task:
        view = self._find(ref)
        self.asked.append((kind, ref, *arguments))
        return await self._task(kind, view.name)

    async def create_vm(self, request: CreateVm, by_uid: int | None) -> Task:
        if request.name in self.views:
            raise ConflictError(f"A VM named {request.name!r} exists already.", name=request.name)
        if request.name == "bug":
            raise ZeroDivisionError("a secret of the inside")
        machine = Machine(name=request.name, extra_config=request.extra_config)
        self.views[request.name] = VmView(
            id=f"{len(self.views):012x}",
            name=request.name,
            uuid=machine.uuid,
            state=VmState.OFF,
            memory_mib=512,
            vcpus=1,
            machine=machine,
            created_at=1.0,
        )
        return await self._task("vm.create", request.name, {"name": request.name}, by_uid)

    async def list_vms(self, unregistered: bool) -> list[VmView]:
        views = self.kept if unregistered else self.views
        return [views[name] for name in sorted(views)]

    async def show_vm(self, ref: str) -> VmView:
        return self._find(ref)

    async def start_vm(self, ref: str) -> Task:
        return await self._ask("start", ref)

    async def stop_vm(self, ref: str, request: StopVm) -> Task:
        return await self._ask("stop", ref, request)

    async def restart_vm(self, ref: str, hard: bool) -> Task:
        return await self._ask("restart", ref, hard)

    async def copy_vm(self, ref: str, request: CopyVm, by_uid: int | None) -> Task:
        return await self._ask("copy", ref, request)

    async def suspend_vm(self, ref: str) -> Task:
        return await self._ask("suspend", ref)

    async def resume_vm(self, ref: str) -> Task:
        return await self._ask("resume", ref)

    async def freeze_vm(self, ref: str) -> Task:
        return await self._ask("freeze", ref)

    async def thaw_vm(self, ref: str) -> Task:
        return await self._ask("thaw", ref)

    async def change_vm(self, ref: str, request: ChangeVm) -> VmView:
        self.asked.append(("change", ref, request))
        return self._find(ref)

    async def remove_vm(self, ref: str, force: bool) -> Task:
        return await self._ask("remove", ref, force)

    async def unregister_vm(self, ref: str) -> None:
        view = self._find(ref)
        self.kept[view.name] = self.views.pop(view.name)

    async def register_vm(self, request: RegisterVm) -> VmView:
        view = next(view for view in self.kept.values() if request.ref in (view.id, view.name))
        del self.kept[view.name]
        self.views[request.name or view.name] = view.model_copy(update={"name": request.name or view.name})
        return self.views[request.name or view.name]

    async def clone_vm(self, ref: str, request: CloneVm, by_uid: int | None) -> Task:
        self._find(ref)
        results = [
            CloneResult(name=name, id=name, task="t", timings_ms=CloneTimings(stun=5.0)) for name in request.names
        ]
        return await self._task("clone", ref, results, by_uid)

    async def identify_vm(self, ref: str, bare: bool) -> Task:
        self.asked.append(("identify_vm", ref, bare))
        return await self._task("vm.identify", ref, {"name": ref}, None)

    async def forecast_clone(self, ref: str, request: CloneVm) -> CloneForecast:
        self._find(ref)
        return CloneForecast(workflow="live", forecast_stun_ms=12.5, names=request.names)

    async def change_nic(self, ref: str, request: NicChange) -> VmView:
        self.asked.append(("change_nic", ref, request))
        return self._find(ref)

    async def add_nic(self, ref: str, request: NicRequest) -> VmView:
        self.asked.append(("add_nic", ref, request))
        return self._find(ref)

    async def remove_nic(self, ref: str, nic_id: str) -> VmView:
        self.asked.append(("remove_nic", ref, nic_id))
        return self._find(ref)

    async def add_disk(self, ref: str, request: AddDisk) -> VmView:
        self.asked.append(("add_disk", ref, request))
        return self._find(ref)

    async def grow_disk(self, ref: str, disk_id: str, request: GrowDisk) -> VmView:
        self.asked.append(("grow_disk", ref, disk_id, request))
        return self._find(ref)

    async def remove_disk(self, ref: str, disk_id: str) -> VmView:
        self.asked.append(("remove_disk", ref, disk_id))
        return self._find(ref)

    async def export_disk(self, ref: str, disk_id: str, request: ExportDisk) -> Task:
        return await self._ask("export_disk", ref, disk_id, request)

    async def exec_in_vm(self, ref: str, request: Exec) -> ExecResult:
        self.asked.append(("exec", ref, request))
        return ExecResult(exit_code=3, stdout_base64="aGk=")

    async def wait_agent(self, ref: str, timeout_s: float) -> None:
        self.asked.append(("wait_agent", self._find(ref).name, timeout_s))

    async def read_file(self, ref: str, path: str) -> AsyncIterator[bytes]:
        self._find(ref)
        data = self.files.get(path)
        if data is None:
            raise NotFoundError(f"There is no file {path!r} in the guest.")
        for start in range(0, len(data), 1000):
            if path == "/breaks" and start:
                raise StateError("The guest went away.")
            yield data[start : start + 1000]

    async def write_file(self, ref: str, path: str, data: AsyncIterator[bytes], mode: int) -> None:
        self._find(ref)
        self.asked.append(("write_file", ref, path, mode))
        self.files[path] = b"".join([chunk async for chunk in data])

    async def screenshot(self, ref: str) -> bytes:
        return PNG

    async def console_log(self, ref: str, max_bytes: int) -> bytes:
        return (b"\xff\x00login: " * 100)[-max_bytes:]

    async def open_stream(self, kind: StreamKind, ref: str, port: int | None) -> socket.socket:
        self._find(ref)
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(f"{kind} {ref} {port}\n".encode())
        theirs.setblocking(False)
        return theirs

    async def address_of(self, ref: str) -> str:
        raise StateError(f"No address of {ref!r} is known yet.", state="running", operation="address")

    async def install_tools(self, ref: str) -> Task:
        return await self._ask("install_tools", ref)

    async def create_network(self, request: CreateNetwork) -> Network:
        network = Network(name=request.name, cidr=request.cidr, bridge="rb0")
        self.networks[request.name] = network
        return network

    async def list_networks(self) -> list[Network]:
        return list(self.networks.values())

    async def show_network(self, name: str) -> Network:
        if name not in self.networks:
            raise NotFoundError(f"There is no port group {name!r}.")
        return self.networks[name]

    async def change_network(self, name: str, request: ChangeNetwork) -> Network:
        self.networks[name] = changed_network(await self.show_network(name), request)
        return self.networks[name]

    async def remove_network(self, name: str) -> None:
        if self.networks.pop(name, None) is None:
            raise NotFoundError(f"There is no port group {name!r}.")

    async def build_image(self, request: BuildImage) -> Task:
        name = request.name or request.recipe
        self.images[name] = Image(name=name, recipe=request.recipe)
        return await self._task("image.build", name)

    async def import_image(self, request: ImportImage) -> Task:
        return await self._task("image.import", request.path)

    async def list_images(self) -> list[Image]:
        return list(self.images.values())

    async def remove_image(self, name: str) -> None:
        self.images.pop(name, None)

    async def follow_exec(self, ref: str, request: FollowExec) -> AsyncGenerator[ExecEvent, None]:
        """Says what it was given as input, until that ends; then the last signal's number, if one came."""
        self._find(ref)
        self.asked.append(("follow_exec", ref, request))
        self.inputs = asyncio.Queue()
        try:
            yield ExecEvent(kind="started", id="e1")
            while request.stdin and (data := await self.inputs.get()):
                yield ExecEvent(kind="stdout", data_base64=base64.b64encode(data).decode())
            if request.argv == ("break",):
                raise GuestError("The guest went away.")
            yield ExecEvent(kind="exited", exit_code=3)
        finally:
            self.asked.append(("ended",))

    async def write_exec(self, exec_id: str, data: bytes, end: bool) -> None:
        if exec_id != "e1":
            raise NotFoundError(f"No command {exec_id!r} is followed.")
        if data:
            await self.inputs.put(data)
        if end:
            await self.inputs.put(b"")

    async def signal_exec(self, exec_id: str, name: str) -> None:
        self.asked.append(("signal_exec", exec_id, name))
        await self.inputs.put(b"")

    async def try_command(self, ref: str, request: TryCommand, by_uid: int | None) -> Task:
        view = self._find(ref)
        self.asked.append(("try_command", ref, request))
        report = TryReport(source=view.name, clone="c", clone_id="1", kept=False, network="try", exit_code=4)
        return await self._task("try", view.name, report, by_uid)

    async def task_output(self, task_id: str) -> AsyncGenerator[ExecEvent, None]:
        self.tasks.get(task_id)
        yield ExecEvent(kind="started")
        yield ExecEvent(kind="stderr", data_base64="aGk=")

    async def set_pool(self, ref: str, request: SetPool) -> PoolView:
        view = self._find(ref)
        self.asked.append(("set_pool", ref, request))
        return PoolView(vm_id=view.id, vm=view.name, state=PoolState.FILLING, size=request.size, ready=0, taken=0)

    async def remove_pool(self, ref: str) -> None:
        self._find(ref)
        self.asked.append(("remove_pool", ref))

    async def list_pools(self) -> list[PoolView]:
        return [PoolView(vm_id="1", vm="web", state=PoolState.FULL, size=2, ready=2, taken=5, refill_per_s=9.5)]

    async def tree(self) -> list[TreeNode]:
        return [TreeNode(id="1", name="web", state="running", children=(TreeNode(id="2", name="c", state="off"),))]

    async def host_view(self) -> HostView:
        return HostView(
            version="0",
            state_dir=str(self.settings.state_dir),
            pid=1,
            uid=0,
            privileged=False,
            qemu_version=None,
            accelerator=None,
            vms_total=0,
            vms_on=0,
            settings={},
        )

    async def doctor(self) -> list[CheckView]:
        return [CheckView(name="qemu", status="ok", found="7.2")]

    async def selftest(self) -> Task:
        async def work(handle: TaskHandle) -> Any:
            for percent in (10, 20):
                handle.progress(percent, f"at {percent}")
                await asyncio.sleep(0)
            await self.go.wait()
            return [CheckView(name="clone", status="ok", found="same")]

        return await self.tasks.start("selftest", "host", work, cancellable=True)

    async def stop_all_vms(self) -> None:
        (self.settings.state_dir / "stopped").touch()


class Served:
    """A fake host behind the real server, in a thread with a loop of its own."""

    def __init__(self, state_dir: Path, group: str = "no-such-group") -> None:
        self.settings = Settings(state_dir=state_dir, group=group)
        self.host: FakeHost
        self.deaths = 0
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        ready.result(30)

    async def _serve(self, ready: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with FakeHost.open(self.settings) as self.host, serve(self.host, self.settings, self._died):
                ready.set_result(None)
                await self._stop.wait()
        except BaseException as exc:
            if not ready.done():
                ready.set_exception(exc)
            raise

    def _died(self) -> None:
        self.deaths += 1

    def call(self, function: Any, *arguments: Any) -> None:
        """In the server's loop."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
            assert not self._thread.is_alive()
            self._thread = None


if __name__ == "__main__":
    sys.exit(main(open_host=FakeHost.open))
