"""What memory was, some minutes and some hours ago: bounded, in the daemon's own memory, gone with it.

A series holds five counters at each of a fixed number of times, in KiB: 13 KB for the last hour and the last day
together. With the host's own, and at most `_MOST` series of VMs, those that are gone included, that is 7 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from ramet.model.memory import MemoryCounters, MemoryPoint

HOST = ""
"""The series of all together."""
_MOST = 512
_FIELDS = ("resident_bytes", "unique_bytes", "common_bytes", "saved_bytes", "overhead_bytes")
_values = attrgetter(*_FIELDS)
_NOTHING = array("I", [0] * len(_FIELDS))
_MOST_KIB = (1 << 32) - 1


@dataclass(frozen=True)
class Span:
    """How often, and how many times."""

    every_s: float
    slots: int


SPANS: Mapping[str, Span] = {"hour": Span(10.0, 360), "day": Span(300.0, 288)}


class _Ring:
    """All series of one span; they share their times."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._times = array("d", [0.0]) * span.slots
        self._next = 0
        self._series: dict[str, array[int]] = {}

    def is_due(self, now: float) -> bool:
        last = self._times[self._next - 1]
        return not 0 <= now - last < self.span.every_s * 0.95  # a clock that was set back must not end it

    def add(self, now: float, counters: Mapping[str, MemoryCounters]) -> None:
        slot = self._next
        self._times[slot] = now
        for name in counters.keys() - self._series.keys():
            self._series[name] = array("I", [0]) * (self.span.slots * len(_FIELDS))
        for name, series in self._series.items():
            found = counters.get(name)
            series[slot * len(_FIELDS) : (slot + 1) * len(_FIELDS)] = _packed(found)
        self._next = (slot + 1) % self.span.slots

    def keep(self, names: Iterable[str]) -> None:
        """Forget all others."""
        kept = set(names)
        self._series = {name: series for name, series in self._series.items() if name in kept}

    def points(self, name: str) -> list[MemoryPoint]:
        series = self._series.get(name)
        if series is None:
            return []
        slots = [*range(self._next, self.span.slots), *range(self._next)]
        return [self._point(series, slot) for slot in slots if self._is_there(series, slot)]

    def _is_there(self, series: array[int], slot: int) -> bool:
        """A process has resident memory of its own, whatever its guest has: nothing at all is no process."""
        return self._times[slot] > 0 and any(series[slot * len(_FIELDS) : (slot + 1) * len(_FIELDS)])

    def _point(self, series: array[int], slot: int) -> MemoryPoint:
        values = series[slot * len(_FIELDS) : (slot + 1) * len(_FIELDS)]
        return MemoryPoint(
            at=self._times[slot], **{name: 1024 * value for name, value in zip(_FIELDS, values, strict=True)}
        )


class MemoryRecord:
    """One a host. `add` it what is known; it takes what a span lacks."""

    def __init__(self, spans: Mapping[str, Span] = SPANS, most: int = _MOST) -> None:
        self._rings = {name: _Ring(span) for name, span in spans.items()}
        self._most = most
        self._last_seen: dict[str, float] = {}

    def add(self, now: float, counters: Mapping[str, MemoryCounters]) -> None:
        """`counters` by VM id, and HOST. Series of the VMs that went first are forgotten when there are too many."""
        due = [ring for ring in self._rings.values() if ring.is_due(now)]
        if not due:
            return
        self._last_seen.update(dict.fromkeys(counters, now))
        if len(self._last_seen) > self._most:
            newest = sorted(self._last_seen, key=lambda name: (name == HOST, self._last_seen[name]))[-self._most :]
            self._last_seen = {name: self._last_seen[name] for name in newest}
            for ring in self._rings.values():
                ring.keep(newest)
        kept = {name: found for name, found in counters.items() if name in self._last_seen}
        for ring in due:
            ring.add(now, kept)

    def points(self, name: str, span: str) -> list[MemoryPoint]:
        """Oldest first; empty for what is not known."""
        return self._rings[span].points(name)


def _packed(found: MemoryCounters | None) -> array[int]:
    if found is None:
        return _NOTHING
    *counters, overhead = _values(found)
    return array("I", [min(value >> 10, _MOST_KIB) for value in (*counters, overhead + found.page_tables_bytes)])
