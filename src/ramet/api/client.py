"""The typed client of the native API.

    from ramet.api import Client

    with Client.connect() as client:                          # finds the daemon, or starts it
        task = client.clone_vm("web", CloneVm(names=("web-1",)))
        task = client.wait_task(task)
        for clone in client.clone_results(task):
            print(clone.name, clone.timings_ms.stun)

Methods mirror the API's operations, take and return the types of ``ramet.model``, and raise the errors of
``ramet.errors``: those of the daemon as it raised them, PeerError when no daemon answers, DeadlineError when it does
not answer in time. Blocking, and for one thread. Importing this module is cheap: httpx is loaded with the first call.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any, Literal, Self

from ramet.api.access_calls import AccessCalls
from ramet.api.calls import quote
from ramet.api.launch import start_daemon as launch_daemon
from ramet.api.wire import Wire
from ramet.errors import DeadlineError, PeerError, from_dict
from ramet.model.base import Model
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.host import Event, Image, Network, Task, TaskState
from ramet.model.memory import HostMemory, MemoryHistory
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
from ramet.model.sharing import PageSharing, PageSharingView, SetPageSharing
from ramet.model.trying import TryCommand
from ramet.model.views import CheckView, CloneForecast, CloneResult, ExecResult, HostView, TreeNode, VmView

LONG_POLL_S = 30.0
_RECONNECT_S = 15.0
_STREAM_OPEN_S = 45.0
_INPUT_S = 3600.0
"""A command may take its time to read what it is given."""


def chosen_state_dir() -> Path:
    """RAMET_STATE, else /var/lib/ramet for root and the user's data folder for others."""
    from ramet.host.settings import default_state_dir

    chosen = os.environ.get("RAMET_STATE")
    return Path(chosen).expanduser() if chosen else default_state_dir()


class Client(AccessCalls):
    """A connection to one daemon. Close it, or use it as a context manager."""

    def __init__(self, socket_path: Path, timeout_s: float = 60.0) -> None:
        """`socket_path` is the API's socket. `timeout_s` bounds each answer; long waits add their own time to it."""
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        super().__init__(Wire(socket_path, timeout_s))

    @classmethod
    def connect(cls, state_dir: Path | None = None, *, start_daemon: bool = True, timeout_s: float = 60.0) -> Self:
        """The client of the daemon that serves `state_dir`, which is started when none does and `start_daemon` says so.

        PeerError when no daemon answers; what kept a new daemon from starting, as that daemon said it.
        """
        state_dir = (state_dir or chosen_state_dir()).absolute()
        socket_path = Path(os.environ.get("RAMET_SOCKET_PATH") or state_dir / "run" / "api.sock")
        if not _answers(socket_path):
            if not start_daemon:
                raise PeerError(f"No daemon serves {state_dir}.", hint="Start it with `ramet serve`.")
            launch_daemon(state_dir, lambda: _answers(socket_path))
        return cls(socket_path, timeout_s)

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # VMs

    def create_vm(self, request: CreateVm) -> Task:
        """The task's result has the VM's id."""
        return self._call(Task, "POST", "/v1/vms", request)

    def copy_vm(self, ref: str, request: CopyVm) -> Task:
        """The copy is off. The task's result has its id."""
        return self._call(Task, "POST", _vm(ref, "copy"), request)

    def list_vms(self, *, unregistered: bool = False) -> list[VmView]:
        return self._list(VmView, "/v1/vms?unregistered=true" if unregistered else "/v1/vms")

    def show_vm(self, ref: str) -> VmView:
        return self._call(VmView, "GET", _vm(ref))

    def start_vm(self, ref: str) -> Task:
        return self._call(Task, "POST", _vm(ref, "start"))

    def stop_vm(self, ref: str, request: StopVm | None = None) -> Task:
        return self._call(Task, "POST", _vm(ref, "stop"), request or StopVm())

    def restart_vm(self, ref: str, hard: bool = False) -> Task:
        return self._call(Task, "POST", _vm(ref, "restart"), query={"hard": hard})

    def suspend_vm(self, ref: str) -> Task:
        return self._call(Task, "POST", _vm(ref, "suspend"))

    def resume_vm(self, ref: str) -> Task:
        return self._call(Task, "POST", _vm(ref, "resume"))

    def freeze_vm(self, ref: str) -> Task:
        return self._call(Task, "POST", _vm(ref, "freeze"))

    def thaw_vm(self, ref: str) -> Task:
        return self._call(Task, "POST", _vm(ref, "thaw"))

    def change_vm(self, ref: str, request: ChangeVm) -> VmView:
        return self._call(VmView, "PATCH", _vm(ref), request)

    def remove_vm(self, ref: str, force: bool = False) -> Task:
        return self._call(Task, "DELETE", _vm(ref), query={"force": force})

    def unregister_vm(self, ref: str) -> None:
        """Of a VM that is off; `list_vms(unregistered=True)` has it then."""
        self._wire.json("POST", _vm(ref, "unregister"))

    def register_vm(self, request: RegisterVm) -> VmView:
        return self._call(VmView, "POST", "/v1/vms/register", request)

    def clone_vm(self, ref: str, request: CloneVm) -> Task:
        """All clones of one instant; see `clone_results` for the task's result. For a dry run: `forecast_clone`."""
        return self._call(Task, "POST", _vm(ref, "clone"), request.model_copy(update={"dry_run": False}))

    def forecast_clone(self, ref: str, request: CloneVm) -> CloneForecast:
        """Every check of a clone, and no change."""
        return self._call(CloneForecast, "POST", _vm(ref, "clone"), request.model_copy(update={"dry_run": True}))

    def identify_vm(self, ref: str, bare: bool = False) -> Task:
        """Ask a clone's guest again to take on its identity; with `bare` take the clone as it is."""
        return self._call(Task, "POST", _vm(ref, "identify"), query={"bare": bare})

    @staticmethod
    def clone_results(task: Task) -> list[CloneResult]:
        """What a successful task of `clone_vm` made."""
        return [CloneResult.model_validate(item) for item in task.result or []]

    # Pools

    def list_pools(self) -> list[PoolView]:
        return self._list(PoolView, "/v1/pools")

    def set_pool(self, ref: str, request: SetPool) -> PoolView:
        """It fills in the background; size 0 gives it up."""
        return self._call(PoolView, "PUT", _vm(ref, "pool"), request)

    def remove_pool(self, ref: str) -> None:
        self._wire.json("DELETE", _vm(ref, "pool"))

    # Devices

    def add_nic(self, ref: str, request: NicRequest) -> VmView:
        return self._call(VmView, "POST", _vm(ref, "nics"), request)

    def change_nic(self, ref: str, request: NicChange) -> VmView:
        body = request.model_dump(mode="json", exclude={"id"}, exclude_none=True)
        return self._call(VmView, "PATCH", _vm(ref, "nics", request.id), body)

    def remove_nic(self, ref: str, nic_id: str) -> VmView:
        return self._call(VmView, "DELETE", _vm(ref, "nics", nic_id))

    def add_disk(self, ref: str, request: AddDisk) -> VmView:
        return self._call(VmView, "POST", _vm(ref, "disks"), request)

    def grow_disk(self, ref: str, disk_id: str, request: GrowDisk) -> VmView:
        return self._call(VmView, "POST", _vm(ref, "disks", disk_id, "grow"), request)

    def remove_disk(self, ref: str, disk_id: str) -> VmView:
        return self._call(VmView, "DELETE", _vm(ref, "disks", disk_id))

    def export_disk(self, ref: str, disk_id: str, request: ExportDisk) -> Task:
        """The file is written by the daemon: its path is on the daemon's host, and absolute."""
        return self._call(Task, "POST", _vm(ref, "disks", disk_id, "export"), request)

    # Guests

    def exec_in_vm(self, ref: str, request: Exec) -> ExecResult:
        """Blocks until the command has ended, or its own timeout."""
        return self._call(ExecResult, "POST", _vm(ref, "exec"), request, wait_s=request.timeout_s)

    def wait_agent(self, ref: str, timeout_s: float = 60.0) -> None:
        """Returns when the guest agent answers. DeadlineError after `timeout_s`, StateError when the VM is off."""
        self._wire.json("POST", _vm(ref, "agent", "wait"), {"timeout_s": timeout_s}, wait_s=timeout_s)

    def follow_exec(self, ref: str, request: FollowExec) -> Generator[ExecEvent, None, None]:
        """A command's output while it runs, from `started` to `exited`; errors are raised. Closing it kills it.

        Input and signals go by `write_exec` and `signal_exec`, from other threads if need be.
        """
        return self._follow("POST", _vm(ref, "exec", "follow"), request)

    def write_exec(self, exec_id: str, data: bytes, end: bool = False) -> None:
        """To the standard input of a followed command, the `id` of which `started` told; at most 1 MiB at once."""
        self._wire.upload(f"/v1/execs/{quote(exec_id)}/stdin", {"end": end}, data, wait_s=_INPUT_S)

    def signal_exec(self, exec_id: str, name: str = "INT") -> None:
        self._wire.json("POST", f"/v1/execs/{quote(exec_id)}/signal", body={"signal": name})

    def try_command(self, ref: str, request: TryCommand) -> Task:
        """The task's result is a `TryReport`, its output (`task_output`) that of the command."""
        return self._call(Task, "POST", _vm(ref, "try"), request)

    def task_output(self, task_id: str) -> Generator[ExecEvent, None, None]:
        """What a trial's command prints, from the beginning to its end."""
        return self._follow("GET", f"/v1/tasks/{quote(task_id)}/output")

    def _follow(self, method: str, path: str, body: Model | None = None) -> Generator[ExecEvent, None, None]:
        data = body.model_dump(mode="json") if body is not None else None
        with closing(self._wire.follow(method, path, data)) as lines:
            for line in lines:
                event = ExecEvent.model_validate_json(line)
                if event.kind == "error":
                    raise from_dict(event.error or {})
                if event.kind != "alive":
                    yield event

    def read_file(self, ref: str, path: str) -> Iterator[bytes]:
        """Chunks of a guest's file. Errors come with the first chunk, or as PeerError when it breaks off half way."""
        return self._wire.download(_vm(ref, "file"), {"path": path})

    def write_file(self, ref: str, path: str, data: bytes | IO[bytes] | Iterable[bytes], mode: int = 0o644) -> None:
        """Write a guest's file from bytes, an open file or chunks."""
        self._wire.upload(_vm(ref, "file"), {"path": path, "mode": f"{mode & 0o7777:04o}"}, _chunks(data))

    def screenshot(self, ref: str) -> bytes:
        """PNG."""
        return self._wire.bytes(_vm(ref, "screenshot"))

    def console_log(self, ref: str, max_bytes: int = 65536) -> bytes:
        return self._wire.bytes(_vm(ref, "console"), {"max_bytes": max_bytes})

    def address_of(self, ref: str) -> str:
        return str(self._wire.json("GET", _vm(ref, "address"))["address"])

    def install_tools(self, ref: str) -> Task:
        return self._call(Task, "POST", _vm(ref, "tools"))

    def open_stream(self, kind: Literal["tcp", "console", "vnc"], ref: str, port: int | None = None) -> socket.socket:
        """A blocking socket, connected to a port of the guest, its console or its display. The caller closes it."""
        request = json.dumps({"kind": kind, "vm": ref, "port": port}).encode() + b"\n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_STREAM_OPEN_S)
            try:
                sock.connect(os.fspath(self.socket_path.with_name("streams.sock")))
                return _receive_stream(sock, request)
            except TimeoutError as exc:
                raise DeadlineError(f"The {kind} of {ref!r} did not open in time.") from exc
            except OSError as exc:
                raise PeerError(f"The daemon does not hand out streams: {exc.strerror or exc}.") from exc

    # Images and port groups

    def list_images(self) -> list[Image]:
        return self._list(Image, "/v1/images")

    def build_image(self, request: BuildImage) -> Task:
        return self._call(Task, "POST", "/v1/images/build", request)

    def import_image(self, request: ImportImage) -> Task:
        """The file is read by the daemon: its path is on the daemon's host, and absolute."""
        return self._call(Task, "POST", "/v1/images/import", request)

    def remove_image(self, name: str) -> None:
        self._wire.json("DELETE", f"/v1/images/{quote(name)}")

    def list_networks(self) -> list[Network]:
        return self._list(Network, "/v1/networks")

    def create_network(self, request: CreateNetwork) -> Network:
        return self._call(Network, "POST", "/v1/networks", request)

    def show_network(self, name: str) -> Network:
        return self._call(Network, "GET", f"/v1/networks/{quote(name)}")

    def change_network(self, name: str, request: ChangeNetwork) -> Network:
        return self._call(Network, "PATCH", f"/v1/networks/{quote(name)}", request)

    def remove_network(self, name: str) -> None:
        self._wire.json("DELETE", f"/v1/networks/{quote(name)}")

    # Tasks and events

    def list_tasks(self) -> list[Task]:
        """Newest first."""
        return self._list(Task, "/v1/tasks")

    def get_task(self, task_id: str, wait_s: float = 0.0, since: int | None = None) -> Task:
        """The task as it is; with `wait_s`, once it has ended, or has a version above `since`, or the time is over."""
        query = {"wait_s": wait_s, **({} if since is None else {"since": since})}
        return self._call(Task, "GET", f"/v1/tasks/{quote(task_id)}", query=query, wait_s=wait_s)

    def cancel_task(self, task_id: str) -> Task:
        return self._call(Task, "POST", f"/v1/tasks/{quote(task_id)}/cancel")

    def wait_task(
        self, task: Task | str, on_update: Callable[[Task], None] | None = None, timeout_s: float | None = None
    ) -> Task:
        """The task once it has ended, however. `on_update` is called with each news, the end included.

        Outlives a restart of the daemon of some seconds. DeadlineError after `timeout_s`; the task goes on then.
        """
        found = task if isinstance(task, Task) else self.get_task(task)
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        while not found.state.is_final:
            left_s = LONG_POLL_S if deadline is None else min(LONG_POLL_S, deadline - time.monotonic())
            if left_s <= 0:
                raise DeadlineError(f"The task {found.id} has not ended yet.", task=found.id)
            news = self._poll_through_restart(found, left_s, follow=on_update is not None)
            if on_update is not None and news.version != found.version:
                on_update(news)
            found = news
        return found

    def finish_task(self, task: Task | str, timeout_s: float | None = None) -> Any:
        """Wait for a task and return its result; its error is raised."""
        ended = self.wait_task(task, timeout_s=timeout_s)
        if ended.state is not TaskState.SUCCESS:
            raise from_dict(ended.error or {"message": f"The task {ended.id} failed."})
        return ended.result

    def events(self, since: int | None = 0, follow: bool = False) -> Iterator[Event]:
        """Events after `since`, oldest first; with `follow` new ones too, for ever (None: only those).

        A follower outlives a restart of the daemon of some seconds.
        """
        if not follow:
            query = {"limit": 10_000, **({} if since is None else {"since": since})}
            yield from self._list(Event, "/v1/events", query)
            return
        while True:
            query = {"follow": True, **({} if since is None else {"since": since})}
            for line in self._wire.lines("/v1/events", query):
                if line.startswith("data: "):
                    event = Event.model_validate_json(line.removeprefix("data: "))
                    since = event.seq
                    yield event
            self._wait_for_daemon()

    # Memory

    def page_sharing(self) -> PageSharingView:
        """Gain and cost of merging pages among all guests, or why there is none."""
        return self._call(PageSharingView, "GET", "/v1/host/page-sharing")

    def set_page_sharing(self, mode: PageSharing) -> Task:
        """All VMs one after the other. Raises CapacityError, PrivilegeError, UnsupportedError."""
        return self._call(Task, "PUT", "/v1/host/page-sharing", SetPageSharing(mode=mode))

    def memory(self, refs: Iterable[str] = (), now: bool = False) -> HostMemory:
        """What the daemon's ledger has, each row with its age; with `now` it measures all of it first."""
        return self._call(HostMemory, "GET", "/v1/memory", query={"vm": list(refs), "now": now})

    def memory_history(self, ref: str | None = None, span: Literal["hour", "day"] = "hour") -> MemoryHistory:
        """Of one VM, or of the host; since the daemon's start at most."""
        query = {"span": span, **({} if ref is None else {"vm": ref})}
        return self._call(MemoryHistory, "GET", "/v1/memory/history", query=query)

    def clone_memory(self, task: Task, timeout_s: float = 0.5) -> Task:
        """The task of a clone with its memory `after` the clone: that is measured a moment after the task's end.

        Returns the task as it is when that takes longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while _awaits_memory(task) and time.monotonic() < deadline:
            time.sleep(0.02)
            task = self.get_task(task.id)
        return task

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        return self._wire.bytes("/metrics").decode()

    # The host

    def tree(self) -> list[TreeNode]:
        return self._list(TreeNode, "/v1/tree")

    def host_view(self) -> HostView:
        return self._call(HostView, "GET", "/v1/host")

    def doctor(self) -> list[CheckView]:
        return self._list(CheckView, "/v1/doctor")

    def selftest(self) -> Task:
        """The task's result is a list of `CheckView`."""
        return self._call(Task, "POST", "/v1/selftest")

    # Below

    def _poll_through_restart(self, task: Task, wait_s: float, follow: bool) -> Task:
        try:
            return self.get_task(task.id, wait_s, task.version if follow else None)
        except PeerError:
            self._wait_for_daemon()
            return self.get_task(task.id)

    def _wait_for_daemon(self) -> None:
        """PeerError when none answers within some seconds."""
        deadline = time.monotonic() + _RECONNECT_S
        while not _answers(self.socket_path):
            if time.monotonic() > deadline:
                raise PeerError(f"The daemon at {self.socket_path} has gone away.", hint="Start it with `ramet serve`.")
            time.sleep(0.1)


def _awaits_memory(task: Task) -> bool:
    memories = [result.get("memory") for result in task.result or ()]
    return any(memory is not None and memory["after"] is None for memory in memories)


def _answers(socket_path: Path) -> bool:
    """Does someone listen there?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5.0)
        try:
            sock.connect(os.fspath(socket_path))
        except PermissionError as exc:
            raise PeerError(
                f"You may not use the daemon at {socket_path}.", hint="Become a member of its group, or use sudo."
            ) from exc
        except OSError:
            return False
    return True


def _receive_stream(sock: socket.socket, request: bytes) -> socket.socket:
    with suppress(ConnectionError):  # refused at once: the reason is there to be read all the same
        sock.sendall(request)
    line, fds, _, _ = socket.recv_fds(sock, 1 << 16, 1)
    while line and not line.endswith(b"\n") and (more := sock.recv(1 << 16)):
        line += more
    stream = socket.socket(fileno=fds[0]) if fds else None
    answer = json.loads(line or b"{}")
    if stream is None:
        raise from_dict(answer.get("error") or {"code": "peer", "message": "The daemon closed the connection."})
    return stream


def _chunks(data: bytes | IO[bytes] | Iterable[bytes]) -> bytes | Iterable[bytes]:
    if isinstance(data, bytes):
        return data
    if hasattr(data, "read"):
        return iter(lambda: data.read(1 << 18), b"")
    return data


def _vm(ref: str, *rest: str) -> str:
    return "/".join(["/v1/vms", quote(ref), *(quote(part) for part in rest)])
