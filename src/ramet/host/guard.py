"""Keeps the host from dying when clones diverge: looks at its memory, tells, and asks idle guests for some of theirs.

In this order, each at a threshold of its own: a warning with the lineages that grow; balloons, a step at a time, and
never into what a guest needs; pools give up their members (``pool_keeper``); the kernel's OOM killer, which takes those
that wait in pools first, then clones, then sources (``LiveMachine.mark_expendable``). What was asked for is given back
when memory suffices again, also by a later daemon: it sees that a guest has less than its owner wants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog

from ramet.errors import RametError
from ramet.host.floor import Floor
from ramet.host.gauge import Gauge
from ramet.host.guard_plan import ACT, CALM, Change, Guest, Level, level, release, squeeze
from ramet.host.locks import VmLocks
from ramet.machine.balloon import SLACK_BYTES, wanted_bytes
from ramet.machine.live import LiveMachine
from ramet.memory.host import available_memory_bytes
from ramet.model.machine import VmState
from ramet.model.memory import MemoryRow
from ramet.model.units import MIB, format_bytes

log = structlog.stdlib.get_logger(__name__)

LOOK_EVERY_S = 2.0
REMIND_S = 300.0
"""Between two warnings while memory stays short."""
POLL_S = 1
"""A guest that may be asked says so often what it could do without."""
FRESH_S = 10.0
"""What it said longer ago does not count: a guest that hangs says nothing."""
ASKED = 8
"""Guests that are asked what they need: those with most memory of their own."""
LEAST_UNIQUE_BYTES = 32 * MIB
GROWS_PER_S = 64 << 10
"""Slower growth is not worth naming."""
QMP_S = 5.0


class Guard:
    """One a host; `run` is its life. `available` is another in tests."""

    def __init__(
        self,
        floor: Floor,
        locks: VmLocks,
        gauge: Gauge,
        rows: Callable[[], Iterable[MemoryRow]],
        reserve_bytes: int,
        available: Callable[[], int] = available_memory_bytes,
    ) -> None:
        self._floor = floor
        self._locks = locks
        self._gauge = gauge
        self._rows = rows
        self._reserve = reserve_bytes
        self._available = available
        self._level = Level.CALM
        self._told_at = 0.0
        self._met: set[str] = set()
        self._polled: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except (RametError, OSError) as exc:
                log.warning("the host's memory could not be looked after", error=str(exc))
            except Exception:  # a bug of ours at one VM must not leave the host without its guard
                log.exception("the host's memory could not be looked after")
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> Level:
        """Once: measure, tell, take or give."""
        self._gauge.take(self._rows())
        available = self._available()
        now = level(available, self._reserve, self._level)
        self._tell(now, available)
        await self._meet()
        if now is Level.SHORT:
            await self._squeeze(int(ACT * self._reserve) - available)
        elif now is Level.CALM:
            await self._release(available - int(CALM * self._reserve))
        return now

    # -- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, now: Level, available: int) -> None:
        before, self._level = self._level, now
        if now is Level.CALM:
            if before is not Level.CALM:
                self._emit(now, f"Memory suffices again: {format_bytes(available)} is available.", available)
            return
        worse = before is Level.CALM or (before is Level.LOW and now is Level.SHORT)
        if worse or time.monotonic() >= self._told_at + REMIND_S:
            self._told_at = time.monotonic()
            self._emit(now, self._warning(available), available)

    def _emit(self, now: Level, message: str, available: int) -> None:
        growing = {name: round(rate) for name, rate, _ in self._lineages()}
        self._floor.rooms.book.emit(
            "host.memory",
            message,
            level=now.value,
            available_bytes=available,
            reserve_bytes=self._reserve,
            growing_bytes_per_s=growing,
        )

    def _warning(self, available: int) -> str:
        said = f"Memory is short: {format_bytes(available)} is available, {format_bytes(self._reserve)} is to stay free"
        for name, rate, most in self._lineages()[:1]:
            said += f"; the lineage of {name!r} grows by {format_bytes(60 * rate)} a minute, {most!r} most"
        return f"{said}."

    def _lineages(self) -> list[tuple[str, float, str]]:
        """Those that grow, the fastest first: the ancestor's name, bytes a second, and which VM does most of it."""
        found: dict[str, list[tuple[LiveMachine, float]]] = {}
        for live, rate in self._gauge.growing(GROWS_PER_S):
            found.setdefault(live.vm.lineage_id or live.id, []).append((live, rate))
        sums = [
            (self._name(lineage_id, parts), sum(rate for _, rate in parts), parts[0][0].name)
            for lineage_id, parts in found.items()
        ]
        return sorted(sums, key=lambda one: -one[1])

    def _name(self, lineage_id: str, parts: list[tuple[LiveMachine, float]]) -> str:
        ancestor = self._floor.machines.get(lineage_id)
        return ancestor.name if ancestor is not None else parts[0][0].name

    # -- taking and giving -------------------------------------------------------------------------------------------

    async def _meet(self) -> None:
        """A VM that is new to this daemon: a clone of one that was asked, or one that another daemon has asked."""
        running = {live.id: live for live in self._floor.shown() if live.vm.state is VmState.RUNNING}
        for vm_id in running.keys() - self._met:
            live = running[vm_id]
            try:
                async with asyncio.timeout(QMP_S):
                    actual = await live.qmp.balloon_actual_bytes()
            except (RametError, TimeoutError):
                continue
            self._met.add(vm_id)
            if actual < wanted_bytes(live) - SLACK_BYTES:
                live.squeezed_to = actual
        self._met &= running.keys()
        self._polled &= running.keys()

    async def _squeeze(self, short: int) -> None:
        large = sorted(self._floor.shown(), key=lambda live: -self._gauge.unique_bytes(live.id))
        asked = [live for live in large if self._gauge.unique_bytes(live.id) >= LEAST_UNIQUE_BYTES][:ASKED]
        guests = [guest for live in asked if (guest := await self._guest(live, poll=True)) is not None]
        await self._apply(squeeze(guests, short))

    async def _release(self, room: int) -> None:
        less = [live for live in self._floor.shown() if live.squeezed_to is not None]
        guests = [guest for live in less if (guest := await self._guest(live, poll=False)) is not None]
        await self._apply(release(guests, room))

    async def _guest(self, live: LiveMachine, *, poll: bool) -> Guest | None:
        if live.vm.state is not VmState.RUNNING:
            return None
        try:
            async with asyncio.timeout(QMP_S):
                await self._poll(live, poll)
                actual, stats = await live.qmp.balloon_actual_bytes(), await live.qmp.balloon_stats()
        except (RametError, TimeoutError):
            return None
        if live.squeezed_to is not None:  # it may still be on its way there
            actual = min(actual, live.squeezed_to) if poll else actual
        return Guest(
            id=live.id,
            configured=live.vm.machine.memory_mib * MIB,
            wanted=wanted_bytes(live),
            actual=actual,
            available=stats.available if stats and stats.at > time.time() - FRESH_S else None,
            unique=self._gauge.unique_bytes(live.id),
            growth_per_s=self._gauge.growth_per_s(live.id),
        )

    async def _poll(self, live: LiveMachine, poll: bool) -> None:
        if poll is (live.id in self._polled):
            return
        await live.qmp.poll_balloon(POLL_S if poll else 0)
        (self._polled.add if poll else self._polled.discard)(live.id)

    async def _apply(self, changes: list[Change]) -> None:
        for change in changes:
            live = self._floor.machines.get(change.id)
            if live is None:
                continue
            try:
                # Nothing half said in a stun, and no word to a QEMU that is being ended: whoever is at work goes first.
                async with self._locks.hold(live.id, "balloon"), asyncio.timeout(QMP_S):
                    await live.qmp.balloon(change.size)
            except (RametError, TimeoutError):
                continue
            self._note(live, change.size)

    def _note(self, live: LiveMachine, size: int) -> None:
        before, wanted = live.squeezed_to, wanted_bytes(live)
        live.squeezed_to = size if size < wanted else None
        if (before is None) is (live.squeezed_to is None):
            return
        has = f"{format_bytes(size)} of {format_bytes(live.vm.machine.memory_mib * MIB)}"
        said = "is asked for memory that the host is short of" if before is None else "gets its memory back"
        self._floor.rooms.book.emit("vm.balloon", f"{live.name} {said}: it is to have {has}.", live.vm, size_bytes=size)
