"""One task in the schema's words: TaskInfo, from what the host says of it and what the surface knows besides."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Protocol

from ramet.errors import InternalError, RametError, from_dict
from ramet.model.base import Model
from ramet.model.host import Task, TaskState
from ramet.vsphere import ids
from ramet.vsphere.core.faults import fault_of, words_of
from ramet.vsphere.inventory.shape import made, utc
from ramet.vsphere.types import NAMESPACE, Support, is_a, vim, vmodl

_METHODS = {
    "clone": "InstantClone_Task",
    "vm.create": "CreateVM_Task",
    "vm.copy": "CloneVM_Task",
    "vm.start": "PowerOnVM_Task",
    "vm.resume": "PowerOnVM_Task",
    "vm.stop": "PowerOffVM_Task",
    "vm.restart": "ResetVM_Task",
    "vm.suspend": "SuspendVM_Task",
    "vm.remove": "Destroy_Task",
    "vm.identify": "CustomizeGuest_Task",
    "tools.install": "UpgradeTools_Task",
}
"""Of tasks that were begun elsewhere: by the command line, or by the host itself."""
OWN = "vsphere."
"""Kinds of tasks that this surface began are its methods' names after this."""
_STATES = {
    TaskState.QUEUED: "queued",
    TaskState.RUNNING: "running",
    TaskState.SUCCESS: "success",
    TaskState.ERROR: "error",
    TaskState.CANCELLED: "error",
}


class FaultOf(Protocol):
    """Says an error of the host in the API's words; None for a bug of ours."""

    def __call__(self, exc: BaseException, /) -> Any: ...


class TaskNote(Model):
    """What is kept of a task, once it has ended, beside the host's own record."""

    id: str
    name: str
    """Of the method, on the wire."""
    entity: str
    """Its moid."""
    entity_type: str
    entity_name: str = ""
    user: str = ""
    result_type: str | None = None
    result_moid: str | None = None
    """Of a result that is a managed object."""
    failed: bool = False
    """The host's work succeeded, and what was to follow did not."""


@dataclass
class Shown:
    """What the surface knows of a task that a client began."""

    note: TaskNote
    fault_of: FaultOf = fault_of
    finishing: bool = False
    """Something is to follow the host's work before the task is over."""
    ended: bool = False
    """The host's work has ended, and what follows it has begun."""
    value: Any = None
    fault: Any = None


def info(task: Task, shown: Shown | None) -> Any:
    """The TaskInfo."""
    state = state_of(task, shown)
    note = shown.note if shown is not None else note_of(task)
    method, entity = method_of(note.name), reference(note.entity_type, note.entity)
    ended = state in ("success", "error")
    return made(
        vim.TaskInfo,
        key=ids.task_moid(task.id),
        task=vim.Task(ids.task_moid(task.id)),
        name=method,
        descriptionId=description_id(note.entity_type, method, task.kind),
        description=_doing(task) if task.doing and not ended else None,
        entity=entity if is_a(type(entity), vim.ManagedEntity) else None,
        entityName=note.entity_name,
        state=state,
        cancelled=task.state is TaskState.CANCELLED,
        cancelable=task.cancellable,
        error=error_of(task, shown) if state == "error" else None,
        result=result_of(task, shown) if state == "success" else None,
        progress=progress_of(task, state),
        reason=_reason(task, note),
        queueTime=utc(task.created_at),
        startTime=utc(task.started_at) if task.started_at is not None else None,
        completeTime=utc(task.ended_at) if ended and task.ended_at is not None else None,
        eventChainId=event_chain(task.id),
    )


def state_of(task: Task, shown: Shown | None) -> str:
    """What is to follow the host's work belongs to the task."""
    if task.state is not TaskState.SUCCESS or shown is None:
        return _STATES[task.state]
    if shown.finishing:
        return "running"
    return "error" if shown.fault is not None or shown.note.failed else "success"


def progress_of(task: Task, state: str) -> int | None:
    return None if state == "error" else 100 if state == "success" else min(99, int(task.progress_percent))


def error_of(task: Task, shown: Shown | None) -> Any:
    """Never nothing: clients raise what they find here."""
    if shown is not None and shown.fault is not None:
        return shown.fault
    error: RametError = from_dict(task.error) if task.error else InternalError("The operation failed.")
    said = (shown.fault_of if shown is not None else fault_of)(error)
    if said is None:
        said = vmodl.fault.SystemError(reason=error.message, msg=words_of(error))
    return said


def result_of(task: Task, shown: Shown | None) -> Any:
    """What the method returns; of a clone or a new VM, the VM."""
    if shown is not None and shown.value is not None:
        return shown.value
    note = shown.note if shown is not None else None
    if note is not None and note.result_moid is not None and note.result_type is not None:
        return reference(note.result_type, note.result_moid)
    if task.kind in ("clone", "vm.create") and task.result:
        made = task.result[0] if isinstance(task.result, list) else task.result
        if isinstance(made, dict) and isinstance(made.get("id"), str):
            return vim.VirtualMachine(ids.vm_moid(made["id"]))
    return None


def note_of(task: Task) -> TaskNote:
    """Of a task that no client of this surface began."""
    name = task.kind.removeprefix(OWN) if task.kind.startswith(OWN) else _METHODS.get(task.kind, "")
    if task.vm_id is not None:
        entity, entity_type = ids.vm_moid(task.vm_id), "VirtualMachine"
    else:
        entity, entity_type = ids.DATACENTER, "Datacenter"
    return TaskNote(id=task.id, name=name, entity=entity, entity_type=entity_type, entity_name=task.target)


def reference(type_name: str, moid: str) -> Any:
    """Of an object that may be gone."""
    return Support.GetWsdlType(NAMESPACE, type_name)(moid)


def method_of(name: str) -> Any:
    """As the registry has it; None for a task that stands for no method."""
    try:
        return Support.GetWsdlMethod(NAMESPACE, name) if name else None
    except KeyError:
        return None


def description_id(entity_type: str, method: Any, kind: str) -> str:
    """'VirtualMachine.instantClone': what the descriptions of TaskManager are found by."""
    if method is None:
        return kind.removeprefix(OWN) if kind.startswith(OWN) else f"ramet.{kind}"
    name = method.info.name
    return f"{entity_type}.{name[0].lower()}{name[1:]}"


def event_chain(task_id: str) -> int:
    """What a task and its events have in common."""
    return zlib.crc32(task_id.encode()) & 0x7FFFFFFF


def _doing(task: Task) -> Any:
    return made(vmodl.LocalizableMessage, key=f"ramet.{task.kind}", message=task.doing)


def _reason(task: Task, note: TaskNote) -> Any:
    if note.user:
        return made(vim.TaskReasonUser, userName=note.user)
    if task.by_uid is not None:
        return made(vim.TaskReasonUser, userName="root" if task.by_uid == 0 else f"uid {task.by_uid}")
    return vim.TaskReasonSystem()
