"""Who did what on what, with which result: lines of JSON that are only ever appended to.

    async with Audit.open(path, quota_bytes) as audit:
        audit.note("VirtualMachine.PowerOnVM_Task", user="eve", peer="10.0.0.7", object="vm-17", result="ok")

A line has `at` (UTC), `user` or `uid`, `via`, `peer`, `action`, and what else is known: `object`, `name`, `result`
('ok', or the error's name), `session`. Passwords never come near. Lines are written a moment after they are noted, in
order; when they come faster than the disk takes them, a line says how many were lost. At a third of the quota the file
is put aside as `<path>.1`, and what was that becomes `<path>.2`.

A stranger, who is a peer without a session, could push all else out of the quota. Of each only so many lines are
written in a minute; then one line, `audit.strangers`, says how many more there were.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from ramet.host.bell import Bell

log = structlog.stdlib.get_logger(__name__)

MOST_UNWRITTEN = 20_000
FILES = 3
MOST_OF_A_STRANGER = 20
"""Lines in each window."""
WINDOW_S = 60.0
MOST_STRANGERS = 256
"""That are told apart; those who come beyond them in one window are counted as one."""
OTHERS = "others"
_LONGEST_TEXT = 256
_GATHER_S = 0.05


class Audit:
    """Made by `open`, which also ends it."""

    def __init__(self, path: Path, quota_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._quota = quota_bytes
        self._clock = clock
        self._unwritten: deque[str] = deque()
        self._strangers = Strangers()
        self._lost = 0
        self._bell = Bell()
        self._closed = False
        self._writing = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, quota_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> AsyncIterator[Audit]:
        """What was noted is written at the end of the block."""
        audit = cls(path, quota_bytes, clock)
        writer = asyncio.create_task(audit._write_forever(), name="audit")
        try:
            yield audit
        finally:
            audit._closed = True
            audit._bell.ring()
            await asyncio.wait([writer])

    def note(self, action: str, *, at: float | None = None, **what: Any) -> None:
        """Never blocks. Values are small; those that are None or empty are left out. A `peer` without a `session` is a
        stranger."""
        if what.get("peer") and not what.get("session") and not self._admits(str(what["peer"])):
            return
        if len(self._unwritten) >= MOST_UNWRITTEN:
            self._lost += 1
            return
        self._unwritten.append(_line(action, at, what))
        self._bell.ring()

    def _admits(self, peer: str) -> bool:
        waited = self._strangers.next_s(self._clock())
        admitted = self._strangers.admits(peer, self._clock())
        if not admitted and waited is None:
            self._bell.ring()  # from now on there is something to say later
        return admitted

    async def _write_forever(self) -> None:
        while not self._closed:
            if not self._unwritten:
                await self._bell.wait(self._strangers.next_s(self._clock()))
            if not self._closed:
                await asyncio.sleep(_GATHER_S)
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        """What was noted before is written when it returns, in order."""
        async with self._writing:
            await self._write_all()

    async def _write_all(self) -> None:
        lines = list(self._unwritten)
        self._unwritten.clear()
        for peer, count in self._strangers.over(None if self._closed else self._clock()):
            lines.append(_line("audit.strangers", None, {"via": "vsphere", "peer": peer, "lines": count}))
        if self._lost:
            lines.append(_line("audit.lost", None, {"lines": self._lost}))
            self._lost = 0
        if not lines:
            return
        try:
            await asyncio.to_thread(_write, self._path, "".join(lines).encode(), self._quota)
        except OSError as exc:  # a full disk: those lines are gone, and the log says so
            log.error("the audit log was not written", path=str(self._path), lines=len(lines), error=str(exc))


@dataclass
class _Stranger:
    until: float
    written: int = 0
    left_out: int = 0


class Strangers:
    """How many lines each may cause. Times are of one clock."""

    def __init__(self) -> None:
        self._known: dict[str, _Stranger] = {}

    def admits(self, peer: str, now: float) -> bool:
        """Count one more; whether it is written."""
        one = self._of(_network_of(peer), now)
        if one.written < MOST_OF_A_STRANGER:
            one.written += 1
            return True
        one.left_out += 1
        return False

    def _of(self, peer: str, now: float) -> _Stranger:
        if peer not in self._known and len(self._known) >= MOST_STRANGERS:
            self._known = {name: one for name, one in self._known.items() if one.until > now or one.left_out}
            if len(self._known) >= MOST_STRANGERS:
                peer = OTHERS
        one = self._known.get(peer)
        if one is None or (one.until <= now and not one.left_out):
            one = self._known[peer] = _Stranger(now + WINDOW_S)
        return one

    def next_s(self, now: float) -> float | None:
        """Until there is something to say of lines that were left out; None when there are none."""
        ends = [one.until for one in self._known.values() if one.left_out]
        return max(0.0, min(ends) - now) if ends else None

    def over(self, now: float | None) -> list[tuple[str, int]]:
        """Peers whose window is over, and how many of their lines were left out; all of them for None."""
        done = [peer for peer, one in self._known.items() if now is None or one.until <= now]
        ended = [(peer, self._known.pop(peer).left_out) for peer in done]
        return [(peer, count) for peer, count in ended if count]


def _network_of(peer: str) -> str:
    """Who has one IPv6 address has all of its /64."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer[:_LONGEST_TEXT]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


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
