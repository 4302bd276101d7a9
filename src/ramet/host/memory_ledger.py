"""What is known of the memory of every process that holds guest RAM, and since when. No I/O: readings are brought."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from ramet.memory.holdings import Holding
from ramet.memory.reading import Pulse, Reading
from ramet.memory.sums import counters, total
from ramet.memory.turns import Standing
from ramet.model.memory import LineageMemory, MemoryKind, MemoryRow, MemorySample

_RUNS_GUEST = (MemoryKind.VM, MemoryKind.POOL)


@dataclass
class Family:
    """What happened in one lineage, counted since the ledger knows it."""

    name: str
    members: set[str] = field(default_factory=set)
    faults: int = 0
    changes: int = 0
    """Members that came or went."""


@dataclass(eq=False)
class _Entry:
    holding: Holding
    reading: Reading | None = None
    row: MemoryRow | None = None
    pulse: Pulse | None = None
    family_faults: int = 0
    """The family's count when this was read."""
    family_changes: int = 0


class MemoryLedger:
    """One a host."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._families: dict[str, Family] = {}

    # -- who is there ----------------------------------------------------------------------------------------------

    def sync(self, holdings: Iterable[Holding]) -> None:
        """Take over who holds guest RAM now. Rows of those that are gone go with them."""
        present = {holding.id: holding for holding in holdings}
        for gone in self._entries.keys() - present.keys():
            self._leave(self._entries.pop(gone).holding)
        for one in present.values():
            known = self._entries.get(one.id)
            if known is None or _is_another(known.holding, one):
                if known is not None:
                    self._leave(known.holding)
                self._entries[one.id] = _Entry(one)
                self._join(one)
            elif known.holding != one:  # renamed, or taken from its pool
                known.holding = one
                known.row = _row(one, known.reading) if known.reading else None
            if one.kind is MemoryKind.VM and one.id == one.lineage_id:
                self._families[one.lineage_id].name = one.name

    def _join(self, holding: Holding) -> None:
        family = self._families.setdefault(holding.lineage_id, Family(holding.name))
        family.members.add(holding.id)
        family.changes += 1

    def _leave(self, holding: Holding) -> None:
        family = self._families[holding.lineage_id]
        family.members.discard(holding.id)
        family.changes += 1
        if not family.members:
            del self._families[holding.lineage_id]

    def holdings(self) -> list[Holding]:
        return [entry.holding for entry in self._entries.values()]

    def holding(self, one: str) -> Holding | None:
        entry = self._entries.get(one)
        return entry.holding if entry else None

    def unread(self) -> list[Holding]:
        return [entry.holding for entry in self._entries.values() if entry.row is None]

    # -- what was seen ---------------------------------------------------------------------------------------------

    def reading(self, one: str) -> Reading | None:
        entry = self._entries.get(one)
        return entry.reading if entry else None

    def note_pulses(self, pulses: Mapping[str, Pulse]) -> None:
        for one, pulse in pulses.items():
            entry = self._entries.get(one)
            if entry is None:
                continue
            if entry.pulse is not None:
                family = self._families[entry.holding.lineage_id]
                family.faults += max(0, pulse.minor_faults - entry.pulse.minor_faults)
            entry.pulse = pulse

    def note(self, holding: Holding, reading: Reading) -> None:
        """Nothing happens when the process has gone meanwhile, or there is a later reading."""
        entry = self._entries.get(holding.id)
        if entry is None or _is_another(entry.holding, holding):
            return
        if entry.reading is not None and entry.reading.at > reading.at:
            return
        family = self._families[holding.lineage_id]
        self.note_pulses({holding.id: reading.pulse})
        entry.reading, entry.row = reading, _row(entry.holding, reading)
        entry.family_faults, entry.family_changes = family.faults, family.changes

    def standings(self, now: float) -> list[Standing]:
        return [self._standing(entry, now) for entry in self._entries.values()]

    def _standing(self, entry: _Entry, now: float) -> Standing:
        one, reading = entry.holding.id, entry.reading
        if reading is None or entry.row is None or entry.pulse is None:
            return Standing(one, math.inf)
        family = self._families[entry.holding.lineage_id]
        faults = entry.pulse.minor_faults - reading.pulse.minor_faults
        return Standing(
            one,
            age_s=max(0.0, now - reading.at),
            faults=faults,
            resident_change=abs(entry.pulse.resident_bytes - reading.pulse.resident_bytes),
            others_faults=max(0, family.faults - entry.family_faults - faults),
            came_or_went=family.changes - entry.family_changes,
            members=len(family.members),
            resident_bytes=reading.view.resident_bytes,
            common_bytes=entry.row.common_bytes,
        )

    # -- sums ------------------------------------------------------------------------------------------------------

    def rows(self) -> list[MemoryRow]:
        """By lineage, then by name."""
        found = [entry.row for entry in self._entries.values() if entry.row is not None]
        return sorted(found, key=lambda row: (self.family_name(row.lineage_id), row.lineage_id, row.name))

    def family_name(self, lineage_id: str) -> str:
        family = self._families.get(lineage_id)
        return family.name if family else lineage_id

    def members(self, lineage_id: str) -> frozenset[str]:
        family = self._families.get(lineage_id)
        return frozenset(family.members) if family else frozenset()

    def lineages(self, rows: Iterable[MemoryRow]) -> list[LineageMemory]:
        """Sums of these rows, by lineage, in their order."""
        by_lineage: dict[str, list[MemoryRow]] = {}
        for row in rows:
            by_lineage.setdefault(row.lineage_id, []).append(row)
        return [
            LineageMemory(
                id=one,
                name=self.family_name(one),
                processes=len(found),
                measured_at=min(row.measured_at for row in found),
                **total(found),
            )
            for one, found in by_lineage.items()
        ]

    def sample(self, lineage_id: str, fresh: Container[str] | None = None) -> MemorySample | None:
        """One lineage as it is known; None when nothing of it is.

        `fresh`: ids of those that were just read. What the others have in common is then scaled to the members that
        there are now: right where all share all, as clones of one moment do.
        """
        entries = [self._entries[one] for one in self.members(lineage_id)]
        known = [(entry, entry.row) for entry in entries if entry.row is not None]
        if not known:
            return None
        stale = [entry for entry, _ in known if fresh is not None and entry.holding.id not in fresh]
        rows = [self._scaled(entry, row) if entry in stale else row for entry, row in known]
        return MemorySample(
            processes=len(rows),
            measured_at=min(row.measured_at for row in rows),
            estimated=any(self._came(entry) for entry in stale),
            **total(rows),
        )

    def _came(self, entry: _Entry) -> int:
        return self._families[entry.holding.lineage_id].changes - entry.family_changes

    def _scaled(self, entry: _Entry, row: MemoryRow) -> MemoryRow:
        now = len(self.members(row.lineage_id))
        common = int(row.common_bytes * max(1, now - self._came(entry)) / now)
        less = row.common_bytes - common
        return row.model_copy(
            update={
                "common_bytes": common,
                "saved_bytes": row.saved_bytes + less,
                "spent_bytes": row.spent_bytes - less,
            }
        )


def _is_another(one: Holding, other: Holding) -> bool:
    return (one.pid, one.start_ticks, one.lineage_id) != (other.pid, other.start_ticks, other.lineage_id)


def _row(holding: Holding, reading: Reading) -> MemoryRow:
    sums = counters(reading.view, runs_guest=holding.kind in _RUNS_GUEST)
    return MemoryRow(
        id=holding.id,
        name=holding.name,
        kind=holding.kind,
        lineage_id=holding.lineage_id,
        measured_at=reading.at,
        **sums.model_dump(),
    )
