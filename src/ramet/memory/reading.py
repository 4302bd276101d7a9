"""One look at a process's memory, dear or cheap: all of it, guest RAM alone, or only whether anything happened.

look_whole(holding)           guest RAM and the rest         5 ms for a small guest: 330 mappings are written out
look_again(holding, reading)  guest RAM, the rest as it was  1 ms
feel(holding)                 its pulse                      0.02 ms
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ramet.errors import NotFoundError, RametError
from ramet.memory.holdings import Holding
from ramet.memory.ledger import Place, guest_memory_again, locate
from ramet.model.views import MemoryView

PAGE = os.sysconf("SC_PAGE_SIZE")
_MINOR, _START, _RESIDENT = 10, 22, 24
"""Fields of /proc/PID/stat, counted from one."""
_DRIFT_BYTES = 2 << 20
_DRIFT_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the kernel counts as it goes along: no page table is walked for it. On hosts with many processors
    `resident_bytes` lags behind by some MiB: enough to know that something happened, not how much there is."""

    minor_faults: int
    resident_bytes: int
    """Of the whole process."""


@dataclass(frozen=True, slots=True)
class Reading:
    view: MemoryView
    place: Place
    pulse: Pulse
    at: float
    """Unix time."""
    whole_at: float
    """When the part apart from guest RAM was read."""
    rest_bytes: int
    """What the process had resident apart from guest RAM then, by its pulse."""
    cpu_s: float
    """What it cost to take."""


def feel(holding: Holding) -> Pulse:
    """Raises NotFoundError when the process has ended, or the pid is another's by now."""
    try:
        text = Path(f"/proc/{holding.pid}/stat").read_bytes()
    except OSError as exc:
        raise _gone(holding) from exc
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold blanks and parentheses
    if int(fields[_START - 3]) != holding.start_ticks:
        raise _gone(holding)
    return Pulse(int(fields[_MINOR - 3]), int(fields[_RESIDENT - 3]) * PAGE)


def look_whole(holding: Holding) -> Reading:
    """Blocking. Raises NotFoundError when the process is gone, or maps no such RAM (yet)."""
    began = time.thread_time()
    pulse = feel(holding)
    at = time.time()
    try:
        view, place = locate(holding.pid, holding.ram_bytes)
    except OSError as exc:
        raise _gone(holding) from exc
    feel(holding)  # still the same process?
    rest = pulse.resident_bytes - view.resident_bytes
    return Reading(view, place, pulse, at, at, rest, time.thread_time() - began)


def look_again(holding: Holding, last: Reading) -> Reading:
    """Like `look_whole`, which it becomes when the rest of the process seems to have changed too."""
    began = time.thread_time()
    pulse = feel(holding)
    at = time.time()
    with contextlib.suppress(RametError, OSError):
        view = guest_memory_again(holding.pid, last.place, last.view)
        feel(holding)
        if not _has_drifted(last, pulse.resident_bytes - view.resident_bytes):
            return replace(last, view=view, pulse=pulse, at=at, cpu_s=time.thread_time() - began)
    return look_whole(holding)


def _has_drifted(last: Reading, rest_bytes: int) -> bool:
    allowed = max(_DRIFT_BYTES, _DRIFT_SHARE * last.view.process_overhead_bytes)
    return abs(rest_bytes - last.rest_bytes) > allowed


def _gone(holding: Holding) -> NotFoundError:
    return NotFoundError(f"The process of {holding.name!r} is gone.")
