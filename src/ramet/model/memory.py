"""The ledger of memory: who holds how much of which, and what it costs the host."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from ramet.model.base import Model


class MemoryKind(StrEnum):
    """What a process is that holds guest RAM."""

    VM = "vm"
    POOL = "pool"  # a clone that waits in a pool
    HOLDER = "holder"  # runs no guest: it keeps a moment's memory while clones are forked from it
    ZYGOTE = "zygote"  # runs no guest yet: a clone's QEMU that was started ahead


class MemoryCounters(Model):
    """Bytes. Those of several processes are the sums of theirs, so lineages add up to the host."""

    configured_bytes: int = 0
    """Memory that guests see; nothing for a process that runs no guest."""
    resident_bytes: int = 0
    """Guest RAM that is there: unique + shared."""
    unique_bytes: int = 0
    """Guest RAM that no other process maps."""
    shared_bytes: int = 0
    """Guest RAM that others map too: the same page counts in each of them."""
    common_bytes: int = 0
    """What the shared pages really take: Pss - Private. Of one process: its part."""
    saved_bytes: int = 0
    """shared - common: what the host would have to give besides, if nothing were shared."""
    overhead_bytes: int = 0
    """Of the processes apart from guest RAM: QEMU's heap, code, translated code."""
    page_tables_bytes: int = 0
    swapped_bytes: int = 0
    """Guest RAM in swap; in none of the others."""
    spent_bytes: int = 0
    """What the host gives: unique + common + overhead + page tables."""


class MemoryRow(MemoryCounters):
    """One process that holds guest RAM."""

    id: str
    name: str
    kind: MemoryKind = MemoryKind.VM
    lineage_id: str
    measured_at: float
    """Unix time."""


class LineageMemory(MemoryCounters):
    """A sharing domain: a family of clones, between which pages are shared."""

    id: str
    name: str
    """Of the first ancestor, while it is there; else of the oldest that is."""
    processes: int
    measured_at: float
    """Of the oldest of its rows."""


class HostMemory(Model):
    """Everything that was measured on this host."""

    at: float
    total_bytes: int
    """Of the host: MemTotal."""
    available_bytes: int
    """MemAvailable."""
    totals: MemoryCounters = MemoryCounters()
    lineages: tuple[LineageMemory, ...] = ()
    rows: tuple[MemoryRow, ...] = ()
    """By lineage, then by name."""
    unread: int = 0
    """Processes that were not measured yet: they are in no sum."""


class MemorySample(MemoryCounters):
    """Sums of a lineage at some time."""

    processes: int
    measured_at: float
    """Of the oldest reading in it."""
    estimated: bool = False
    """Not all of its processes were read again: the others' part of what is common was scaled to the new number."""


class CloneMemory(Model):
    """What one clone request did to the memory of its lineage: the same in the results of all of its clones."""

    before: MemorySample | None = None
    """As the ledger had it when the request came; None when nothing had been measured yet."""
    after: MemorySample | None = None
    """Measured when the clones ran. None: not measured yet; the task's record has it a moment after the task's end."""


class MemoryPoint(Model):
    """One moment of a history; bytes, to whole KiB."""

    at: float
    resident_bytes: int
    unique_bytes: int
    common_bytes: int
    saved_bytes: int
    overhead_bytes: int
    """With the page tables."""

    @property
    def spent_bytes(self) -> int:
        return self.unique_bytes + self.common_bytes + self.overhead_bytes


class MemoryHistory(Model):
    """What the daemon remembers since its start, oldest first; times at which it measured nothing are left out."""

    name: str
    """Of the VM, or 'host'."""
    every_s: float
    points: tuple[MemoryPoint, ...] = Field(default=())
