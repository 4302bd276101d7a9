"""What changed, in order, for whoever waits: a bounded log of stamps, shared by all, however slow a reader is.

    updates.touch(moid)                      properties of that object may have changed
    updates.reshape(moid)                    and so may have what is under it: it came, went, or moved
    updates.wake()                           nothing changed, but whoever waits looks around: a session has ended
    updates.stamp                            of the last change
    updates.since(stamp) -> Changes          what was touched after that stamp; `everything` when too far back
    await updates.wait(stamp, timeout_s)     True when something changed after `stamp`

Only the event loop's thread writes and reads here, so a reader that looks and then waits misses nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

from ramet.host.bell import Bell

KEPT = 4096
"""Changes; a reader further behind looks at everything."""


@dataclass(frozen=True, slots=True)
class Changes:
    stamp: int
    touched: frozenset[str]
    reshaped: bool
    everything: bool


class Updates:
    def __init__(self, kept: int = KEPT) -> None:
        self.stamp = 0
        self._log: deque[tuple[int, str, bool]] = deque(maxlen=kept)
        self._bell = Bell()

    def touch(self, moid: str) -> None:
        self._note(moid, False)

    def reshape(self, moid: str) -> None:
        self._note(moid, True)

    def _note(self, moid: str, shape: bool) -> None:
        self.stamp += 1
        self._log.append((self.stamp, moid, shape))
        self._bell.ring()

    def wake(self) -> None:
        self._bell.ring()

    def since(self, stamp: int) -> Changes:
        """What changed after `stamp`."""
        if self._log and stamp < self._log[0][0] - 1:
            return Changes(self.stamp, frozenset(), reshaped=True, everything=True)
        start = bisect_right(self._log, stamp, key=lambda entry: entry[0])
        news = [self._log[i] for i in range(start, len(self._log))]
        return Changes(
            self.stamp, frozenset(moid for _, moid, _ in news), any(shape for _, _, shape in news), everything=False
        )

    async def wait(self, stamp: int, timeout_s: float) -> bool:
        """Until something changed after `stamp`; False when `timeout_s` ran out first."""
        return self.stamp > stamp or await self._bell.wait(timeout_s)
