"""A bell for one event loop: whoever waits wakes when it rings. Nothing is queued, so nothing grows.

Bell.ring() -> None
Bell.wait(timeout_s=None) -> bool
"""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes all waiters at once. Check the condition first, then wait, in one step of the loop: no ring is missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake everyone who waits now; those who come later wait for the next ring."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True when it rang, False when `timeout_s` ran out first. Without a timeout the caller bounds the wait."""
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True
