"""The balloon: memory that a guest is asked to leave to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ramet.hypervisor.qmp_executor import Executor

_DEVICE: Final = "/machine/peripheral/balloon0"
_UNKNOWN: Final = (1 << 64) - 1


@dataclass(frozen=True)
class GuestStats:
    """What the driver in the guest says of its memory, bytes."""

    available: int
    """What the guest could use without swapping or ending anything."""
    at: float
    """Unix time."""


class BalloonCommands(Executor):
    async def balloon(self, target_bytes: int) -> None:
        """Ask the guest for memory, or give it back, until it has `target_bytes`; it complies as far as it can."""
        await self.execute("balloon", {"value": target_bytes})

    async def balloon_actual_bytes(self) -> int:
        """What the guest has now; all of its memory where it has no driver."""
        answer = await self.execute("query-balloon")
        return int(answer["actual"])

    async def poll_balloon(self, every_s: int) -> None:
        """Have the guest's statistics asked for so often; 0 ends that. A clone begins without."""
        await self._set("guest-stats-polling-interval", every_s)

    async def balloon_stats(self) -> GuestStats | None:
        """The last that came; None before, and from a guest without the driver."""
        answer: Any = await self.execute("qom-get", {"path": _DEVICE, "property": "guest-stats"})
        available, at = int(answer["stats"]["stat-available-memory"]), float(answer["last-update"])
        return None if available in (-1, _UNKNOWN) or not at else GuestStats(available, at)

    async def _set(self, name: str, value: int) -> None:
        await self.execute("qom-set", {"path": _DEVICE, "property": name, "value": value})
