"""Trying a change in a clone: what is asked, and what came of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ramet.model.base import Model
from ramet.model.units import Name

TRY_NETWORK = "try"
"""The isolated port group that is made for clones that are tried in."""
TRY_MARK = "ramet.try"
"""A configuration key of clones that are to be removed: guests cannot read it."""
LONGEST_TRY_S = 7 * 86400.0


class TryCommand(Model):
    """Clone a VM, run a command in the clone, tell what changed, and remove the clone."""

    argv: tuple[str, ...] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict)
    network: Name = TRY_NETWORK
    """The clone's cards are on this port group, which is made, isolated, when there is none of that name."""
    name: Name | None = None
    """Of the clone; None makes one up."""
    keep: bool = False
    """The clone stays."""
    timeout_s: float = Field(default=3600.0, gt=0, le=LONGEST_TRY_S)
    """The command is killed then, and its changes are told all the same."""


class FileChange(Model):
    path: str
    change: Literal["created", "changed", "deleted"]
    kind: Literal["file", "folder", "link", "other"]
    size_bytes: int | None = None
    """As it is after, or was before it was deleted; None for what is no file."""


class PackageChange(Model):
    name: str
    change: Literal["installed", "upgraded", "downgraded", "removed", "changed"]
    """'changed': its version is another and cannot be compared, or its state, like half-configured."""
    before: str | None = None
    after: str | None = None
    """Versions; with the state where that is not plainly installed."""


class ServiceChange(Model):
    name: str
    change: Literal["started", "stopped", "failed", "restarted"]
    state: str
    """As the service manager puts it: 'active (running)'."""


class PortChange(Model):
    protocol: Literal["tcp", "udp"]
    address: str
    port: int = Field(ge=0, le=65535)
    change: Literal["opened", "closed"]
    process: str | None = None
    """Name of one that holds an opened port."""


class Changes(Model):
    """What is different in the guest after the command. Long lists are cut; the counts are of everything."""

    files: tuple[FileChange, ...] = ()
    files_created: int = 0
    files_changed: int = 0
    files_deleted: int = 0
    files_limit: int | None = None
    """There are more files than these, and the rest was not compared."""
    packages: tuple[PackageChange, ...] = ()
    services: tuple[ServiceChange, ...] = ()
    ports: tuple[PortChange, ...] = ()

    @property
    def is_empty(self) -> bool:
        counts = self.files_created + self.files_changed + self.files_deleted
        return not (counts or self.packages or self.services or self.ports)


class TryTimings(Model):
    """Milliseconds. `total` runs from the request accepted to the clone removed, or left alone when it is kept."""

    clone: float = 0.0
    stun: float = 0.0
    """How long the source stood still; within `clone`."""
    guest: float = 0.0
    """Until the clone's guest answered."""
    before: float = 0.0
    """The look at what there was."""
    command: float = 0.0
    after: float = 0.0
    remove: float = 0.0
    total: float = 0.0


class TryReport(Model):
    """The result of a trial, whatever the command's exit status."""

    source: str
    clone: str
    clone_id: str
    kept: bool
    network: str | None
    """Where the clone's cards were; None: on no port group, as this host has none."""
    exit_code: int
    """128 and the signal's number when a signal ended the command; 124 when its time was over."""
    signal: int | None = None
    timed_out: bool = False
    changes: Changes | None = None
    changes_problem: str | None = None
    """Why `changes` is None, or not all."""
    warnings: tuple[str, ...] = ()
    timings_ms: TryTimings = TryTimings()
