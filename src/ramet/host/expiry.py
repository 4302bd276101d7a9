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
"""Also how late a VM goes whose time was shortened, or when the clock was set."""
_BUSY_RETRY_S = 2.0
_ASK_AGAIN_S = 60.0


class Expiry:
    """Owns nothing: `run` until cancelled. `remove` takes a VM's id and returns when the removal has begun."""

    def __init__(self, floor: Floor, remove: Callable[[str], Awaitable[object]]) -> None:
        self._floor = floor
        self._remove = remove
        self._asked: dict[str, float] = {}
        """VM id -> when its removal was asked for, Unix seconds: a removal takes a while."""

    async def run(self) -> None:
        while True:
            for live in self._due(time.time()):
                await self._end(live)
            await asyncio.sleep(self._pause_s(time.time()))

    def _due(self, now: float) -> list[LiveMachine]:
        over = [live for live in self._floor.machines.values() if (live.vm.expires_at or now + 1) <= now]
        self._asked = {live.id: self._asked[live.id] for live in over if live.id in self._asked}
        return [live for live in over if self._asked.get(live.id, 0.0) < now - _ASK_AGAIN_S]

    def _pause_s(self, now: float) -> float:
        times = [live.vm.expires_at for live in self._floor.machines.values() if live.vm.expires_at is not None]
        first_s = min((at - now for at in times), default=_LONGEST_WAIT_S)
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
        self._asked[live.id] = time.time()
        self._floor.rooms.book.emit("vm.expired", f"The time of {live.name} is over.", live.vm)
