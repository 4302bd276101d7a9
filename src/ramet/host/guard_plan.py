"""What to take from which guest when the host is short of memory, and to give back later: numbers, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ramet.model.units import MIB

WARN, ACT, CALM = 1.5, 1.25, 1.75
"""Times the reserve: below the first it is told, below the second guests are asked, above the third they get it back.
Pools shrink at their own reserve, which is below; below that there is only the kernel's OOM killer."""
STEP = 1 / 8
"""Of a guest's memory: asked for at once. It gives slowly, and what it needs shows only after it gave."""
GIVE_BACK = 1 / 4
LEAST = 1 / 4
"""Of its memory, that a guest is left with, whatever it says that it needs."""
MARGIN_BYTES = 48 * MIB
MARGIN = 1 / 8
"""Of its memory, or the bytes above if they are more: what a guest keeps available for itself."""
SMALLEST_BYTES = 8 * MIB
"""Not worth asking for."""
AT_ONCE = 4
BUSY_PER_S = MIB
"""A guest that makes more than that its own in a second is not idle, and is asked last."""


class Level(StrEnum):
    CALM = "calm"
    LOW = "low"
    """Told, and nothing is taken or given."""
    SHORT = "short"
    """Guests are asked for memory."""


@dataclass(frozen=True)
class Guest:
    """One that runs; bytes."""

    id: str
    configured: int
    wanted: int
    """By its owner."""
    actual: int
    """What it has now."""
    available: int | None
    """What it could do without, as it says; None when it says nothing: nothing is taken then."""
    unique: int
    """What is its alone: more than that cannot come back to the host."""
    growth_per_s: float = 0.0


@dataclass(frozen=True)
class Change:
    id: str
    size: int
    """What it is to have from now on, bytes."""


def level(available: int, reserve: int, before: Level) -> Level:
    """It is calm again only well above where it began, so that it does not swing."""
    if available < ACT * reserve:
        return Level.SHORT
    if available < WARN * reserve or (before is not Level.CALM and available < CALM * reserve):
        return Level.LOW
    return Level.CALM


def spare(guest: Guest) -> int:
    """What may be asked of it now: a step, within what it can do without and what would come back."""
    if guest.available is None:
        return 0
    margin = max(MARGIN_BYTES, int(MARGIN * guest.configured))
    can = min(guest.available - margin, guest.actual - int(LEAST * guest.configured), guest.unique)
    least = max(SMALLEST_BYTES, int(STEP * guest.configured))
    return min(can, least) // MIB * MIB if can >= SMALLEST_BYTES else 0


def squeeze(guests: Iterable[Guest], short: int) -> list[Change]:
    """Idle guests first, and of those the ones that can give most; a few at a time, until that covers what is short."""
    can = [(guest, spare(guest)) for guest in guests]
    can = sorted((pair for pair in can if pair[1]), key=lambda pair: (pair[0].growth_per_s > BUSY_PER_S, -pair[1]))
    changes: list[Change] = []
    for guest, size in can[:AT_ONCE]:
        if short <= 0:
            break
        changes.append(Change(guest.id, guest.actual - size))
        short -= size
    return changes


def release(guests: Sequence[Guest], room: int) -> list[Change]:
    """Those that have least of what they are to have first; one step each, within `room`. One that has it all is told
    so, for it may not have begun to give yet."""
    less = sorted(guests, key=lambda guest: guest.actual / guest.wanted)
    changes: list[Change] = []
    for guest in less[:AT_ONCE]:
        size = min(guest.wanted - guest.actual, max(SMALLEST_BYTES, int(GIVE_BACK * guest.configured)))
        if size > room:
            break
        changes.append(Change(guest.id, guest.actual + size))
        room -= max(0, size)
    return changes
