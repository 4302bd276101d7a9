"""com.vmware.cis: session and tasks; and what the server says of itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ramet.vsphere.access.sessions import Sessions, UserSession
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.errors import ApiError, error_of
from ramet.vsphere.rest.structs import Secret, Struct
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.types import vim, wire_name

_STATUS = {"queued": "PENDING", "running": "RUNNING", "success": "SUCCEEDED", "error": "FAILED"}


class SessionInfo(Struct):
    vapi = "com.vmware.cis.session.info"
    user: str
    created_time: datetime
    last_accessed_time: datetime


class Message(Struct):
    vapi = "com.vmware.vapi.std.localizable_message"
    id: str
    default_message: str
    args: list[str]


class Progress(Struct):
    vapi = "com.vmware.cis.task.progress"
    total: int
    completed: int
    message: Message


class DynamicId(Struct):
    vapi = "com.vmware.vapi.std.dynamic_ID"
    type: str
    id: str


class TaskInfo(Struct):
    vapi = "com.vmware.cis.task.info"
    progress: Progress | None = None
    result: str | None = None
    description: Message
    service: str
    operation: str
    target: DynamicId | None = None
    status: str
    cancelable: bool
    error: Any = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    user: str | None = None


class TaskFilter(Struct):
    vapi = "com.vmware.cis.tasks.filter_spec"
    tasks: list[str] | None = None
    services: list[str] | None = None
    operations: list[str] | None = None
    status: list[str] | None = None
    targets: list[DynamicId] | None = None
    users: list[str] | None = None


class TaskGet(Struct):
    vapi = "com.vmware.cis.tasks.get_spec"
    return_all: bool | None = None
    exclude_result: bool | None = None


class Version(Struct):
    vapi = "com.vmware.appliance.system.version.version_struct"
    version: str
    product: str
    build: str
    type: str
    summary: str
    releasedate: str
    install_time: str


def _session(ask: Ask) -> UserSession:
    session = ask.call.session
    if not isinstance(session, UserSession):
        raise ApiError("unauthenticated", "Authentication required.")
    return session


async def create_session(ask: Ask) -> Secret:
    """Whoever asks has been let in already, by what the request carries."""
    return Secret(_session(ask).secret)


async def get_session(ask: Ask) -> SessionInfo:
    session = _session(ask)
    return SessionInfo(
        user=session.user_name,
        created_time=datetime.fromtimestamp(session.login_at, UTC),
        last_accessed_time=datetime.fromtimestamp(session.last_active_at, UTC),
    )


async def delete_session(ask: Ask) -> None:
    ask.world.part(Sessions).end(_session(ask))


async def list_tasks(
    ask: Ask, filter_spec: TaskFilter | None = None, result_spec: TaskGet | None = None
) -> dict[str, TaskInfo]:
    wanted, found = filter_spec or TaskFilter(), {}
    async for mo in ask.each(vim.Task):
        if wanted.tasks is None or mo.moid in wanted.tasks:
            info = await _task(ask, mo)
            if info is not None and _matches(info, wanted):
                found[mo.moid] = info
    return found


def _matches(one: TaskInfo, wanted: TaskFilter) -> bool:
    sieves: tuple[tuple[list[Any] | None, Any], ...] = (
        (wanted.services, one.service),
        (wanted.operations, one.operation),
        (wanted.status, one.status),
        (wanted.targets, one.target),
        (wanted.users, one.user),
    )
    return all(asked is None or value in asked for asked, value in sieves)


async def get_task(ask: Ask, task: str, spec: TaskGet | None = None) -> TaskInfo:
    found = await _task(ask, ask.find(task, vim.Task))
    if found is None:
        raise ApiError("not_found", f"There is no task {task!r}.")
    return found


async def cancel_task(ask: Ask, task: str) -> None:
    await ask.do(ask.find(task, vim.Task), "CancelTask")


async def _task(ask: Ask, mo: Mo) -> TaskInfo | None:
    info = (await ask.read(mo, "info")).get("info")
    if info is None:
        return None
    operation = str(info.descriptionId or "").rpartition(".")[2] or mo.moid
    described = Message(id=str(info.descriptionId or ""), default_message=operation, args=[])
    status = _STATUS[str(info.state)]
    done = 100 if status == "SUCCEEDED" else info.progress
    return TaskInfo(
        progress=None if done is None else Progress(total=100, completed=done, message=described),
        result=getattr(info.result, "_moId", None),
        description=described,
        service="com.vmware.vcenter.VM",
        operation=operation,
        target=None if info.entity is None else DynamicId(type=wire_name(type(info.entity)), id=info.entity._moId),
        status=status,
        cancelable=bool(info.cancelable),
        error=None if info.error is None else error_of(info.error),
        start_time=info.startTime,
        end_time=info.completeTime,
        user=getattr(info.reason, "userName", None),
    )


async def get_version(ask: Ask) -> Version:
    _session(ask)
    about = (await ask.content()).about
    return Version(
        version=about.version,
        product=about.name,
        build=about.build,
        type=about.apiType,
        summary=about.fullName,
        releasedate="",
        install_time="",
    )


_SESSION, _OLD = "com.vmware.cis.session", "/com/vmware/cis/session"
OPERATIONS = (
    Operation.of(
        _SESSION, "create", "POST", "/session", create_session, old_path=_OLD, is_anonymous=True, created=True
    ),
    Operation.of(_SESSION, "get", "GET", "/session", get_session, old_path=_OLD),
    Operation.of(_SESSION, "delete", "DELETE", "/session", delete_session, old_path=_OLD),
    Operation.of("com.vmware.cis.tasks", "list", "GET", "/cis/tasks", list_tasks),
    Operation.of("com.vmware.cis.tasks", "get", "GET", "/cis/tasks/{task}", get_task),
    Operation.of("com.vmware.cis.tasks", "cancel", "POST", "/cis/tasks/{task}?action=cancel", cancel_task),
    Operation.of("com.vmware.appliance.system.version", "get", "GET", "/appliance/system/version", get_version),
)
