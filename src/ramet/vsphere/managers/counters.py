"""Performance counters: the keys, names and units under which the original knows them, and how each is computed here.

COUNTERS -> all of them;  by_key(key) -> Counter or None
machine_values(before, now, capacity) / host_values(...) -> numbers in the order of COUNTERS, -1 for none

Memory is the ledger's: consumed is what a VM takes (its own pages, and its part of those that it shares), shared and
sharedcommon are those that others map too, zero is what it has never touched. Active, which the original guesses by
sampling, is here the pages that are the VM's own: those that it has written to.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from ramet.model.memory import MemoryCounters
from ramet.vsphere.types import vim

NONE = -1
KIB = 1024


@dataclass(frozen=True)
class Counter:
    key: int
    group: str
    name: str
    label: str
    unit: str
    rollup: str = "average"
    stats: str = "absolute"
    level: int = 1

    def info(self) -> Any:
        unit_label = _UNITS[self.unit]
        return vim.PerformanceManager.CounterInfo(
            key=self.key,
            nameInfo=_element(self.name, self.label),
            groupInfo=_element(self.group, _GROUPS[self.group]),
            unitInfo=_element(self.unit, unit_label),
            rollupType=self.rollup,
            statsType=self.stats,
            level=self.level,
            perDeviceLevel=3,
        )


_UNITS = {
    "percent": "%",
    "megaHertz": "MHz",
    "kiloBytes": "KB",
    "kiloBytesPerSecond": "KBps",
    "second": "s",
}
_GROUPS = {"cpu": "CPU", "mem": "Memory", "disk": "Disk", "net": "Network", "sys": "System"}
_KBPS = "kiloBytesPerSecond"

COUNTERS = (
    Counter(2, "cpu", "usage", "Usage", "percent", stats="rate"),
    Counter(6, "cpu", "usagemhz", "Usage in MHz", "megaHertz", stats="rate"),
    Counter(24, "mem", "usage", "Usage", "percent"),
    Counter(29, "mem", "granted", "Granted", "kiloBytes", level=2),
    Counter(33, "mem", "active", "Active", "kiloBytes", level=2),
    Counter(37, "mem", "shared", "Shared", "kiloBytes", level=2),
    Counter(41, "mem", "zero", "Zero", "kiloBytes", level=2),
    Counter(57, "mem", "sharedcommon", "Shared common", "kiloBytes", level=2),
    Counter(98, "mem", "consumed", "Consumed", "kiloBytes"),
    Counter(102, "mem", "overhead", "Overhead consumed", "kiloBytes"),
    Counter(125, "disk", "usage", "Usage", _KBPS, stats="rate"),
    Counter(130, "disk", "read", "Read rate", _KBPS, stats="rate", level=2),
    Counter(131, "disk", "write", "Write rate", _KBPS, stats="rate", level=2),
    Counter(143, "net", "usage", "Usage", _KBPS, stats="rate"),
    Counter(148, "net", "received", "Data receive rate", _KBPS, stats="rate", level=2),
    Counter(149, "net", "transmitted", "Data transmit rate", _KBPS, stats="rate", level=2),
    Counter(155, "sys", "uptime", "Uptime", "second", rollup="latest"),
)
_PLACES = {counter.key: place for place, counter in enumerate(COUNTERS)}


def by_key(key: int) -> Counter | None:
    place = _PLACES.get(key)
    return COUNTERS[place] if place is not None else None


def place_of(key: int) -> int:
    return _PLACES[key]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read at one time; totals since something began, None for what cannot be read."""

    at: float
    """Monotonic."""
    cpu_s: float | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None
    uptime_s: float = 0.0


def numbers(
    before: Reading | None,
    now: Reading,
    memory: MemoryCounters | None,
    capacity_mhz: int,
    core_mhz: int,
    host_memory: tuple[int, int] | None = None,
) -> array[int]:
    """In the order of COUNTERS. `capacity_mhz` is all that the VM or host could use, of processors of `core_mhz`.

    `host_memory`: bytes that a host has, and of them those in use, by guests and by all else.
    """
    busy = _rate(before, now, "cpu_s")
    mhz = None if busy is None else busy * core_mhz
    disk = [_rate(before, now, name) for name in ("read_bytes", "written_bytes")]
    net = [_rate(before, now, name) for name in ("received_bytes", "sent_bytes")]
    values: list[float | None] = [
        None if mhz is None else min(10_000.0, 10_000 * mhz / max(1, capacity_mhz)),
        mhz,
        *_of_memory(memory, host_memory),
        *(_kib(value) for value in (_sum(disk), *disk, _sum(net), *net)),
        now.uptime_s,
    ]
    return array("q", [NONE if value is None else int(value) for value in values])


def _of_memory(memory: MemoryCounters | None, host_memory: tuple[int, int] | None) -> list[float | None]:
    """From usage to overhead."""
    if memory is None:
        return [None] * 8
    own = memory.configured_bytes, memory.unique_bytes + memory.common_bytes
    whole, consumed = own if host_memory is None else host_memory
    untouched = memory.configured_bytes - memory.resident_bytes - memory.swapped_bytes
    usage = 10_000 * consumed / whole if whole else 0
    counted = (
        memory.resident_bytes,
        memory.unique_bytes,
        memory.shared_bytes,
        max(0, untouched),
        memory.common_bytes,
        consumed,
        memory.overhead_bytes,
    )
    return [min(10_000.0, usage), *(float(value // KIB) for value in counted)]


def _rate(before: Reading | None, now: Reading, name: str) -> float | None:
    """A second; 0 where a total began anew."""
    then: float | None = getattr(now, name)
    since: float | None = getattr(before, name) if before is not None else None
    if then is None or since is None or before is None or now.at <= before.at:
        return None
    return max(0.0, (then - since) / (now.at - before.at))


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _kib(value: float | None) -> float | None:
    return None if value is None else value / KIB


def _element(key: str, label: str) -> Any:
    return vim.ElementDescription(key=key, label=label, summary=label)
