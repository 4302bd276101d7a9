"""Whose memory to read next: that of which the ledger is probably wrong by most.

Reading a process costs milliseconds, so it is not done because time has passed but because something happened: the
process took page faults, or others of its lineage did, or the lineage gained or lost a member. How far off the row can
be since then has a bound that needs no reading:

- a fault of its own is a page that was made or copied: one page;
- a fault of another is a copy of a page that n share: its part in each of the others' grows by less than a page / n;
- a member that came or went changes each other's part of what is common by about 1 / n.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ramet.memory.reading import PAGE

TOLERANCE = 0.002
"""Of what is resident: less is not worth a reading."""
TOLERANCE_BYTES = 256 << 10
LONGEST_S = 60.0
"""A row that nothing seems to have happened to is read again all the same: merged pages and library pages whose other
users went take no fault."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What happened since one process was last read."""

    id: str
    age_s: float
    """Since then; infinite when it never was."""
    faults: int = 0
    resident_change: int = 0
    """Bytes, in either direction."""
    others_faults: int = 0
    """Of its lineage, without its own."""
    came_or_went: int = 0
    """Members of its lineage."""
    members: int = 1
    resident_bytes: int = 0
    common_bytes: int = 0

    @property
    def error_bytes(self) -> float:
        """How far off its row can be, about."""
        own = self.faults * PAGE + self.resident_change
        others = self.others_faults * PAGE / max(1, self.members)
        moved = self.common_bytes * self.came_or_went / max(1, self.members)
        return own + others + moved

    @property
    def is_due(self) -> bool:
        return self.age_s >= LONGEST_S or self.error_bytes > max(TOLERANCE_BYTES, TOLERANCE * self.resident_bytes)

    @property
    def urgency(self) -> tuple[bool, float]:
        """Grows with age, so that none waits for ever behind those that change all the time."""
        overdue = self.age_s >= LONGEST_S
        return overdue, self.age_s if overdue else self.error_bytes * self.age_s


def in_turn(standings: Iterable[Standing]) -> list[str]:
    """Ids of those that are due, the most urgent first."""
    due = [standing for standing in standings if standing.is_due]
    return [one.id for one in sorted(due, key=lambda one: one.urgency, reverse=True)]
