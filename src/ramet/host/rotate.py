"""Files that others append to, kept under a quota: consoles and logs.

    rotator = Rotator(files, every_s=10.0)            # files() -> pairs of path and quota in bytes, asked every time,
                                                      # in a thread
    await rotator.run()                               # until cancelled; the caller owns the task
    rotate(path, quota_bytes) -> bool                 # once; blocks
    await read_tail(path, max_bytes) -> bytes         # the end of what was written, across the rotated part

QEMU holds the file open with O_APPEND, so it cannot be renamed away: its content is copied to `<path>.1` and the file
is truncated; with O_APPEND the next write begins at its new end. What is written between the last read of the copy and
the truncation, some microseconds, is lost. Old and new part together stay under the quota, as long as a writer does
not write half of it between two looks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

log = structlog.stdlib.get_logger(__name__)

_CHUNK = 1 << 20
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


def rotated(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def rotate(path: Path, quota_bytes: int) -> bool:
    """Move the content aside when it has reached half the quota. True when it was; OSError passes."""
    try:
        fd = os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(fd).st_size < quota_bytes // 2:
            return False
        _copy_and_truncate(fd, rotated(path), quota_bytes // 2)
    finally:
        os.close(fd)
    return True


def _copy_and_truncate(fd: int, target: Path, keep_bytes: int) -> None:
    """Keep the last `keep_bytes` in `target`, which appears whole, then empty the file."""
    fresh = target.with_name(target.name + ".new")
    fresh.unlink(missing_ok=True)
    out = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        offset = max(0, os.fstat(fd).st_size - keep_bytes)
        while chunk := os.pread(fd, _CHUNK, offset):
            os.write(out, chunk)
            offset += len(chunk)
        fresh.replace(target)
        while chunk := os.pread(fd, _CHUNK, offset):  # came while the copy was put in place
            os.write(out, chunk)
            offset += len(chunk)
        os.ftruncate(fd, 0)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    finally:
        os.close(out)


async def read_tail(path: Path, max_bytes: int) -> bytes:
    """The last `max_bytes` that were written; empty when there is no file."""
    return await asyncio.to_thread(_read_tail, path, max_bytes) if max_bytes > 0 else b""


def _read_tail(path: Path, max_bytes: int) -> bytes:
    data = b""
    for _ in range(4):  # a rotation between the two reads would show bytes twice, or not at all: read again
        before = _identity(rotated(path))
        data = _tail_of(path, max_bytes)
        if len(data) < max_bytes:
            data = _tail_of(rotated(path), max_bytes - len(data)) + data
        if _identity(rotated(path)) == before:
            break
    return data


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _tail_of(path: Path, max_bytes: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return b""
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, max_bytes, max(0, size - max_bytes))
    finally:
        os.close(fd)


class Rotator:
    """Looks at all files now and then. A file that cannot be rotated is told once, and does not stop the others."""

    def __init__(self, files: Callable[[], Iterable[tuple[Path, int]]], every_s: float = 10.0) -> None:
        self._files = files
        self._every_s = every_s
        self._told: set[Path] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Once over all files, in one turn of a thread: so `files` is called there."""
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        for path, quota_bytes in self._files():
            try:
                rotate(path, quota_bytes)
            except OSError as exc:
                if path not in self._told:
                    log.warning("a log was not rotated", path=str(path), error=str(exc))
                self._told.add(path)
            else:
                self._told.discard(path)
