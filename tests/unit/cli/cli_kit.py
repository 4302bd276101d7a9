"""A client that answers from memory, and a way to run the program against it."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from typer.testing import CliRunner, Result

from ramet.cli.app import application
from ramet.cli.output import Output
from ramet.cli.session import Setup
from ramet.clone.customize import numbered_names
from ramet.errors import ConflictError, NotFoundError
from ramet.model.access import AddUser, Credentials, Role, SetVsphere, UserView, VsphereView
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.host import Event, Image, Network, Step, Task, TaskState
from ramet.model.machine import Disk, Lineage, Machine, Nic, Stun, VmState
from ramet.model.memory import CloneMemory, HostMemory, MemoryHistory, MemoryPoint, MemorySample
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
from ramet.model.sharing import PageSharing, PageSharingView
from ramet.model.trying import TryCommand
from ramet.model.units import MIB
from ramet.model.views import (
    CheckView,
    CloneForecast,
    CloneResult,
    CloneTimings,
    DiskView,
    ExecResult,
    HostView,
    LayerView,
    MemoryView,
    NicView,
    TreeNode,
    VmView,
)

if TYPE_CHECKING:
    from ramet.api.client import Client

NOW = 1_700_000_000.0
TIMINGS = CloneTimings(check=1, prepare=20, stun=14, fork=3, qemu=60, load=20, running=2, total=120)


def vm_view(name: str, **change: Any) -> VmView:
    """A running VM with one NIC and one disk of two layers."""
    base: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "uuid": "11111111-2222-3333-4444-555555555555",
        "state": VmState.RUNNING,
        "accelerator": "tcg",
        "qemu_version": "7.2.22",
        "pid": 4242,
        "memory_mib": 512,
        "vcpus": 2,
        "image": "debian",
        "nics": (
            NicView(
                id="net0",
                model="virtio",
                mac="52:54:00:00:00:01",
                network="default",
                connected=True,
                addresses=("fe80::1", "10.9.0.5"),
            ),
        ),
        "disks": (
            DiskView(
                id="disk0",
                size_bytes=4096 * MIB,
                chain=(
                    LayerView(id="aaaa", bytes_on_disk=3 * MIB, writable=True, shared_by=1),
                    LayerView(id="img-bbbb", bytes_on_disk=700 * MIB, writable=False, shared_by=3),
                ),
            ),
        ),
        "memory": MemoryView(
            configured_bytes=512 * MIB,
            resident_bytes=200 * MIB,
            unique_bytes=50 * MIB,
            shared_bytes=150 * MIB,
            proportional_bytes=100 * MIB,
            process_overhead_bytes=15 * MIB,
        ),
        "machine": Machine(
            name=name,
            disks=(Disk(id="disk0", layer="aaaa", size_bytes=4096 * MIB),),
            nics=(Nic(id="net0", mac="52:54:00:00:00:01"),),
            extra_config={"guestinfo.role": "web"},
        ),
        "created_at": NOW - 7200,
        "started_at": NOW - 3661,
    }
    return VmView.model_validate({**base, **change})


def clone_of(name: str, source: str, workflow: str = "live") -> VmView:
    lineage = Lineage(source_id=f"id-{source}", source_name=source, moment_id="m1", workflow=workflow, at=NOW - 60)
    view = vm_view(name, lineage=lineage)
    mac = "52:54:01:" + hashlib.sha256(name.encode()).digest()[:3].hex(":")
    return view.changed(nics=tuple(nic.changed(mac=mac) for nic in view.nics))


def stun(total_ms: float) -> Stun:
    return Stun(
        at=NOW - 30,
        total_ms=total_ms,
        stop_ms=1,
        snapshot_ms=2,
        state_ms=4,
        fork_ms=3,
        resume_ms=0.5,
        resident_bytes=200 * MIB,
    )


def task(kind: str, target: str = "web", **change: Any) -> Task:
    base: dict[str, Any] = {
        "id": "task00000001",
        "kind": kind,
        "target": target,
        "state": TaskState.SUCCESS,
        "progress_percent": 100.0,
        "created_at": NOW - 5,
        "started_at": NOW - 5,
        "ended_at": NOW - 4,
    }
    return Task.model_validate({**base, **change})


@dataclass
class FakeClient:
    """What the program asks is written down in `calls`; `fails` names methods that raise."""

    vms: dict[str, VmView] = field(default_factory=dict)
    kept: dict[str, VmView] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    pools: list[PoolView] = field(default_factory=list)
    known_tasks: dict[str, Task] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    fails: dict[str, Exception] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exec_result: ExecResult = field(default_factory=lambda: ExecResult(exit_code=0))
    on_exec: Callable[[str, Exec], ExecResult] | None = None
    input_ended: threading.Event = field(default_factory=threading.Event)
    streams: list[socket.socket] = field(default_factory=list)
    checks: list[CheckView] = field(default_factory=list)
    happened: list[Event] = field(default_factory=list)
    running: list[Task] = field(default_factory=list)
    """What wait_task reports, one after the other; the last is final."""
    warnings: tuple[str, ...] = ()
    after: MemorySample | None = None
    host_memory: HostMemory | None = None
    sharing: PageSharingView = field(default_factory=lambda: PageSharingView(mode=PageSharing.OFF))
    points: tuple[MemoryPoint, ...] = ()
    users: list[UserView] = field(default_factory=list)
    vsphere_view: VsphereView = field(default_factory=lambda: VsphereView(on=False))
    closed: bool = False

    def _note(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        if name in self.fails:
            raise self.fails[name]

    def asked(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def _find(self, ref: str) -> VmView:
        for vm in self.vms.values():
            if ref in (vm.name, vm.id):
                return vm
        raise NotFoundError(f"There is no VM {ref!r}.", hint="See 'ramet vm ls'.")

    def _put(self, vm: VmView, **change: Any) -> VmView:
        changed = vm.changed(**change)
        self.vms.pop(vm.name, None)
        self.vms[changed.name] = changed
        return changed

    def close(self) -> None:
        self.closed = True

    # -- VMs

    def list_vms(self, *, unregistered: bool = False) -> list[VmView]:
        self._note("list_vms")
        return list((self.kept if unregistered else self.vms).values())

    def show_vm(self, ref: str) -> VmView:
        self._note("show_vm", ref)
        return self._find(ref)

    def create_vm(self, request: CreateVm) -> Task:
        self._note("create_vm", request)
        if request.name in self.vms:
            raise ConflictError(f"There is a VM {request.name!r} already.", hint="Choose another name.")
        if request.image and request.image not in [image.name for image in self.images]:
            raise NotFoundError(f"There is no image {request.image!r}.", hint="See 'ramet image ls'.")
        self.vms[request.name] = vm_view(request.name, state=VmState.RUNNING if request.start else VmState.OFF)
        return task("vm.create", request.name)

    def _act(self, name: str, ref: str, state: VmState, *args: Any) -> Task:
        self._note(name, ref, *args)
        vm = self._put(self._find(ref), state=state)
        return task(name.replace("_vm", ""), vm.name)

    def start_vm(self, ref: str) -> Task:
        return self._act("start_vm", ref, VmState.RUNNING)

    def stop_vm(self, ref: str, request: StopVm) -> Task:
        return self._act("stop_vm", ref, VmState.OFF, request)

    def restart_vm(self, ref: str, hard: bool = False) -> Task:
        return self._act("restart_vm", ref, VmState.RUNNING, hard)

    def copy_vm(self, ref: str, request: CopyVm) -> Task:
        self._note("copy_vm", ref, request)
        source = self._find(ref)
        self.vms[request.name] = source.model_copy(update={"id": "c0c0c0c0c0c0", "name": request.name})
        return task("vm.copy", request.name)

    def suspend_vm(self, ref: str) -> Task:
        return self._act("suspend_vm", ref, VmState.SUSPENDED)

    def resume_vm(self, ref: str) -> Task:
        return self._act("resume_vm", ref, VmState.RUNNING)

    def freeze_vm(self, ref: str) -> Task:
        return self._act("freeze_vm", ref, VmState.FROZEN)

    def thaw_vm(self, ref: str) -> Task:
        return self._act("thaw_vm", ref, VmState.RUNNING)

    def change_vm(self, ref: str, request: ChangeVm) -> VmView:
        self._note("change_vm", ref, request)
        return self._put(self._find(ref), **({"name": request.name} if request.name else {}))

    def remove_vm(self, ref: str, force: bool = False) -> Task:
        self._note("remove_vm", ref, force)
        del self.vms[self._find(ref).name]
        return task("vm.remove", ref)

    def unregister_vm(self, ref: str) -> None:
        view = self._find(ref)
        self.kept[view.name] = self.vms.pop(view.name)

    def register_vm(self, request: RegisterVm) -> VmView:
        (view,) = self.kept.values()
        assert request.ref in (view.id, view.name)
        self.kept.clear()
        self.vms[request.name or view.name] = view.model_copy(update={"name": request.name or view.name})
        return self.vms[request.name or view.name]

    def clone_vm(self, ref: str, request: CloneVm) -> Task:
        self._note("clone_vm", ref, request)
        source = self._find(ref)
        workflow = "frozen" if source.state is VmState.FROZEN else "live"
        results = []
        for _, name in numbered_names(request):
            self.vms[name] = clone_of(name, source.name, workflow)
            result = CloneResult(
                name=name, id=f"id-{name}", task="task00000001", timings_ms=TIMINGS, warnings=self.warnings
            )
            results.append(result.model_dump(mode="json"))
        return task("clone", ", ".join(request.names), result=results)

    def clone_memory(self, task: Task) -> Task:
        """Measured by now, if a test says what."""
        if self.after is None:
            return task
        memory = CloneMemory(before=MemorySample(processes=1, measured_at=NOW, spent_bytes=MIB), after=self.after)
        return task.changed(result=[{**one, "memory": memory.model_dump()} for one in task.result])

    def memory(self, refs: Sequence[str] = (), now: bool = False) -> HostMemory:
        self._note("memory", tuple(refs), now)
        for ref in refs:
            self._find(ref)
        return self.host_memory or HostMemory(at=NOW, total_bytes=0, available_bytes=0)

    def memory_history(self, ref: str | None = None, span: str = "hour") -> MemoryHistory:
        self._note("memory_history", ref, span)
        return MemoryHistory(name=ref or "host", every_s=10.0, points=self.points)

    def forecast_clone(self, ref: str, request: CloneVm) -> CloneForecast:
        self._note("forecast_clone", ref, request)
        self._find(ref)
        return CloneForecast(workflow="live", forecast_stun_ms=18.0, names=request.names, warnings=self.warnings)

    # -- hardware

    def add_nic(self, ref: str, request: NicRequest) -> VmView:
        self._note("add_nic", ref, request)
        return self._find(ref)

    def change_nic(self, ref: str, request: NicChange) -> VmView:
        self._note("change_nic", ref, request)
        return self._find(ref)

    def remove_nic(self, ref: str, nic_id: str) -> VmView:
        self._note("remove_nic", ref, nic_id)
        return self._find(ref)

    def add_disk(self, ref: str, request: AddDisk) -> VmView:
        self._note("add_disk", ref, request)
        return self._find(ref)

    def grow_disk(self, ref: str, disk_id: str, request: GrowDisk) -> VmView:
        self._note("grow_disk", ref, disk_id, request)
        return self._find(ref)

    def remove_disk(self, ref: str, disk_id: str) -> VmView:
        self._note("remove_disk", ref, disk_id)
        return self._find(ref)

    def export_disk(self, ref: str, disk_id: str, request: ExportDisk) -> Task:
        self._note("export_disk", ref, disk_id, request)
        return task("disk.export")

    # -- guests

    def exec_in_vm(self, ref: str, request: Exec) -> ExecResult:
        self._note("exec_in_vm", ref, request)
        self._find(ref)
        return self.on_exec(ref, request) if self.on_exec else self.exec_result

    def follow_exec(self, ref: str, request: FollowExec) -> Iterator[ExecEvent]:
        """What `exec_result` says, once the input has ended when there is one."""
        self._note("follow_exec", ref, request)
        self._find(ref)
        yield ExecEvent(kind="started", id="e1")
        if request.stdin:
            assert self.input_ended.wait(20)
        yield from self._said(self.exec_result)
        yield ExecEvent(kind="exited", exit_code=self.exec_result.exit_code, signal=self.exec_result.signal)

    def _said(self, result: ExecResult) -> Iterator[ExecEvent]:
        yield ExecEvent(kind="stdout", data_base64=result.stdout_base64)
        yield ExecEvent(kind="stderr", data_base64=result.stderr_base64)
        if result.truncated:
            yield ExecEvent(kind="lost", lost_bytes=5)

    def write_exec(self, exec_id: str, data: bytes, end: bool = False) -> None:
        self._note("write_exec", exec_id, data, end)
        if end:
            self.input_ended.set()

    def signal_exec(self, exec_id: str, name: str = "INT") -> None:
        self._note("signal_exec", exec_id, name)

    def try_command(self, ref: str, request: TryCommand) -> Task:
        self._note("try_command", ref, request)
        self._find(ref)
        return Task(id="t1", kind="try", target=ref, state=TaskState.RUNNING, cancellable=True)

    def task_output(self, task_id: str) -> Iterator[ExecEvent]:
        self._note("task_output", task_id)
        yield ExecEvent(kind="started")
        yield from self._said(self.exec_result)

    def read_file(self, ref: str, path: str) -> Iterator[bytes]:
        self._note("read_file", ref, path)
        data = self.files[f"{ref}:{path}"]
        yield data[:3]
        yield data[3:]

    def write_file(self, ref: str, path: str, data: bytes, mode: int = 0o644) -> None:
        self._note("write_file", ref, path, data, mode)
        self._find(ref)
        self.files[f"{ref}:{path}"] = data

    def screenshot(self, ref: str) -> bytes:
        self._note("screenshot", ref)
        return b"\x89PNG fake"

    def console_log(self, ref: str, max_bytes: int = 65536) -> bytes:
        self._note("console_log", ref, max_bytes)
        self._find(ref)
        return b"Debian GNU/Linux 12 web ttyS0\r\n"

    def open_stream(self, kind: str, ref: str, port: int | None = None) -> socket.socket:
        self._note("open_stream", kind, ref, port)
        ours, theirs = socket.socketpair()
        self.streams.append(theirs)
        return ours

    def address_of(self, ref: str) -> str:
        self._note("address_of", ref)
        return "10.9.0.5"

    def install_tools(self, ref: str) -> Task:
        self._note("install_tools", ref)
        return task("tools.install")

    # -- stock and host

    def build_image(self, request: BuildImage) -> Task:
        self._note("build_image", request)
        self.images.append(Image(name=request.name or request.recipe, recipe=request.recipe, created_at=NOW))
        return self.running[0] if self.running else task("image.build", request.recipe)

    def import_image(self, request: ImportImage) -> Task:
        self._note("import_image", request)
        self.images.append(Image(name=request.name or Path(request.path).stem, recipe="import", created_at=NOW))
        return task("image.import")

    def list_images(self) -> list[Image]:
        self._note("list_images")
        return list(self.images)

    def remove_image(self, name: str) -> None:
        self._note("remove_image", name)
        if name not in [image.name for image in self.images]:
            raise NotFoundError(f"There is no image {name!r}.")

    def create_network(self, request: CreateNetwork) -> Network:
        self._note("create_network", request)
        network = Network.model_validate(request.model_dump())
        self.networks.append(network)
        return network

    def list_networks(self) -> list[Network]:
        self._note("list_networks")
        return list(self.networks)

    def show_network(self, name: str) -> Network:
        self._note("show_network", name)
        found = next((network for network in self.networks if network.name == name), None)
        if found is None:
            raise NotFoundError(f"There is no port group {name!r}.")
        return found

    def change_network(self, name: str, request: ChangeNetwork) -> Network:
        self._note("change_network", name, request)
        return self.show_network(name)

    def remove_network(self, name: str) -> None:
        self._note("remove_network", name)

    def set_pool(self, ref: str, request: SetPool) -> PoolView:
        self._note("set_pool", ref, request)
        vm = self._find(ref)
        state = PoolState.FILLING if vm.frozen else PoolState.WAITING
        return PoolView(vm_id=vm.id, vm=vm.name, state=state, size=request.size, ready=0, taken=0)

    def list_pools(self) -> list[PoolView]:
        self._note("list_pools")
        return list(self.pools)

    def remove_pool(self, ref: str) -> None:
        self._note("remove_pool", ref)
        self._find(ref)

    def list_users(self) -> list[UserView]:
        self._note("list_users")
        return list(self.users)

    def add_user(self, request: AddUser) -> Credentials:
        self._note("add_user", request)
        return Credentials(name=request.name, password=None if request.password else "made-here")

    def remove_user(self, name: str) -> None:
        self._note("remove_user", name)

    def set_password(self, name: str, password: str | None = None) -> Credentials:
        self._note("set_password", name, password)
        return Credentials(name=name, password=None if password else "made-here")

    def set_role(self, name: str, role: Role) -> UserView:
        self._note("set_role", name, role)
        return UserView(name=name, role=role, created_at=NOW, password_changed_at=NOW)

    def unlock_user(self, name: str) -> UserView:
        self._note("unlock_user", name)
        return UserView(name=name, role=Role.OPERATOR, created_at=NOW, password_changed_at=NOW)

    def vsphere(self) -> VsphereView:
        self._note("vsphere")
        return self.vsphere_view

    def set_vsphere(self, request: SetVsphere) -> VsphereView:
        self._note("set_vsphere", request)
        return self.vsphere_view

    def tree(self) -> list[TreeNode]:
        self._note("tree")
        leaf = TreeNode(id="id-c", name="web-2-1", state="frozen", workflow="live")
        middle = TreeNode(id="id-b", name="web-2", state="running", workflow="live", children=(leaf,))
        other = TreeNode(id="id-d", name="web-3", state="off", workflow="frozen")
        return [TreeNode(id="id-a", name="web", state="running", children=(middle, other))]

    def page_sharing(self) -> PageSharingView:
        self._note("page_sharing")
        return self.sharing

    def set_page_sharing(self, mode: PageSharing) -> Task:
        self._note("set_page_sharing", mode)
        self.sharing = self.sharing.changed(mode=mode)
        return task("host.page-sharing", result={"mode": mode.value})

    def host_view(self) -> HostView:
        self._note("host_view")
        return HostView(
            version="0",
            state_dir="/s",
            pid=1,
            uid=0,
            privileged=True,
            qemu_version="7.2.22",
            accelerator="tcg",
            vms_total=1,
            vms_on=1,
            settings={},
        )

    def doctor(self) -> list[CheckView]:
        self._note("doctor")
        return self.checks

    def selftest(self) -> Task:
        self._note("selftest")
        checks = [CheckView(name="live clone", status="ok", found="checksums are equal").model_dump()]
        return task("doctor.selftest", result=checks)

    # -- tasks and events

    def get_task(self, task_id: str, wait_s: float = 0.0, since: int | None = None) -> Task:
        self._note("get_task", task_id, wait_s)
        if self.running and self.running[0].id == task_id:
            return self.running[0]
        if task_id not in self.known_tasks:
            raise NotFoundError(f"There is no task {task_id!r}.")
        return self.known_tasks[task_id]

    def wait_task(
        self, task: Task, on_update: Callable[[Task], None] | None = None, timeout_s: float | None = None
    ) -> Task:
        self._note("wait_task", task.id)
        for newer in self.running or [task]:
            if on_update is not None:
                on_update(newer)
        return self.running[-1] if self.running else task

    def finish_task(self, task: Task | str, timeout_s: float | None = None) -> Any:
        assert isinstance(task, Task)
        self._note("finish_task", task.id)
        return task.result

    def list_tasks(self) -> list[Task]:
        self._note("list_tasks")
        return list(self.known_tasks.values())

    def cancel_task(self, task_id: str) -> Task:
        self._note("cancel_task", task_id)
        return self.known_tasks.get(task_id) or task("clone", id=task_id)

    def events(self, since: int | None = None, follow: bool = False) -> Iterator[Event]:
        self._note("events", since, follow)
        yield from self.happened


def setup(client: FakeClient, *, terminal: bool | None = False, width: int = 100) -> Setup:
    """Connects to the fake, in a terminal or not."""

    def output(**options: Any) -> Output:
        return Output(terminal=terminal, width=width, **options)

    return Setup(connect=lambda state, start: cast("Client", client), output=output, now=lambda: NOW)


def run(
    client: FakeClient,
    *args: str,
    terminal: bool | None = False,
    width: int = 100,
    stdin: bytes | None = None,
    env: dict[str, str] | None = None,
) -> Result:
    """One run of the program."""
    runner = CliRunner(env={"RAMET_STATE": None, "RAMET_DEBUG": None, "NO_COLOR": None, **(env or {})})
    return runner.invoke(
        application, args, prog_name="ramet", input=stdin, obj=setup(client, terminal=terminal, width=width)
    )


def said(text: str, error: bool = False, exit_code: int = 0, signal: int | None = None) -> ExecResult:
    """What a command in the guest printed."""
    encoded = base64.b64encode(text.encode()).decode()
    streams = {"stderr_base64" if error else "stdout_base64": encoded}
    return ExecResult(exit_code=exit_code, signal=signal, **streams)


def steps(*names: str) -> tuple[Step, ...]:
    return tuple(Step(name=name, started_ms=0, took_ms=12.0) for name in names)
