"""Pools: loaded clones of a frozen VM that wait, paused, for whoever asks next."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from ramet.model.base import Model

MAX_POOL = 256
"""Of one VM."""


class SetPool(Model):
    """What a caller asks for; size 0 gives the pool up."""

    size: int = Field(ge=0, le=MAX_POOL)
    memory_budget_mib: int | None = Field(default=None, ge=1)
    """What all ready clones together may cost; None is no bound but the host's."""


class PoolSpec(Model):
    """A pool as it is remembered: what is to be kept, and how many were taken."""

    vm_id: str
    size: int = Field(ge=1, le=MAX_POOL)
    memory_budget_mib: int | None = Field(default=None, ge=1)
    taken: int = 0


class PoolState(StrEnum):
    """What a pool does now."""

    FULL = "full"
    FILLING = "filling"
    WAITING = "waiting"  # its VM is not frozen: there is nothing to clone from
    OVER_BUDGET = "over budget"  # one more would cost more than it may
    LOW_MEMORY = "low memory"  # the host needs its memory for others
    FAILING = "failing"  # the last clone did not come about; tried again in a while


class PoolView(Model):
    """What callers are shown. Bytes are of the ready clones together."""

    vm_id: str
    vm: str
    """Name of the VM."""
    state: PoolState
    size: int
    ready: int
    taken: int
    """Since the pool was set up."""
    refill_per_s: float | None = None
    """Clones made ready a second, lately; None before the first."""
    memory_budget_mib: int | None = None
    unique_bytes: int = 0
    """Guest memory that is theirs alone."""
    overhead_bytes: int = 0
    """Of their processes, beside guest memory."""
    problem: str | None = None
    """Why there are fewer than asked for."""

    @property
    def cost_bytes(self) -> int:
        return self.unique_bytes + self.overhead_bytes
