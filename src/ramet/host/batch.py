"""The clones of one request, from the moment they run to the answer: identities, reshaping, addresses, results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from ramet.clone.check import Order
from ramet.clone.growth import Told, record_of
from ramet.clone.identity import wait_on_network
from ramet.clone.quiesce import Quiesced
from ramet.clone.seedling import Seedling
from ramet.errors import ConflictError, RametError
from ramet.host.identities import IdentityDesk
from ramet.host.pools import PoolDesk
from ramet.host.tasks import TaskHandle
from ramet.machine import hardware
from ramet.machine.balloon import apply_memory_target
from ramet.machine.live import LiveMachine
from ramet.model.machine import Vm
from ramet.model.memory import CloneMemory
from ramet.model.requests import CloneVm
from ramet.model.views import CloneResult, CloneTimings
from ramet.network.firewall import Guard

_GROWN_PERCENT = 60.0
"""Of a request's progress, when its clones run; the rest is their identities."""


@dataclass
class Born:
    """One clone that runs."""

    live: LiveMachine
    timings: CloneTimings
    from_pool: bool = False
    warnings: tuple[str, ...] = ()
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.live.name

    @property
    def is_new(self) -> bool:
        """Made now; not by the same request before a crash."""
        return self.timings.total > 0

    @classmethod
    def of_seedling(cls, seedling: Seedling) -> Born:
        return cls(seedling.live, seedling.timings)

    def note(self, **times_ms: float) -> None:
        self.timings = self.timings.changed(**{name: round(value, 2) for name, value in times_ms.items()})


@dataclass
class Batch:
    """What became of an order so far."""

    order: Order
    born: list[Born]
    failures: dict[str, RametError] = field(default_factory=dict)
    quiesced: Quiesced = field(default_factory=Quiesced)

    @property
    def request(self) -> CloneVm:
        return self.order.request

    def since_accepted_ms(self, at: float) -> float:
        return (at - self.order.accepted_at) * 1000


def batch_progress(handle: TaskHandle, total: int) -> Told:
    """Counts clones in the task's progress."""

    def told(done: int, of: int) -> None:
        handle.progress(_GROWN_PERCENT * (total - of + done) / total, f"{total - of + done} of {total} clones")

    return told


async def from_pool(pools: PoolDesk, source: LiveMachine, order: Order, made: list[LiveMachine]) -> list[Born]:
    """As many as are ready and fit, all at once; the rest has to be grown. `made`: told of each as soon as it runs."""
    if not pools.can_serve(source, order.request):
        return []

    async def take(index: int) -> Born | None:
        taken = None
        with contextlib.suppress(ConflictError):  # told by the ordinary way, for which it is left
            taken = await pools.take(source, record_of(source, order, index, source.vm.moment_id or ""))
        if taken is None:
            return None
        made.append(taken.live)
        total_ms = (taken.running_at - order.accepted_at) * 1000
        times = {"check": order.check_ms, "running": taken.took_ms, "total": total_ms}
        born = Born(taken.live, CloneTimings(), from_pool=True)
        born.note(**times)
        return born

    async with asyncio.TaskGroup() as group:
        takes = [group.create_task(take(index)) for index in range(len(order.names))]
    return [born for one in takes if (born := one.result()) is not None]


async def finish(identities: IdentityDesk, batch: Batch, guard: Guard, handle: TaskHandle) -> None:
    """Whatever goes wrong with one clone stands in its record or its warnings, and costs no other."""
    lives = [born.live for born in batch.born]
    for vm_id, problems in (await identities.wake_bare(lives, batch.quiesced)).items():
        next(born for born in batch.born if born.live.id == vm_id).warnings += problems
    await identities.claim(lives)
    asked = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(batch, asked))
        with handle.step("identity"):
            acknowledged = await identities.give_all(lives, guard, _counting(handle, batch))
        asked.set()
        for born in batch.born:
            if born.is_new:  # once its guest has answered, which has work enough until then
                born.warnings += await reshape(born.live, batch.request)
        with handle.step("network"):
            await watch
    for born in batch.born:
        if (at := acknowledged.get(born.live.id)) is not None:
            born.note(identity=batch.since_accepted_ms(at))


async def _watch(batch: Batch, asked: asyncio.Event) -> None:
    """See the clones come onto their networks, one by one."""
    wait_s = batch.request.wait_network_s
    awaited = [born.live for born in batch.born if born.live.vm.identity.plan is not None]
    if not wait_s or not any(nic.connected for live in awaited for nic in live.vm.machine.nics):
        return
    try:
        found = await wait_on_network(awaited, wait_s, asked)
    except (RametError, OSError):  # not to know an address is no failure of a clone's
        return
    for born in batch.born:
        seen = found.get(born.live.id)
        if seen is not None:
            born.addresses = seen.addresses
            if seen.at:
                born.note(network=batch.since_accepted_ms(seen.at))


def _counting(handle: TaskHandle, batch: Batch) -> Callable[[LiveMachine], None]:
    count = 0

    def told(_: LiveMachine) -> None:
        nonlocal count
        count += 1
        share = count / max(1, len(batch.born))
        handle.progress(
            _GROWN_PERCENT + (99 - _GROWN_PERCENT) * share, f"{count} of {len(batch.born)} have an identity"
        )

    return told


async def reshape(live: LiveMachine, request: CloneVm) -> tuple[str, ...]:
    """More NICs and disks, and less memory, for a clone that runs; what could not be done, in sentences."""
    steps: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        *(("a NIC was not added", partial(hardware.add_nic, live, nic)) for nic in request.add_nics),
        *(("a disk was not added", partial(hardware.add_disk, live, disk.size_mib)) for disk in request.add_disks),
    ]
    if live.vm.machine.memory_target_mib is not None:
        steps.append(("its memory was not reduced", partial(apply_memory_target, live)))
    warnings = []
    for what, step in steps:
        try:
            await step()
        except (RametError, OSError) as exc:
            warnings.append(f"{live.name!r}: {what}: {exc}")
    return tuple(warnings)


def note_steps(handle: TaskHandle, born: Born) -> None:
    """A clone's own times as steps of its task, in the order they happened; of many, the results alone tell."""
    at = 0.0
    for name, took_ms in born.timings.model_dump(exclude={"total", "identity", "network"}).items():
        handle.add_step(f"{name} {born.name}", at, took_ms)
        at += took_ms


def results(batch: Batch, task_id: str, memory: CloneMemory | None = None) -> list[CloneResult]:
    """One for each name that was asked for, in that order. `memory`: what all of them did to it."""
    good = {born.name: _good(batch, born, task_id).model_copy(update={"memory": memory}) for born in batch.born}
    bad = {
        name: CloneResult(name=name, id="", task=task_id, timings_ms=CloneTimings(), ok=False, error=error.as_dict())
        for name, error in batch.failures.items()
    }
    return [{**bad, **good}[name] for name in batch.order.names if name in good or name in bad]


def _problem(vm: Vm) -> str:
    """Why it stays off the network; one that could not even be asked has no problem in its record."""
    return vm.identity.problem or f"Its guest could not be asked for its identity: the VM is {vm.state.value}."


def _good(batch: Batch, born: Born, task_id: str) -> CloneResult:
    vm = born.live.vm
    return CloneResult(
        name=vm.name,
        id=vm.id,
        task=task_id,
        timings_ms=born.timings,
        warnings=(*batch.order.warnings, *born.warnings),
        identity=vm.identity.state,
        problem=_problem(vm) if vm.identity.holds_links_down else None,
        hostname=vm.identity.acknowledgement.hostname if vm.identity.acknowledgement else None,
        addresses=born.addresses,
        from_pool=born.from_pool,
    )
