"""Who did what on what, with which result: lines of JSON that are only ever appended to.

    async with Audit.open(path, quota_bytes) as audit:
        audit.note("VirtualMachine.PowerOnVM_Task", user="eve", peer="10.0.0.7", object="vm-17", result="ok")

A line has `at` (UTC), `user` or `uid`, `via`, `peer`, `action`, and what else is known: `object`, `name`, `result`
('ok', or the error's name), `session`. Passwords never come near. Lines are written a moment after they are noted, in
order; when they come faster than the disk takes them, a line says how many were lost. At a third of the quota the file
is put aside as `<path>.1`, and what was that becomes `<path>.2`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from ramet.host.bell import Bell

log = structlog.stdlib.get_logger(__name__)

MOST_UNWRITTEN = 20_000
FILES = 3
_LONGEST_TEXT = 256
_GATHER_S = 0.05


class Audit:
    """Made by `open`, which also ends it."""

    def __init__(self, path: Path, quota_bytes: int) -> None:
        self._path = path
        self._quota = quota_bytes
        self._unwritten: deque[str] = deque()
        self._lost = 0
        self._bell = Bell()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, quota_bytes: int) -> AsyncIterator[Audit]:
        """What was noted is written at the end of the block."""
        audit = cls(path, quota_bytes)
        writer = asyncio.create_task(audit._write_forever(), name="audit")
        try:
            yield audit
        finally:
            audit._closed = True
            audit._bell.ring()
            await asyncio.wait([writer])

    def note(self, action: str, *, at: float | None = None, **what: Any) -> None:
        """Never blocks. Values are small; those that are None or empty are left out."""
        if len(self._unwritten) >= MOST_UNWRITTEN:
            self._lost += 1
            return
        self._unwritten.append(_line(action, at, what))
        self._bell.ring()

    async def _write_forever(self) -> None:
        while not self._closed:
            if not self._unwritten:
                await self._bell.wait()
            if not self._closed:
                await asyncio.sleep(_GATHER_S)
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        lines = list(self._unwritten)
        self._unwritten.clear()
        if self._lost:
            lines.append(_line("audit.lost", None, {"lines": self._lost}))
            self._lost = 0
        if not lines:
            return
        try:
            await asyncio.to_thread(_write, self._path, "".join(lines).encode(), self._quota)
        except OSError as exc:  # a full disk: those lines are gone, and the log says so
            log.error("the audit log was not written", path=str(self._path), lines=len(lines), error=str(exc))


def _line(action: str, at: float | None, what: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="milliseconds")
    known = {name: _short(value) for name, value in what.items() if value not in (None, "")}
    return json.dumps({"at": moment, "action": action, **known}, ensure_ascii=True) + "\n"


def _short(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    return str(value)[:_LONGEST_TEXT]


def _write(path: Path, data: bytes, quota_bytes: int) -> None:
    """A leading newline ends a line that a crash tore."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        os.write(fd, data)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    if size + len(data) >= quota_bytes // FILES:
        _put_aside(path)


def _put_aside(path: Path) -> None:
    for number in range(FILES - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.replace(older)
