"""What commands of tasks print: kept a while, in memory and bounded, for those who follow or come later.

outputs = Outputs()
log = outputs.open(task_id); log.put(event); log.close()
async for event in outputs.follow(task_id): ...       # from the beginning, until it is closed
"""

from __future__ import annotations

import collections
from collections.abc import AsyncGenerator

from ramet.errors import NotFoundError
from ramet.host.bell import Bell
from ramet.model.execution import ExecEvent

MOST_BYTES = 8 << 20
"""Of one task's output, as base64; what is oldest goes first."""
MOST_LOGS = 16
_WAIT_S = 3600.0


class OutputLog:
    """One task's output. For the event loop's thread."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._events: collections.deque[ExecEvent] = collections.deque()
        self._bytes = 0
        self._first = 0
        """How many events were dropped."""
        self._dropped_bytes = 0
        self._bell = Bell()
        self.closed = False

    def put(self, event: ExecEvent) -> None:
        self._events.append(event)
        self._bytes += _size(event)
        while self._bytes > self._most_bytes and len(self._events) > 1:
            gone = self._events.popleft()
            self._bytes -= _size(gone)
            self._dropped_bytes += _size(gone)
            self._first += 1
        self._bell.ring()

    def close(self) -> None:
        """Nothing follows; who follows sees the end."""
        self.closed = True
        self._bell.ring()

    async def follow(self) -> AsyncGenerator[ExecEvent, None]:
        at, dropped = 0, 0
        while True:
            if at < self._first:
                yield ExecEvent(kind="lost", lost_bytes=(self._dropped_bytes - dropped) * 3 // 4)
                at = self._first
            dropped = self._dropped_bytes
            if at < self._first + len(self._events):
                at += 1
                yield self._events[at - 1 - self._first]
            elif self.closed:
                return
            else:
                await self._bell.wait(_WAIT_S)


class Outputs:
    """The outputs of the last tasks that had one."""

    def __init__(self) -> None:
        self._logs: dict[str, OutputLog] = {}

    def open(self, task_id: str) -> OutputLog:
        """The task's output, which is made when there is none."""
        log = self._logs.setdefault(task_id, OutputLog())
        closed = [task_id for task_id, log in self._logs.items() if log.closed]
        for old in closed[: max(0, len(self._logs) - MOST_LOGS)]:
            del self._logs[old]
        return log

    def find(self, task_id: str) -> OutputLog:
        """NotFoundError for a task without output, or of long ago."""
        log = self._logs.get(task_id)
        if log is None:
            raise NotFoundError(f"The task {task_id!r} has no output here.", ref=task_id)
        return log


def _size(event: ExecEvent) -> int:
    return len(event.data_base64 or "")
