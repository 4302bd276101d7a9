"""Many clones from one moment, a few at a time: what fails is taken back for itself, what is good stays.

More at once than there are processors only makes each of them slower, so `Limits.parallel_forks` bounds them. Each goes
through all of it, prepare, fork, become, before it gives its place to the next: a hundred clones in the making would
hold a hundred times the descriptors. Those that run give way to those that do not yet: a guest that wakes up takes more
of a processor, under emulation, than it took to make its VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ramet.clone.check import Order
from ramet.clone.quiesce import Quiesced
from ramet.clone.seedling import Seedling, become, new_record, prepare
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
Told = Callable[[Seedling | None, int, int], None]
"""Called after each clone, which is None when it failed: how many are done, and of how many."""


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
    harvest, gate = Harvest(), asyncio.Semaphore(live.rooms.limits.parallel_forks)

    async def one(index: int) -> None:
        async with gate:
            seedling = None
            name = order.names[index]
            try:
                record = record_of(live, order, index, ground.moment_id)
                seedling = await _grow(live, record, fork, ground, adopt, gives_way=len(order.names) > 1)
                harvest.seedlings.append(seedling)
            except RametError as exc:
                harvest.failures[name] = exc
            except OSError as exc:
                harvest.failures[name] = from_os_error(exc)
            told(seedling, len(harvest.seedlings) + len(harvest.failures), len(order.names))

    try:
        async with asyncio.TaskGroup() as group:
            for index in range(len(order.names)):
                group.create_task(one(index))
    except BaseException:
        await asyncio.shield(discard_all(harvest.seedlings))
        raise
    await asyncio.to_thread(_take_their_shares, harvest.seedlings)
    harvest.seedlings.sort(key=lambda seedling: order.vm_ids.index(seedling.live.id))
    return harvest.check()


def _take_their_shares(seedlings: Sequence[Seedling]) -> None:
    for seedling in seedlings:
        seedling.live.take_its_share()


async def _grow(
    live: LiveMachine, record: Vm, fork: Fork, ground: Ground, adopt: Adopt, *, gives_way: bool
) -> Seedling:
    preparing = time.monotonic()
    seedling = await prepare(live, record, ground.layers)
    seedling.live.gives_way = gives_way
    try:
        seedling.timings = seedling.timings.changed(prepare=(time.monotonic() - preparing) * 1000)
        reach("clone.prepared")
        await become_forked(seedling, await fork(seedling.asked), ground, adopt)
    except BaseException:
        await asyncio.shield(discard_all([seedling]))
        raise
    return seedling


async def become_forked(seedling: Seedling, reply: ForkReply, ground: Ground, adopt: Adopt) -> None:
    """From the fork to a machine that runs and that others can see."""
    seedling.forked(reply)
    reach("clone.forked")
    seedling.timings = seedling.timings.changed(fork=reply.fork_ms)
    await adopt(seedling.live)
    reach("clone.adopted")
    await become(seedling, ground.device_state, ground.pending_rpc)


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
