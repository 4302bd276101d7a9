"""Writes of what is true already, which the disk had no room for: made again until they succeed.

    debts = Debts()
    await debts.write(key, write)     # never raises for a full disk: the write is owed then
    debts.paid(key)                   # another write has said it
    await debts.run()                 # until cancelled

A QEMU that ended has ended, whether or not that could be written down. Memory says so at once; the inventory follows as
soon as there is room. Should the daemon die before that, its next start finds out by itself: it asks QEMU, and the
journal, whose entries stay for as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ramet.errors import CapacityError

log = structlog.stdlib.get_logger(__name__)

RETRY_S = 1.0

Write = Callable[[], Awaitable[object]]


class Debts:
    """By key, so that a newer write of one record takes the place of an older one."""

    def __init__(self) -> None:
        self._owed: dict[str, Write] = {}

    def __len__(self) -> int:
        return len(self._owed)

    async def write(self, key: str, write: Write) -> None:
        """Now, or when there is room. Other errors than a lack of room pass."""
        self._owed.pop(key, None)
        try:
            await write()
        except (CapacityError, OSError) as exc:
            log.warning("the inventory cannot be written; it is tried again", key=key, error=str(exc))
            self._owed.setdefault(key, write)  # one that came meanwhile is newer

    def paid(self, key: str) -> None:
        """What was owed under this key is superseded."""
        self._owed.pop(key, None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(RETRY_S)
            await self.pay()

    async def pay(self) -> None:
        """Try all of them, once."""
        for key, write in list(self._owed.items()):
            try:
                await write()
            except (CapacityError, OSError):
                return  # the disk is still full
            except Exception:  # a bug of ours in one of them must not keep all others from being written
                log.exception("what was owed to the inventory cannot be written", key=key)
            if self._owed.get(key) is write:
                del self._owed[key]
                log.info("the inventory was written again", key=key)
