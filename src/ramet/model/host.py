"""What else the daemon remembers: images, port groups, tasks, events, journal entries."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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


class EgressRule(Model):
    """One kind of traffic that may, or may not, leave a port group: where to, which protocol, which ports there."""

    action: Literal["allow", "deny"] = "allow"
    cidr: str = "0.0.0.0/0"
    protocol: Literal["tcp", "udp", "icmp"] | None = None
    """None stands for every protocol."""
    ports: tuple[int, int] | None = None
    """First and last port of the destination; None stands for all."""

    @field_validator("cidr")
    @classmethod
    def _cidr(cls, value: str) -> str:
        return str(ipaddress.IPv4Network(value, strict=False))

    @model_validator(mode="after")
    def _ports(self) -> EgressRule:
        if self.ports is None:
            return self
        if self.protocol not in ("tcp", "udp"):
            raise ValueError("ports belong to tcp or udp")
        if not 1 <= self.ports[0] <= self.ports[1] <= 65535:
            raise ValueError(f"{self.ports[0]}-{self.ports[1]} is not a range of ports")
        return self

    @property
    def text(self) -> str:
        """As it is written on the command line: 10.0.0.0/8:443/tcp."""
        first, last = self.ports or (0, 0)
        ports = f":{first}" if first == last else f":{first}-{last}"
        return f"{self.cidr}{ports if self.ports else ''}{f'/{self.protocol}' if self.protocol else ''}"


class Network(Model):
    """A port group: a bridge in the daemon's namespace."""

    name: Name
    cidr: Cidr | None = None
    """Of a fenced one: where the translated addresses come from."""
    dhcp: bool = False
    """Of a fenced one: DHCP is answered inside the fences."""
    nat: bool = False
    isolated: bool = False
    fenced: bool = False
    """Each VM keeps its source's MAC and address, inside a fence of its own."""
    uplink: str | None = Field(default=None, max_length=32, pattern=r"^[^\s/.]{1,15}(\.[0-9]{1,4})?$")
    """A host's interface or bridge, with .VLAN or without, that the port group's frames reach."""
    egress_default: Literal["allow", "deny"] = "allow"
    egress: tuple[EgressRule, ...] = Field(default=(), max_length=256)
    """What leaves by NAT or uplink: refused if a 'deny' matches, else let out if an 'allow' does, else the default."""
    bridge: str = ""
    """Interface name, at most 15 characters; set by the network room."""

    @property
    def has_egress_rules(self) -> bool:
        return self.egress_default == "deny" or any(rule.action == "deny" for rule in self.egress)


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
    key: str | None = None
    """The caller's: asking again with it finds this task instead of beginning another."""
    digest: str | None = None
    """Of the request that the key came with."""
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
