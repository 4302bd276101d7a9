"""Who keeps the pools full: drops what cannot be served or afforded, and has grown what is missing.

It looks at every pool when something happens to a VM, when a clone is taken, and now and then. Growing is a task of its
own, a few at a time, when those who clone are done.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import structlog

from ramet.clone import pool
from ramet.errors import BusyError, RametError, StateError
from ramet.host.bell import Bell
from ramet.host.events import EventLog
from ramet.host.floor import Floor
from ramet.host.locks import VmLocks
from ramet.host.pool_shelf import Keeping, PoolShelf
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.machine.live import LiveMachine
from ramet.model.machine import Moment
from ramet.model.units import MIB

log = structlog.stdlib.get_logger(__name__)

LOOK_EVERY_S = 2.0
"""The host's memory tells nobody when it becomes short."""
LOCK_PATIENCE_S = 30.0
BREATH_S = 0.05
"""Between two waves: whoever waits to thaw or stop the source gets its lock."""
MAX_BACKOFF_S = 60.0
CANCELLED_REST_S = 15.0


@dataclass(frozen=True)
class PoolLimits:
    """From the settings."""

    parallel: int = 2
    delay_s: float = 0.2
    """Nobody took a clone for so long before the pool is filled again ..."""
    patience_s: float = 5.0
    """... or it is filled all the same."""
    reserve_bytes: int = 512 * MIB


class PoolKeeper:
    """One a host. `run` is its life; `give_up` may be called by others meanwhile."""

    def __init__(
        self, floor: Floor, shelf: PoolShelf, tasks: TaskManager, locks: VmLocks, events: EventLog, limits: PoolLimits
    ) -> None:
        self._floor = floor
        self._shelf = shelf
        self._tasks = tasks
        self._locks = locks
        self._events = events
        self._limits = limits
        self._gate = asyncio.Semaphore(limits.parallel)
        self._taken_at = 0.0
        self._wake = asyncio.Event()
        self._dropped = Bell()
        self._closed = False

    def note_taken(self, source_id: str) -> None:
        """A clone was taken: grow another, but not at once."""
        self._taken_at = time.monotonic()
        self._shelf.of(source_id).taken += 1
        self.wake()

    async def close(self) -> None:
        """Grow nothing any more, and end every member."""
        self._closed = True
        for source_id in self._shelf.source_ids():
            await self.give_up(source_id)

    def wake(self) -> None:
        """Look soon."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. Needs: recovery is done, and the members that live are on the floor."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="pools: events")
            while True:
                self._wake.clear()
                await self._look()
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: until Python 3.12 it loses a cancellation that comes together with the wake.
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._wake.wait()

    async def _follow(self) -> None:
        async for event in self._events.follow():
            if event.kind in ("vm.state", "vm.removed"):
                self.wake()

    async def _look(self) -> None:
        for source_id in self._shelf.source_ids():
            try:
                await self._tend(source_id)
            except (RametError, OSError) as exc:
                log.warning("a pool could not be looked after", vm=source_id, error=str(exc))
            except Exception:  # a bug of ours in one pool must not end the keeping of all
                log.exception("a pool could not be looked after", vm=source_id)

    async def _tend(self, source_id: str) -> None:
        """Drop what must go, and see that what is missing is grown."""
        if self._floor.inventory.get_vm(source_id) is None:
            await self._floor.inventory.pools.remove(source_id)
        keeping = self._shelf.of(source_id)
        await self._shelf.measure(source_id, keeping)
        decision = self._shelf.decide(source_id)
        await self.drop(*(self._floor.machines[one] for one in decision.drop))
        if self._shelf.spec(source_id) is None:
            if not self._shelf.members(source_id):
                self._shelf.forget(source_id)
        elif decision.grow and not self._closed and self._may_refill(keeping):
            await self._refill(source_id, keeping)

    def _may_refill(self, keeping: Keeping) -> bool:
        return time.monotonic() >= keeping.not_before and not self._is_refilling(keeping)

    def _is_refilling(self, keeping: Keeping) -> bool:
        if keeping.refill is None:
            return False
        with contextlib.suppress(RametError):
            return not self._tasks.get(keeping.refill).state.is_final
        return False

    async def _refill(self, source_id: str, keeping: Keeping) -> None:
        source = self._floor.machines[source_id]

        async def work(handle: TaskHandle) -> dict[str, int]:
            try:
                return {"ready": await self._fill(source, keeping, handle)}
            finally:
                self.wake()

        task = await self._tasks.start("pool.refill", source.name, work, vm_id=source_id, cancellable=True)
        keeping.refill = task.id

    async def _fill(self, source: LiveMachine, keeping: Keeping, handle: TaskHandle) -> int:
        """Wave after wave, until nothing is missing or may be grown. The first failure ends it, for a while."""
        grown = 0
        try:
            while not self._closed and (count := await self._wave(source, keeping, handle)):
                grown += count
        except BusyError:  # it is being thawed, stopped or frozen anew: what follows will be seen
            pass
        except (RametError, OSError) as exc:
            if self._shelf.moment(source) is not None:  # else it ended, or was thawed, in the middle
                self._failed(source, keeping, str(exc))
            raise
        except asyncio.CancelledError:
            keeping.not_before = time.monotonic() + CANCELLED_REST_S
            raise
        else:
            keeping.failures, keeping.problem = 0, None
        await self._note_in_spec(source.id, keeping)
        return grown

    async def _wave(self, source: LiveMachine, keeping: Keeping, handle: TaskHandle) -> int:
        await self._until_calm()
        async with self._locks.hold(source.id, "clone", shared=True, wait_s=LOCK_PATIENCE_S):
            await self._shelf.measure(source.id, keeping)
            moment = self._shelf.moment(source)
            count = min(self._shelf.decide(source.id).grow, self._limits.parallel)
            if count == 0 or moment is None:
                return 0
            began = time.monotonic()
            with handle.step(f"load {count}"):
                await self._grow_many(source, moment, count)
            keeping.note_wave(count, time.monotonic() - began)
        await asyncio.sleep(BREATH_S)
        return count

    async def _grow_many(self, source: LiveMachine, moment: Moment, count: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self._grow_one(source, moment))
        except* (RametError, OSError) as failures:
            raise failures.exceptions[0] from None

    async def _grow_one(self, source: LiveMachine, moment: Moment) -> None:
        async with self._gate:
            self._floor.add(await pool.grow(source, moment))

    async def _until_calm(self) -> None:
        """Those who wait for a clone go first; but a pool that is never filled helps nobody."""
        deadline = time.monotonic() + self._limits.patience_s
        while time.monotonic() < deadline:
            quiet_s = time.monotonic() - self._taken_at
            cloning = any(task.kind == "clone" and not task.state.is_final for task in self._tasks.list())
            if quiet_s >= self._limits.delay_s and not cloning:
                return
            await asyncio.sleep(max(BREATH_S, self._limits.delay_s - quiet_s))

    def _failed(self, source: LiveMachine, keeping: Keeping, reason: str) -> None:
        keeping.failures += 1
        keeping.not_before = time.monotonic() + min(MAX_BACKOFF_S, 2.0**keeping.failures)
        if keeping.problem != reason:
            self._floor.rooms.book.emit("host.warning", f"The pool of {source.name} is not filled: {reason}", source.vm)
        keeping.problem = reason

    async def _note_in_spec(self, source_id: str, keeping: Keeping) -> None:
        """How many were taken, written when there is time."""
        spec = self._shelf.spec(source_id)
        if spec is not None and keeping.taken:
            taken, keeping.taken = keeping.taken, 0
            await self._floor.inventory.pools.put(spec.changed(taken=spec.taken + taken))

    async def drop(self, *members: LiveMachine) -> None:
        """End members, and remove all that is theirs. Nobody can take them from here on. One that fails stays, and is
        dropped again."""
        ids = {member.id for member in members}
        self._shelf.busy |= ids
        try:
            for error in await asyncio.gather(*map(pool.drop, members), return_exceptions=True):
                if error is not None:
                    log.warning("a pooled clone could not be removed", error=str(error))
            if members:  # their source may be gone, or have other layers by now: they were the last to use these
                await self._floor.collect_layers()
        finally:
            self._shelf.busy -= ids
            self._dropped.ring()

    async def give_up(self, source_id: str) -> None:
        """End the refill and every member: those that somebody else is dropping, too, are gone when this returns."""
        keeping = self._shelf.of(source_id)
        if keeping.refill is not None and self._is_refilling(keeping):
            with contextlib.suppress(StateError):  # it has been told already
                await self._tasks.cancel(keeping.refill)
            await self._tasks.wait(keeping.refill, LOCK_PATIENCE_S)
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while self._shelf.has_any(source_id) and time.monotonic() < deadline:
            await self.drop(*self._shelf.members(source_id))
            if self._shelf.has_any(source_id):
                await self._dropped.wait(LOOK_EVERY_S)
        self._shelf.forget(source_id)
