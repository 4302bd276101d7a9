"""Page sharing: whether the kernel merges pages of VMs that are not related, what that gains, and what it costs."""

from __future__ import annotations

from enum import StrEnum

from ramet.model.base import Model


class PageSharing(StrEnum):
    OFF = "off"
    """Inside a lineage only, by forking."""
    HOST = "host"
    """Among all guests of this host: the kernel's KSM, which knows no borders between them."""


class SetPageSharing(Model):
    mode: PageSharing


class MergedMemory(Model):
    """One VM's part in it."""

    id: str
    name: str
    merged_bytes: int
    """Of its memory, in merged pages."""
    profit_bytes: int | None = None
    """What that saves, less the kernel's own costs; None where it does not tell (before Linux 6.1)."""


class PageSharingView(Model):
    """Gain and cost, of the whole host. Bytes; None where this kernel does not tell, or there is no KSM."""

    mode: PageSharing
    problem: str | None = None
    """Why page sharing cannot be switched on here, or does nothing."""
    unmerging: bool = False
    """It was switched off, and some VMs' pages are still merged."""
    running: bool = False
    """The kernel's thread, ksmd, looks for pages."""
    started_here: bool = False
    """It was not running before, and stops when page sharing is switched off."""
    since: float | None = None
    """Unix time."""
    shared_bytes: int = 0
    """Pages that stand for several."""
    saved_bytes: int = 0
    """What would be needed besides, if nothing were merged."""
    profit_bytes: int | None = None
    """Saved, less what the kernel notes about every page that it looked at (Linux 6.4)."""
    cpu_s: float | None = None
    """ksmd's, since page sharing was switched on."""
    cpu_percent: float | None = None
    """Of one processor, over that time."""
    full_scans: int = 0
    pages_to_scan: int = 0
    """At a turn ..."""
    sleep_ms: int = 0
    """... and between two."""
    vms: tuple[MergedMemory, ...] = ()
    """By name."""
    unmerge_bytes: int = 0
    """What switching it off would take at most."""
