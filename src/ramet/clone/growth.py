"""Many clones from one moment, a few at a time: what fails is taken back for itself, what is good stays.

More at once than there are processors only makes each of them slower, so `Limits.parallel_forks` bounds them: each is
prepared, forked and loaded before it gives its place to the next. Loaded, it waits for the others, and they all run
together: a guest that wakes up takes more of a processor, under emulation, than it took to make its VM, and the first
would hold up the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

from ramet.clone.check import Order
from ramet.clone.quiesce import Quiesced
from ramet.clone.seedling import Seedling, confine, hatch, new_record, prepare, record, release, run, set_links
from ramet.errors import RametError, from_os_error
from ramet.hypervisor.fork import ForkReply, ForkRequest
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.machine import Vm
from ramet.model.views import CloneTimings

Adopt = Callable[[LiveMachine], Awaitable[None]]
"""Called with a clone's LiveMachine when its record is about to be needed: the host takes it into the inventory."""
Fork = Callable[[ForkRequest], Awaitable[ForkReply]]
"""Asks the process that holds the moment's memory for one fork."""
Told = Callable[[int, int], None]
"""Called after each clone, whatever became of it: how many are done, and of how many."""
_PATIENCE_S = 2.0
"""A record says that a clone runs at most so long after it does: until then its guest cannot be frozen, say."""


@dataclass(frozen=True)
class Ground:
    """What clones grow from: a moment, and who holds its memory."""

    layers: dict[str, str]
    """Disk id -> the immutable layer."""
    device_state: bytes
    pending_rpc: bytes
    moment_id: str


@dataclass
class Harvest:
    """What became of an order."""

    seedlings: list[Seedling] = field(default_factory=list)
    failures: dict[str, RametError] = field(default_factory=dict)
    """By the clone's name."""
    stun_ms: float = 0.0
    quiesced: Quiesced = field(default_factory=Quiesced)
    """What every clone's guest has to be woken from."""

    def check(self) -> Harvest:
        """At least one is good; else the first failure is raised."""
        if not self.seedlings and self.failures:
            raise next(iter(self.failures.values()))
        return self


def record_of(live: LiveMachine, order: Order, index: int, moment_id: str) -> Vm:
    """The record of one clone of the order, complete but for its disks."""
    record = new_record(live.vm, order.machines[index], moment_id, order.workflow, order.vm_ids[index])
    identity, ttl_s = order.identities[index], order.request.ttl_s
    return record.changed(
        identity=identity,
        request_key=order.request.key,
        generation=identity.plan.generation if identity.plan else record.generation,
        expires_at=None if ttl_s is None else record.created_at + ttl_s,
    )


async def grow_all(
    live: LiveMachine, order: Order, fork: Fork, ground: Ground, adopt: Adopt, told: Told = lambda *_: None
) -> Harvest:
    """Every clone of the order. On cancellation none is left; a failure costs its own clone only."""
    growth = _Growth(live, order, fork, ground, adopt, told)
    try:
        await growth.hatch()
        return (await growth.release()).check()
    except BaseException:
        await asyncio.shield(discard_all(growth.loaded))
        raise


class _Growth:
    """An order in the making."""

    def __init__(self, live: LiveMachine, order: Order, fork: Fork, ground: Ground, adopt: Adopt, told: Told) -> None:
        self._live, self._order, self._fork, self._ground, self._adopt = live, order, fork, ground, adopt
        self._told, self._tried = told, 0
        self._gate = asyncio.Semaphore(live.rooms.limits.parallel_forks)
        self.loaded: list[Seedling] = []
        """And still."""
        self.harvest = Harvest()

    async def hatch(self) -> None:
        """All of them, up to the first instruction."""
        await _each(self._hatch(index) for index in range(len(self._order.names)))

    async def _hatch(self, index: int) -> None:
        name = self._order.names[index]
        async with self._gate:
            try:
                vm = record_of(self._live, self._order, index, self._ground.moment_id)
                seedling = await self._loaded(vm)
            except (RametError, OSError) as exc:
                self._note(name, exc)
            else:
                self.loaded.append(seedling)
        if name not in self.harvest.failures and len(self._order.names) > 1:
            await self._good(_settle, seedling)
        self._tried += 1
        self._told(self._tried, len(self._order.names))

    async def _loaded(self, vm: Vm) -> Seedling:
        preparing = time.monotonic()
        seedling = await prepare(self._live, vm, self._ground.layers)
        try:
            seedling.timings = seedling.timings.changed(prepare=(time.monotonic() - preparing) * 1000)
            reach("clone.prepared")
            await hatch_forked(seedling, await self._fork(seedling.asked), self._ground, self._adopt)
        except BaseException:
            await asyncio.shield(discard_all([seedling]))
            raise
        return seedling

    async def release(self) -> Harvest:
        """All at once."""
        step = release if len(self._order.names) == 1 else _Together(len(self.loaded)).release
        await _each(self._good(step, seedling) for seedling in tuple(self.loaded))
        self.harvest.seedlings = sorted(self.loaded, key=lambda seedling: self._order.vm_ids.index(seedling.live.id))
        return self.harvest

    async def _good(self, work: Callable[[Seedling], Awaitable[None]], seedling: Seedling) -> None:
        try:
            await work(seedling)
        except (RametError, OSError) as exc:
            self.loaded.remove(seedling)
            self._note(seedling.live.name, exc)
            await asyncio.shield(discard_all([seedling]))

    def _note(self, name: str, exc: RametError | OSError) -> None:
        self.harvest.failures[name] = exc if isinstance(exc, RametError) else from_os_error(exc)


class _Together:
    """Clones that are written down when all of them run: their guests leave little of the processors for that."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._all_run = asyncio.Event()

    async def release(self, seedling: Seedling) -> None:
        try:
            await run(seedling)
        finally:
            self._left -= 1
            if not self._left:
                self._all_run.set()
        with contextlib.suppress(TimeoutError):  # one that does not answer holds up no other
            async with asyncio.timeout(_PATIENCE_S):
                await self._all_run.wait()
        await record(seedling)


async def _settle(seedling: Seedling) -> None:
    """What would hold the others up when all are let go."""
    await set_links(seedling)
    await confine(seedling)


async def _each(works: Iterable[Coroutine[None, None, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)


async def hatch_forked(seedling: Seedling, reply: ForkReply, ground: Ground, adopt: Adopt) -> None:
    """From the fork to a machine that is loaded and that others can see."""
    seedling.forked(reply)
    reach("clone.forked")
    seedling.timings = seedling.timings.changed(fork=reply.fork_ms)
    await adopt(seedling.live)
    reach("clone.adopted")
    await hatch(seedling, ground.device_state, ground.pending_rpc)


async def discard_all(seedlings: Sequence[Seedling]) -> None:
    """Take back what was made, as far as each got."""
    for seedling in seedlings:
        with contextlib.suppress(RametError, OSError):
            await seedling.discard()


def note_times(harvest: Harvest, order: Order, prepare_ms: float | None = None) -> None:
    """Fill in what the clones have in common. `prepare_ms`: where it was done for all of them ahead."""
    for seedling in harvest.seedlings:
        times = seedling.timings.model_dump() | {
            "check": order.check_ms,
            "stun": harvest.stun_ms,
            "total": (seedling.running_at - order.accepted_at) * 1000,
        }
        if prepare_ms is not None:
            times["prepare"] = prepare_ms
        seedling.timings = CloneTimings.model_validate({name: round(value, 2) for name, value in times.items()})
