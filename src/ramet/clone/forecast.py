"""How long the source of a clone will be stunned: told before, so that a bound can be kept.

The parts scale differently. Stopping, the disks' transaction and the device state hardly depend on the guest's size;
the fork copies page tables: 2-3 ms the first time and about 10 ms a GiB of resident memory once pages are
anonymous and shared; a flush costs what the dirty bytes cost. A VM's own recent stuns, once there are any, say more
than constants measured elsewhere, so they lead.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramet.errors import StunTooLongError
from ramet.model.machine import Stun
from ramet.model.units import GIB, MIB

FIXED_MS = 15.0
"""Stop, transaction and device state of a small machine, measured at 10-15 ms on QEMU 7.2 under emulation."""
FORK_MS_PER_GIB = 10.0
FLUSH_MS_PER_MIB = 2.0
"""Of dirty data still in flight at the stop: a slow disk's 500 MiB/s; prepare flushes most of it beforehand."""
MARGIN = 1.5
"""Recent stuns are a sample, and hosts are noisy: the forecast is their worst, with this margin."""


@dataclass(frozen=True)
class Load:
    """What weighs on a stun: the guest's resident memory, and data not yet on disk."""

    resident_bytes: int
    dirty_bytes: int = 0


def forecast_stun_ms(load: Load, recent: tuple[Stun, ...]) -> float:
    """The stun to expect, in milliseconds, on the cautious side."""
    flush = load.dirty_bytes / MIB * FLUSH_MS_PER_MIB
    if not recent:
        return FIXED_MS + load.resident_bytes / GIB * FORK_MS_PER_GIB + flush
    return MARGIN * max(_scaled_ms(stun, load) for stun in recent[-5:]) + flush


def _scaled_ms(stun: Stun, load: Load) -> float:
    """A past stun, with its fork scaled to the memory that is resident now."""
    growth = load.resident_bytes / stun.resident_bytes if stun.resident_bytes else 1.0
    return stun.total_ms - stun.fork_ms + stun.fork_ms * max(growth, 1.0)


def check_bound(forecast_ms: float, bound_ms: float | None, name: str) -> None:
    """Refuse beforehand; nothing has changed yet. Raises StunTooLongError."""
    if bound_ms is not None and forecast_ms > bound_ms:
        raise StunTooLongError(
            f"Cloning {name!r} would stun it for about {forecast_ms:.0f} ms; {bound_ms:.0f} ms are allowed.",
            hint="Allow more with --max-stun, or clone when the guest uses less memory and writes less.",
            forecast_ms=round(forecast_ms, 1),
            bound_ms=bound_ms,
        )
