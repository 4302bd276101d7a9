"""What else the daemon remembers: images, port groups, tasks, events, journal entries."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from ramet.model.base import Model
from ramet.model.units import Cidr, Name, new_id


class Image(Model):
    """Something a VM can start from. `layers` are immutable layers of the layer store, one a disk."""

    name: Name
    recipe: str
    """'micro', 'debian', or 'import'."""
    layers: tuple[str, ...] = ()
    sizes_bytes: tuple[int, ...] = ()
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    memory_mib: int = 512
    firmware: Literal["bios", "uefi"] = "bios"
    sha256: dict[str, str] = Field(default_factory=dict)
    created_at: float = 0.0


class Network(Model):
    """A port group: a bridge in the daemon's namespace."""

    name: Name
    cidr: Cidr | None = None
    dhcp: bool = False
    nat: bool = False
    isolated: bool = False
    fenced: bool = False
    """Each VM keeps its source's MAC and address, inside a fence of its own."""
    bridge: str = ""
    """Interface name, at most 15 characters; set by the network room."""


class TaskState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (TaskState.SUCCESS, TaskState.ERROR, TaskState.CANCELLED)


class Step(Model):
    name: str
    started_ms: float
    """Since the task's start."""
    took_ms: float | None = None


class Task(Model):
    id: str = Field(default_factory=new_id)
    kind: str
    """Verb of the operation: 'clone', 'image.build', 'vm.start', …"""
    target: str
    """Name of what it works on."""
    vm_id: str | None = None
    state: TaskState = TaskState.QUEUED
    progress_percent: float = 0.0
    doing: str = ""
    steps: tuple[Step, ...] = ()
    result: Any = None
    error: dict[str, Any] | None = None
    cancellable: bool = False
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    by_uid: int | None = None
    version: int = 0
    """Grows with every change: wait for one that is newer than the last seen."""


class Event(Model):
    seq: int = 0
    at: float
    kind: str
    """'vm.created', 'vm.state', 'vm.cloned', 'vm.removed', 'task.state', 'host.warning', …"""
    vm_id: str | None = None
    vm_name: str | None = None
    message: str
    fields: dict[str, Any] = Field(default_factory=dict)


class JournalEntry(Model):
    """Written before a multi-step operation, erased after it: what a crash leaves to finish or undo."""

    id: str = Field(default_factory=new_id)
    kind: str
    """create, start, stop, clone, freeze, thaw, suspend, resume, remove, flatten or image."""
    vm_id: str | None = None
    at: float
    detail: dict[str, Any] = Field(default_factory=dict)
