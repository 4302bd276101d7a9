"""Page sharing between VMs that are not related: the kernel's KSM, its counters and its knobs.

KSM merges pages of like content among all memory that was marked as mergeable, on the whole host: it has no domains.
Marking is the business of each process (the library in QEMU does it); what is here is the host's side: the thread ksmd,
and what it has found. Everything is read from sysfs and proc at each call, and all calls are blocking but short.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSFS: Final = Path("/sys/kernel/mm/ksm")
PROC: Final = Path("/proc")

KNOBS: Final = ("run", "pages_to_scan", "sleep_millisecs")
"""What is changed while page sharing is on."""
RUN: Final = "run"
RUNS: Final = 1
"""Value of `run`: 0 stopped, 1 merging, 2 all unmerged and stopped."""

_STAT_UTIME, _STAT_STIME = 11, 12
"""Fields of /proc/PID/stat behind the name."""
_KSM_LINE: Final = re.compile(rb"^KSM: +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class KsmCounters:
    """Of the whole host, bytes; None where this kernel does not tell."""

    running: bool
    shared_bytes: int
    """Pages that are there once and stand for others."""
    sharing_bytes: int
    """What they stand for besides: saved before the kernel's own costs."""
    profit_bytes: int | None
    """Saved, less what the kernel keeps about every page it looked at (Linux 6.4)."""
    full_scans: int
    pages_to_scan: int
    sleep_ms: int
    cpu_s: float | None
    """Of the thread ksmd since the host's start."""


class Ksm:
    """The kernel's KSM. `sysfs` and `proc` are others in tests."""

    def __init__(self, sysfs: Path = SYSFS, proc: Path = PROC) -> None:
        self._sysfs = sysfs
        self._proc = proc
        self._ksmd: int | None = None

    @property
    def exists(self) -> bool:
        return (self._sysfs / RUN).exists()

    @property
    def problem(self) -> str | None:
        """Why this process cannot switch it; None when it can."""
        if not self.exists:
            return "This host's kernel has no page merging (CONFIG_KSM)"
        if not os.access(self._sysfs / RUN, os.W_OK):
            return "Page merging is the kernel's, and only root may start it"
        return None

    @property
    def is_running(self) -> bool:
        try:
            return self._read(RUN) == RUNS
        except OSError:
            return False

    def knobs(self) -> dict[str, int]:
        """As they are now. Raises OSError."""
        return {name: self._read(name) for name in KNOBS}

    def turn(self, knobs: Mapping[str, int]) -> None:
        """Set them; `run` last, so that ksmd never starts with a pace that was not meant. Raises OSError."""
        for name in sorted(knobs, key=lambda name: name == RUN):
            (self._sysfs / name).write_text(f"{knobs[name]}\n")

    def counters(self) -> KsmCounters:
        """Raises OSError where there is no KSM."""
        page = os.sysconf("SC_PAGE_SIZE")
        return KsmCounters(
            running=self._read(RUN) == RUNS,
            shared_bytes=page * self._read("pages_shared"),
            sharing_bytes=page * self._read("pages_sharing"),
            profit_bytes=self._read_if_there("general_profit"),
            full_scans=self._read("full_scans"),
            pages_to_scan=self._read("pages_to_scan"),
            sleep_ms=self._read("sleep_millisecs"),
            cpu_s=self.cpu_s(),
        )

    def cpu_s(self) -> float | None:
        """None where ksmd cannot be seen: in a container with a process namespace of its own."""
        if self._ksmd is None:
            self._ksmd = self._find_ksmd()
        try:
            fields = (self._proc / str(self._ksmd) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[_STAT_UTIME]) + int(fields[_STAT_STIME])) / os.sysconf("SC_CLK_TCK")

    def merged_bytes(self, pid: int) -> int:
        """Memory of a process that stands in merged pages: what unmerging it would take at most.

        smaps_rollup counts what is mapped (Linux 6.7), which walks the page tables, some milliseconds a GiB: call it in
        a thread. Raises OSError when the process is gone.
        """
        found = _KSM_LINE.search((self._proc / str(pid) / "smaps_rollup").read_bytes())
        return 1024 * int(found[1]) if found else self.merged_quickly_bytes(pid)

    def merged_quickly_bytes(self, pid: int) -> int:
        """Like `merged_bytes`, but as ksmd counted (Linux 5.19): a fork, which maps merged pages too, counts anew. 0
        where the kernel does not tell, or the process is gone."""
        try:
            pages = int((self._proc / str(pid) / "ksm_merging_pages").read_text())
        except (OSError, ValueError):  # of one that is dying, nothing is read
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def profit_bytes(self, pid: int) -> int | None:
        """What merging saves in one process, less the kernel's costs; None before Linux 6.1. Raises OSError."""
        try:
            text = (self._proc / str(pid) / "ksm_stat").read_text()
        except FileNotFoundError:
            return None
        stat = dict(line.rsplit(maxsplit=1) for line in text.splitlines() if " " in line)
        return int(stat["ksm_process_profit"]) if "ksm_process_profit" in stat else None

    def _find_ksmd(self) -> int | None:
        """A kernel thread: a child of kthreadd. Any program may bear the name."""
        for directory in self._proc.glob("[0-9]*"):
            try:
                name, _, rest = (directory / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            if name == "ksmd" and rest.split()[1] == "2":
                return int(directory.name)
        return None

    def _read(self, name: str) -> int:
        return int((self._sysfs / name).read_text())

    def _read_if_there(self, name: str) -> int | None:
        try:
            return self._read(name)
        except FileNotFoundError:
            return None
