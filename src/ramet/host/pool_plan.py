"""What a pool needs next, decided from what is seen: no clock, no process, nothing but values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ramet.model.pool import PoolState


@dataclass(frozen=True)
class Member:
    """One clone in a pool. `fit`: it is loaded, and from the moment that the source holds now."""

    id: str
    cost_bytes: int
    fit: bool = True


@dataclass(frozen=True)
class Situation:
    """A pool and its host at one instant. Bytes."""

    size: int
    """Asked for; 0 when the pool, or its VM, is gone."""
    frozen: bool
    """There is a moment to clone from."""
    members: tuple[Member, ...]
    """Oldest first."""
    next_cost: int
    """Of one more, as far as those before tell."""
    next_need: int
    """Memory that must be free for one more: its cost, and what its guest writes soon after it is taken."""
    available: int
    """On the host."""
    reserve: int
    """Of that, what pools leave alone."""
    budget: int | None = None
    promised: int = 0
    """Of what is available, what the VMs that are there may still want: not for more of them."""


@dataclass(frozen=True)
class Decision:
    drop: tuple[str, ...]
    grow: int
    state: PoolState


def decide(now: Situation) -> Decision:
    """Drop what cannot be served or afforded, and grow what is missing: never both for the same reason.

    Members go newest first, so that what has been there longest stays; growing asks for more free memory than the
    end of one member gives back, so that a pool does not swing.
    """
    fit = [member for member in now.members if member.fit and now.frozen]
    kept = _within_budget(fit[: now.size], now.budget)
    kept = _within_memory(kept, now, freed=_cost(now.members) - _cost(kept))
    keep = {member.id for member in kept}
    drop = tuple(member.id for member in now.members if member.id not in keep)
    if not now.frozen:
        return Decision(drop, 0, PoolState.WAITING)
    grow, state = _growth(kept, now)
    return Decision(drop, grow, state)


def _cost(members: Sequence[Member]) -> int:
    return sum(member.cost_bytes for member in members)


def _within_budget(members: Sequence[Member], budget: int | None) -> list[Member]:
    kept = list(members)
    while budget is not None and kept and _cost(kept) > budget:
        kept.pop()
    return kept


def _within_memory(members: Sequence[Member], now: Situation, freed: int) -> list[Member]:
    kept, available = list(members), now.available + freed
    while kept and available < now.reserve:
        available += kept.pop().cost_bytes
    return kept


def _growth(kept: Sequence[Member], now: Situation) -> tuple[int, PoolState]:
    """How many more, and what the pool is doing."""
    missing = now.size - len(kept)
    if missing <= 0:
        return 0, PoolState.FULL
    by_memory = (now.available - now.reserve - now.promised) // max(1, now.next_need)
    if by_memory <= 0:
        return 0, PoolState.LOW_MEMORY
    if now.budget is None:
        return min(missing, by_memory), PoolState.FILLING
    by_budget = (now.budget - _cost(kept)) // max(1, now.next_cost)
    if by_budget <= 0:
        return 0, PoolState.OVER_BUDGET
    return min(missing, by_memory, by_budget), PoolState.FILLING
