"""What the API asks of the host: every method that a route calls, and nothing else.

``ramet.host.service.Host`` fits this protocol. A `ref` is a VM's name, id, or the unique beginning of its id;
NotFoundError for one that is not there. Methods that return a `Task` have checked what can be checked at once and raise
what they find (UsageError, ConflictError, StateError, BusyError, CapacityError, …): what goes wrong later is the
task's error. `by_uid` is the caller's user id on this host. Arguments come by position.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Literal, Protocol

from ramet.host.events import EventLog
from ramet.host.tasks import TaskManager
from ramet.model.access import AddUser, Credentials, Role, SetVsphere, UserView, VsphereView
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.host import Image, Network, Task
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
from ramet.model.sharing import PageSharingView, SetPageSharing
from ramet.model.trying import TryCommand
from ramet.model.views import CheckView, CloneForecast, ExecResult, HostView, TreeNode, VmView

StreamKind = Literal["tcp", "console", "vnc"]


class Memory(Protocol):
    """The ledger of memory."""

    async def view(self, refs: Sequence[str], now: bool, /) -> HostMemory: ...

    def history(self, ref: str | None, span: Literal["hour", "day"], /) -> MemoryHistory: ...


class Metrics(Protocol):
    def text(self) -> bytes: ...


class Sharing(Protocol):
    """Page sharing between VMs that are not related."""

    async def view(self) -> PageSharingView: ...

    async def set(self, request: SetPageSharing, by_uid: int | None, /) -> Task: ...


class Access(Protocol):
    """Users, and the listener for vSphere clients."""

    def list_users(self) -> list[UserView]: ...

    async def add_user(self, request: AddUser, by_uid: int | None, /) -> Credentials: ...

    async def remove_user(self, name: str, by_uid: int | None, /) -> None: ...

    async def set_password(self, name: str, password: str | None, by_uid: int | None, /) -> Credentials: ...

    async def set_role(self, name: str, role: Role, by_uid: int | None, /) -> UserView: ...

    async def unlock_user(self, name: str, by_uid: int | None, /) -> UserView: ...

    def vsphere(self) -> VsphereView: ...

    async def set_vsphere(self, request: SetVsphere, by_uid: int | None, /) -> VsphereView: ...


class Host(Protocol):
    """The engine behind the API."""

    @property
    def tasks(self) -> TaskManager: ...

    @property
    def events(self) -> EventLog: ...

    @property
    def memory(self) -> Memory: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def sharing(self) -> Sharing: ...

    @property
    def access(self) -> Access: ...

    # VMs

    async def create_vm(self, request: CreateVm, by_uid: int | None, /) -> Task: ...

    async def copy_vm(self, ref: str, request: CopyVm, by_uid: int | None, /) -> Task: ...

    async def list_vms(self, unregistered: bool, /) -> list[VmView]: ...

    async def show_vm(self, ref: str, /) -> VmView: ...

    async def start_vm(self, ref: str, /) -> Task: ...

    async def stop_vm(self, ref: str, request: StopVm, /) -> Task: ...

    async def restart_vm(self, ref: str, hard: bool, /) -> Task: ...

    async def suspend_vm(self, ref: str, /) -> Task: ...

    async def resume_vm(self, ref: str, /) -> Task: ...

    async def freeze_vm(self, ref: str, /) -> Task: ...

    async def thaw_vm(self, ref: str, /) -> Task: ...

    async def change_vm(self, ref: str, request: ChangeVm, /) -> VmView: ...

    async def remove_vm(self, ref: str, force: bool, /) -> Task: ...

    async def unregister_vm(self, ref: str, /) -> None: ...

    async def register_vm(self, request: RegisterVm, /) -> VmView: ...

    async def clone_vm(self, ref: str, request: CloneVm, by_uid: int | None, /) -> Task:
        """The task's result is a list of `CloneResult`."""

    async def forecast_clone(self, ref: str, request: CloneVm, /) -> CloneForecast:
        """The dry run: every check, no change."""

    # Pools

    async def set_pool(self, ref: str, request: SetPool, /) -> PoolView: ...

    async def remove_pool(self, ref: str, /) -> None: ...

    async def list_pools(self) -> list[PoolView]: ...

    async def identify_vm(self, ref: str, bare: bool, /) -> Task: ...

    # Hardware

    async def change_nic(self, ref: str, request: NicChange, /) -> VmView: ...

    async def add_nic(self, ref: str, request: NicRequest, /) -> VmView: ...

    async def remove_nic(self, ref: str, nic_id: str, /) -> VmView: ...

    async def add_disk(self, ref: str, request: AddDisk, /) -> VmView: ...

    async def grow_disk(self, ref: str, disk_id: str, request: GrowDisk, /) -> VmView: ...

    async def remove_disk(self, ref: str, disk_id: str, /) -> VmView: ...

    async def export_disk(self, ref: str, disk_id: str, request: ExportDisk, /) -> Task: ...

    # Inside the guest

    async def exec_in_vm(self, ref: str, request: Exec, /) -> ExecResult: ...

    async def wait_agent(self, ref: str, timeout_s: float, /) -> None: ...

    def follow_exec(self, ref: str, request: FollowExec, /) -> AsyncGenerator[ExecEvent, None]:
        """What it raises before its first event becomes the answer. Closing it kills the command."""

    async def write_exec(self, exec_id: str, data: bytes, end: bool, /) -> None: ...

    async def signal_exec(self, exec_id: str, name: str, /) -> None: ...

    async def try_command(self, ref: str, request: TryCommand, by_uid: int | None, /) -> Task:
        """The task's result is a `TryReport`."""

    def task_output(self, task_id: str, /) -> AsyncGenerator[ExecEvent, None]: ...

    def read_file(self, ref: str, path: str, /) -> AsyncIterator[bytes]:
        """An async generator; what it raises before its first chunk becomes the answer."""

    async def write_file(self, ref: str, path: str, data: AsyncIterator[bytes], mode: int, /) -> None: ...

    async def screenshot(self, ref: str, /) -> bytes:
        """PNG."""

    async def console_log(self, ref: str, max_bytes: int, /) -> bytes: ...

    async def open_stream(self, kind: StreamKind, ref: str, port: int | None, /) -> socket.socket:
        """A connected socket; the caller owns and closes it."""

    async def address_of(self, ref: str, /) -> str:
        """The guest's IPv4 address; StateError when none is known."""

    async def install_tools(self, ref: str, /) -> Task: ...

    # Networks and images

    async def create_network(self, request: CreateNetwork, /) -> Network: ...

    async def list_networks(self) -> list[Network]: ...

    async def show_network(self, name: str, /) -> Network: ...

    async def change_network(self, name: str, request: ChangeNetwork, /) -> Network: ...

    async def remove_network(self, name: str, /) -> None: ...

    async def build_image(self, request: BuildImage, /) -> Task: ...

    async def import_image(self, request: ImportImage, /) -> Task: ...

    async def list_images(self) -> list[Image]: ...

    async def remove_image(self, name: str, /) -> None: ...

    # The host

    async def tree(self) -> list[TreeNode]: ...

    async def host_view(self) -> HostView: ...

    async def doctor(self) -> list[CheckView]: ...

    async def selftest(self) -> Task:
        """The task's result is a list of `CheckView`."""
