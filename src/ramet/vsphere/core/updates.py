"""What changed, in order, for whoever waits: a bounded log of stamps, shared by all, however slow a reader is.

    updates.touch(moid)                      properties of that object may have changed
    updates.reshape(moid, kind)              and so may have what is under it: it came, went, or moved
    updates.wake()                           nothing changed, but whoever waits looks around: a session has ended
    updates.stamp                            of the last change
    updates.since(stamp) -> Changes          what was touched after that stamp; `everything` when too far back
    await updates.wait(stamp, timeout_s)     True when something changed after `stamp`
    with updates.watch(concerns) as event:   set when something changes that `concerns(moid, shape, kind)`

Only the event loop's thread writes and reads here, so a reader that looks and then waits misses nothing.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ramet.host.bell import Bell

KEPT = 4096
"""Changes; a reader further behind looks at everything."""

Concern = Callable[[str, bool, Any], bool]


@dataclass(frozen=True, slots=True)
class Changes:
    stamp: int
    touched: frozenset[str]
    reshaped: bool
    everything: bool
    kinds: frozenset[Any] = frozenset()
    """Types of what came, went or moved; None stands for one that is not known."""


class Updates:
    def __init__(self, kept: int = KEPT) -> None:
        self.stamp = 0
        self.shape = 0
        """Stamp of the last thing that came, went or moved."""
        self._log: deque[tuple[int, str, bool, Any]] = deque(maxlen=kept)
        self._bell = Bell()
        self._watches: dict[asyncio.Event, Concern] = {}

    def touch(self, moid: str) -> None:
        self._note(moid, False, None)

    def reshape(self, moid: str, kind: Any = None) -> None:
        """`kind` is the object's type: who looks at other types only need not look."""
        self.shape = self.stamp + 1
        self._note(moid, True, kind)

    def wake(self) -> None:
        for event in self._watches:
            event.set()
        self._bell.ring()

    def _note(self, moid: str, shape: bool, kind: Any) -> None:
        self.stamp += 1
        self._log.append((self.stamp, moid, shape, kind))
        for event, concerns in self._watches.items():
            if not event.is_set() and concerns(moid, shape, kind):
                event.set()
        self._bell.ring()

    def since(self, stamp: int) -> Changes:
        """What changed after `stamp`."""
        if self._log and stamp < self._log[0][0] - 1:
            return Changes(self.stamp, frozenset(), reshaped=True, everything=True)
        start = bisect_right(self._log, stamp, key=lambda entry: entry[0])
        news = [self._log[i] for i in range(start, len(self._log))]
        kinds = frozenset(kind for _, _, shape, kind in news if shape)
        return Changes(self.stamp, frozenset(moid for _, moid, _, _ in news), bool(kinds), False, kinds)

    async def wait(self, stamp: int, timeout_s: float) -> bool:
        """Until something changed after `stamp`; False when `timeout_s` ran out first."""
        return self.stamp > stamp or await self._bell.wait(timeout_s)

    @contextmanager
    def watch(self, concerns: Concern) -> Iterator[asyncio.Event]:
        """An event that is set by changes that concern the caller, and by `wake`: nobody is woken for others'."""
        event = asyncio.Event()
        self._watches[event] = concerns
        try:
            yield event
        finally:
            del self._watches[event]
