"""What happened, numbered: kept in memory for followers, appended to a file for the next start.

    async with EventLog.open(path, capacity=10_000) as events:
        events.emit("vm.created", "VM 'web' was created.", vm=vm, image="debian") -> Event   # never blocks
        events.recent(limit=100, since_seq=0) -> list[Event]
        async for event in events.follow(since_seq=None): ...       # None: from now on; ends when the log closes
        events.last_seq

Writes are gathered and flushed by a task of its own; a power loss may take the last moments' events, kill -9 takes at
most those of the last fraction of a second. Followers read from the one bounded memory, so a slow one costs nothing:
it is told by an event 'events.lost' how many it missed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from ramet.host.bell import Bell
from ramet.model.host import Event
from ramet.model.machine import Vm

log = structlog.stdlib.get_logger(__name__)

CAPACITY = 10_000
_FLUSH_EVERY_S = 0.1
_LONGEST_LINE_BYTES = 1 << 20


class EventLog:
    """Made by `open`, which also ends it."""

    def __init__(self, path: Path, capacity: int, past: list[Event], lines_in_file: int) -> None:
        self._path = path
        self._capacity = capacity
        self._events: deque[Event] = deque(past, maxlen=capacity)
        self._unwritten: deque[Event] = deque(maxlen=capacity)
        self._lines_in_file = lines_in_file
        self._bell = Bell()
        self._closed = False
        self.last_seq = past[-1].seq if past else 0

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, capacity: int = CAPACITY) -> AsyncIterator[EventLog]:
        """Read the file's events, go on numbering after them; flush and end all followers at the end of the block."""
        past, lines = await asyncio.to_thread(_read, path, capacity)
        events = cls(path, capacity, past, lines)
        writer = asyncio.create_task(events._write_forever(), name="events-writer")
        try:
            yield events
        finally:
            events._closed = True
            events._bell.ring()
            await asyncio.wait([writer])

    def emit(self, kind: str, message: str, *, vm: Vm | None = None, **fields: Any) -> Event:
        """Number an event and hand it to the followers. `fields` are small and JSON."""
        self.last_seq += 1
        event = Event(
            seq=self.last_seq,
            at=time.time(),
            kind=kind,
            vm_id=vm.id if vm else None,
            vm_name=vm.name if vm else None,
            message=message,
            fields=to_jsonable_python(fields, fallback=str),
        )
        self._events.append(event)
        self._unwritten.append(event)
        self._bell.ring()
        return event

    def recent(self, limit: int = 100, since_seq: int = 0) -> list[Event]:
        """The last `limit` events after `since_seq`, oldest first."""
        return self._after(since_seq)[-limit:] if limit > 0 else []

    async def follow(self, since_seq: int | None = None) -> AsyncIterator[Event]:
        """Events after `since_seq` as they come."""
        seen = self.last_seq if since_seq is None else min(since_seq, self.last_seq)
        while True:
            if self._events and seen < self._events[0].seq - 1:
                yield self._lost(seen)
                seen = self._events[0].seq - 1
            for event in self._after(seen):
                yield event
                seen = event.seq
            if self._closed:
                return
            if seen == self.last_seq:
                await self._bell.wait()

    def _lost(self, seen: int) -> Event:
        first = self._events[0]
        missed = first.seq - 1 - seen
        return Event(
            seq=first.seq - 1,
            at=first.at,
            kind="events.lost",
            message=f"{missed} events are no longer kept.",
            fields={"missed": missed},
        )

    def _after(self, seq: int) -> list[Event]:
        if not self._events:
            return []
        start = max(0, seq + 1 - self._events[0].seq)  # numbers in memory have no gaps
        return list(islice(self._events, start, None))

    async def _write_forever(self) -> None:
        while not self._closed:
            if not self._unwritten:
                await self._bell.wait()
            if not self._closed:
                await asyncio.sleep(_FLUSH_EVERY_S)  # gather a few
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        batch = list(self._unwritten)
        self._unwritten.clear()
        if not batch:
            return
        try:
            if self._lines_in_file + len(batch) > 2 * self._capacity:
                kept = list(self._events)
                await asyncio.to_thread(_replace, self._path, kept)
                self._lines_in_file = len(kept)
            else:
                await asyncio.to_thread(_append, self._path, batch)
                self._lines_in_file += len(batch)
        except OSError as exc:  # a full disk must not end the daemon's memory of what happens
            log.error("events were not written", path=str(self._path), error=str(exc))


def _read(path: Path, capacity: int) -> tuple[list[Event], int]:
    """The last events of the file, and how many lines it has. A line that is not whole is left out."""
    events: deque[Event] = deque(maxlen=capacity)
    lines = 0
    if path.exists():
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE_BYTES):
                lines += 1
                try:
                    event = Event.model_validate_json(line)
                except ValidationError:
                    continue
                if events and event.seq != events[-1].seq + 1:
                    events.clear()  # memory has no gaps
                events.append(event)
    return list(events), lines


def _append(path: Path, events: list[Event]) -> None:
    """A leading newline ends a line that a crash tore."""
    data = "".join(event.model_dump_json() + "\n" for event in events).encode()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        os.write(fd, data)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _replace(path: Path, events: list[Event]) -> None:
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    _append(fresh, events)
    fresh.replace(path)
