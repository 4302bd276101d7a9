"""Long work on the event loop, with room for others: it rests after some milliseconds, however much is done in them.

    pace = Pace()
    for … in many:
        if pace.is_due():
            await pace.rest()
"""

from __future__ import annotations

import asyncio
from time import perf_counter

__all__ = ["Pace"]

_STRETCH_S = 0.005


class Pace:
    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = perf_counter() + _STRETCH_S

    def is_due(self) -> bool:
        return perf_counter() > self._until

    async def rest(self) -> None:
        await asyncio.sleep(0)
        self._until = perf_counter() + _STRETCH_S
