"""The keeper of pools, driven at random: clones and machines are made of nothing here, but locks and waits are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ramet.clone import pool
from ramet.clone.seedling import new_record
from ramet.errors import ForkError, NotFoundError, RametError
from ramet.host import pool_keeper, pool_shelf
from ramet.host.locks import VmLocks
from ramet.host.pool_keeper import PoolLimits
from ramet.host.pools import PoolDesk
from ramet.memory.admission import Admission
from ramet.model.host import Event, Task, TaskState
from ramet.model.machine import Accelerator, Disk, Machine, Moment, Nic, Vm, VmState
from ramet.model.pool import PoolSpec, SetPool
from ramet.model.requests import CloneVm, NicChange
from ramet.model.units import MIB, new_id
from ramet.model.views import MemoryView

COST_MIB, RESERVE_MIB, PARALLEL = 20, 100, 2


class Live:
    """A LiveMachine's record, and whether it has a process."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.process: object | None = object()

    @property
    def id(self) -> str:
        return self.vm.id

    @property
    def name(self) -> str:
        return self.vm.name


class Pools:
    """Of an inventory."""

    def __init__(self) -> None:
        self.specs: dict[str, PoolSpec] = {}

    def all(self) -> list[PoolSpec]:
        return list(self.specs.values())

    def get(self, key: str) -> PoolSpec | None:
        return self.specs.get(key)

    def find(self, key: str) -> PoolSpec:
        if key not in self.specs:
            raise NotFoundError("There is no pool.")
        return self.specs[key]

    async def put(self, spec: PoolSpec) -> None:
        await asyncio.sleep(0)
        self.specs[spec.vm_id] = spec

    async def remove(self, key: str) -> None:
        await asyncio.sleep(0)
        self.specs.pop(key, None)


class Tasks:
    """Runs what it is given."""

    def __init__(self) -> None:
        self.works: dict[str, asyncio.Task[Any]] = {}

    async def start(self, kind: str, target: str, work: Any, **_: Any) -> Task:
        task = Task(kind=kind, target=target, state=TaskState.RUNNING)
        handle = SimpleNamespace(id=task.id, step=lambda name: cast("Any", _Nothing()))
        self.works[task.id] = asyncio.ensure_future(work(handle))
        return task

    def get(self, task_id: str) -> Task:
        done = self.works[task_id].done()
        state = TaskState.SUCCESS if done else TaskState.RUNNING
        return Task(id=task_id, kind="pool.refill", target="", state=state)

    def list(self) -> list[Task]:
        return []

    async def cancel(self, task_id: str) -> None:
        self.works[task_id].cancel()

    async def wait(self, task_id: str, timeout_s: float) -> None:
        await asyncio.wait([self.works[task_id]], timeout=timeout_s)


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Events:
    async def follow(self) -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Event(at=0, kind="", message="")


@dataclass
class World:
    """One host with one source, and what is done to its members."""

    source: Live
    moment: Moment
    available_mib: int = 10_000
    growing: int = 0
    fails: bool = False
    took: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    collected: int = 0
    """Members that had been dropped when layers were collected last."""
    machines: dict[str, Live] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machines[self.source.id] = self.source
        self.pools = Pools()
        self.tasks = Tasks()
        self.locks = VmLocks()
        self.told: list[str] = []
        inventory = SimpleNamespace(
            pools=self.pools,
            moments=SimpleNamespace(get=lambda key: self.moment if key == self.moment.id else None),
            get_vm=lambda key: self.machines[key].vm if key in self.machines else None,
        )
        book = SimpleNamespace(emit=lambda kind, *_: self.told.append(kind), network=lambda name: None)
        self.floor = SimpleNamespace(
            machines=self.machines,
            inventory=inventory,
            rooms=SimpleNamespace(book=book, admission=Admission()),
            add=lambda live: self.machines.__setitem__(live.id, live),
            find=lambda ref: self.source,
            collect_layers=self.collect,
        )
        limits = PoolLimits(parallel=PARALLEL, delay_s=0, patience_s=0, reserve_bytes=RESERVE_MIB * MIB)
        self.desk = PoolDesk(
            cast("Any", self.floor), cast("Any", self.tasks), self.locks, cast("Any", Events()), limits,
            lambda: self.available_mib * MIB,
        )  # fmt: skip

    @property
    def members(self) -> list[Live]:
        return [live for live in self.machines.values() if live.vm.is_pooled]

    async def grow(self, source: Live, moment: Moment) -> Live:
        self.growing += 1
        assert self.growing <= PARALLEL
        try:
            for _ in range(3):
                await asyncio.sleep(0)
                assert source.vm.frozen, "its lock was not held"
            if self.fails:
                raise ForkError("No.")
        finally:
            self.growing -= 1
        machine = source.vm.machine.changed(name="pool-x", nics=(Nic(id="net0"),), disks=())
        record = new_record(source.vm, machine, moment.id, "frozen", new_id())
        self.available_mib -= COST_MIB
        return Live(record.changed(pool_of=source.id, state=VmState.READY))

    async def take(self, member: Live, want: Vm) -> float:
        await asyncio.sleep(0)
        if member.process is None:
            raise ForkError("It is dead.")
        assert member.vm.is_pooled, "taken twice"
        member.vm = member.vm.changed(pool_of=None, state=VmState.RUNNING)
        self.took.append(member.id)
        return 0.0

    async def drop(self, member: Live) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert member.id not in self.took, "a user's VM was dropped"
        assert member.id not in self.dropped, "dropped twice"
        del self.machines[member.id]
        self.dropped.append(member.id)
        self.available_mib += COST_MIB

    async def collect(self) -> None:
        self.collected = len(self.dropped)
        await asyncio.sleep(0)


def new_world() -> World:
    machine = Machine(name="web", nics=(Nic(id="net0"),), disks=(Disk(id="disk0", layer="l", size_bytes=1),))
    source = Live(Vm(machine=machine, state=VmState.RUNNING))
    return World(source, _moment(source))


def _moment(source: Live) -> Moment:
    machine = source.vm.machine
    return Moment(vm_id=source.id, machine=machine, layers={}, accelerator=Accelerator.TCG, qemu_build="b", at=0)


class Keeping(RuleBasedStateMachine):
    """Whatever users, guests and memory do: the pool comes to what was asked for, and no clone is lost or shared."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(pool_keeper, "LOOK_EVERY_S", 0.005)
        self.patch.setattr(pool_keeper, "BREATH_S", 0.0)
        self.patch.setattr(pool, "same_hardware", lambda member, want: True)
        overhead = {"process_overhead_bytes": COST_MIB * MIB, "unique_bytes": 0}
        names = ("configured_bytes", "resident_bytes", "shared_bytes", "proportional_bytes")
        view = MemoryView.model_validate({**dict.fromkeys(names, 0), **overhead})
        self.patch.setattr(pool_shelf, "memory_view", lambda live: view)
        self.loop = asyncio.new_event_loop()
        self.world = self.run(self._open())

    async def _open(self) -> World:
        world = new_world()
        for name in ("grow", "take", "drop"):
            self.patch.setattr(pool, name, getattr(world, name))
        self.keeper = asyncio.ensure_future(world.desk.keeper.run())
        return world

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self._close())
            self.loop.close()
            self.patch.undo()

    async def _close(self) -> None:
        works = [self.keeper, *self.world.tasks.works.values()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await self.loop.shutdown_default_executor()

    # -- what happens ----------------------------------------------------------------------------------------------

    @rule(size=st.integers(0, 5), budget=st.none() | st.integers(1, 100))
    def set(self, size: int, budget: int | None) -> None:
        self.run(self.world.desk.set("web", SetPool(size=size, memory_budget_mib=budget)))
        assert size or not self.world.members

    @precondition(lambda self: not self.world.source.vm.frozen)
    @rule()
    def freeze(self) -> None:
        self.world.moment = _moment(self.world.source)
        self._change(VmState.FROZEN, self.world.moment.id)

    @precondition(lambda self: self.world.source.vm.frozen)
    @rule()
    def thaw(self) -> None:
        self._change(VmState.RUNNING, None)

    def _change(self, state: VmState, moment_id: str | None) -> None:
        async def change() -> None:
            async with self.world.locks.hold(self.world.source.id, "thaw", wait_s=5):
                self.world.source.vm = self.world.source.vm.changed(state=state, moment_id=moment_id)

        self.run(change())
        self.world.desk.keeper.wake()

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        """Several at once: each gets one of its own, or none."""

        async def take_all() -> list[Any]:
            takes = [self.world.desk.take(cast("Any", self.world.source), self.world.source.vm) for _ in range(count)]
            return [taken.live for taken in await asyncio.gather(*takes) if taken is not None]

        taken = self.run(take_all())
        assert len({live.id for live in taken}) == len(taken)
        assert all(live.process is not None for live in taken)
        assert not [live for live in taken if live in self.world.members]

    @precondition(lambda self: bool(self.world.members))
    @rule(data=st.data())
    def a_member_dies(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(sorted(self.world.members, key=lambda live: live.id)))
        member.process = None
        self.world.desk.keeper.wake()

    @rule(mib=st.integers(0, 800))
    def memory_changes(self, mib: int) -> None:
        self.world.available_mib = mib

    @rule(fails=st.booleans())
    def growing_fails(self, fails: bool) -> None:
        self.world.fails = fails

    @rule(steps=st.integers(1, 20))
    def time_passes(self, steps: int) -> None:
        async def some() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        self.run(some())

    # -- what holds ------------------------------------------------------------------------------------------------

    @invariant()
    def a_ready_member_is_of_the_moment_that_is_held(self) -> None:
        if hasattr(self, "world"):
            ready = self.world.desk.shelf.ready(cast("Any", self.world.source))
            assert not ready or self.world.source.vm.frozen

    @rule()
    def it_settles(self) -> None:
        self.run(asyncio.wait_for(self._settle(), 20))
        world, spec = self.world, self.world.pools.get(self.world.source.id)
        decision = world.desk.shelf.decide(world.source.id)
        assert decision.drop == ()
        assert world.fails or decision.grow == 0
        assert len(world.members) <= (spec.size if spec else 0)
        assert world.source.vm.frozen or not world.members
        assert all(member.process is not None for member in world.members)
        assert world.collected == len(world.dropped), "layers that only a dropped member used are left"
        if spec and spec.memory_budget_mib:
            assert len(world.members) * COST_MIB <= spec.memory_budget_mib

    async def _settle(self) -> None:
        desk, source_id = self.world.desk, self.world.source.id
        while True:
            desk.shelf.of(source_id).not_before = 0.0
            desk.keeper.wake()
            await asyncio.sleep(0.002)
            decision, idle = desk.shelf.decide(source_id), not desk.shelf.busy and not self.world.growing
            if idle and not decision.drop and (not decision.grow or self.world.fails):
                return


TestKeeping = Keeping.TestCase
TestKeeping.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize(
    ("fields", "served"),
    [
        ({}, True),
        ({"extra_config": {"guestinfo.x": "y"}, "nics": (NicChange(id="net0", network="lab", connected=True),)}, True),
        ({"pool": False}, False),
        ({"uuid": "11111111-2222-3333-4444-555555555555"}, False),
        ({"nics": (NicChange(id="net0", mac="52:54:00:00:00:01"),)}, False),
    ],
)
def test_what_a_pool_can_serve(fields: dict[str, Any], served: bool) -> None:
    assert pool.serves(CloneVm.model_validate({"names": ("a",), **fields})) is served


def test_a_failure_is_told_once_and_waits_longer_each_time() -> None:
    world = new_world()
    keeper, keeping = world.desk.keeper, world.desk.shelf.of(world.source.id)
    waits = []
    for _ in range(8):
        keeper._failed(cast("Any", world.source), keeping, "No.")
        waits.append(keeping.not_before)
    assert world.told == ["host.warning"]
    assert waits == sorted(waits)
    assert issubclass(ForkError, RametError)
