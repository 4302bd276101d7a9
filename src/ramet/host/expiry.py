"""VMs with a time to live: removed when it is over, whatever they do then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from ramet.errors import BusyError, RametError
from ramet.host.floor import Floor
from ramet.machine.live import LiveMachine

log = structlog.stdlib.get_logger(__name__)

_LONGEST_WAIT_S = 2.0
"""Also how late a VM goes whose time was shortened."""
_BUSY_RETRY_S = 2.0
_ASK_AGAIN_S = 60.0

Clock = Callable[[], float]


def steady() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Expiry:
    """Owns nothing: `run` until cancelled. `remove` takes a VM's id and returns when the removal has begun.

    A record says when its time is over by the clock on the wall, for that outlives the daemon. From when this sees it
    first, the time is counted on a steady clock: a wall clock that is set must neither end VMs nor let them live on.
    """

    def __init__(
        self,
        floor: Floor,
        remove: Callable[[str], Awaitable[object]],
        *,
        wall: Clock = lambda: time.time(),
        clock: Clock = steady,
    ) -> None:
        self._floor = floor
        self._remove = remove
        self._wall = wall
        self._clock = clock
        self._ends: dict[str, tuple[float, float]] = {}
        """VM id -> what its record says, and when that is on the steady clock."""
        self._asked: dict[str, float] = {}
        """VM id -> when its removal was asked for, on the steady clock: a removal takes a while."""

    async def run(self) -> None:
        while True:
            for live in self._due():
                await self._end(live)
            await asyncio.sleep(self._pause_s())

    def _due(self) -> list[LiveMachine]:
        now = self._clock()
        self._look(now)
        machines = self._floor.machines
        over = [machines[vm_id] for vm_id, (_, end) in self._ends.items() if end <= now]
        self._asked = {live.id: self._asked[live.id] for live in over if live.id in self._asked}
        return [live for live in over if self._asked.get(live.id, -_ASK_AGAIN_S) <= now - _ASK_AGAIN_S]

    def _look(self, now: float) -> None:
        """Take note of times that are new, or were changed."""
        machines = [live for live in self._floor.machines.values() if live.vm.registered]
        said = {live.id: at for live in machines if (at := live.vm.expires_at) is not None}
        kept = {vm_id: known for vm_id, known in self._ends.items() if said.get(vm_id) == known[0]}
        new = {vm_id: (at, now + at - self._wall()) for vm_id, at in said.items() if vm_id not in kept}
        self._ends = {**kept, **new}

    def _pause_s(self) -> float:
        now = self._clock()
        first_s = min((end - now for _, end in self._ends.values()), default=_LONGEST_WAIT_S)
        return min(first_s, _LONGEST_WAIT_S) if first_s > 0 else _BUSY_RETRY_S

    async def _end(self, live: LiveMachine) -> None:
        try:
            await self._remove(live.id)
        except BusyError:
            return  # once more in a moment
        except RametError as exc:
            log.warning("a VM whose time is over could not be removed", vm=live.name, error=str(exc))
            return
        except Exception:  # a bug of ours at one VM must not let all others live for ever
            log.exception("a VM whose time is over could not be removed", vm=live.name)
            return
        self._asked[live.id] = self._clock()
        self._floor.rooms.book.emit("vm.expired", f"The time of {live.name} is over.", live.vm)
