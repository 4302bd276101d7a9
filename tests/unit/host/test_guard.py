"""The guard of the host's memory: what it decides, and what it says and does to which VM."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import QemuError
from ramet.host.gauge import Gauge
from ramet.host.guard import Guard
from ramet.host.guard_plan import AT_ONCE, LEAST, Guest, Level, level, release, squeeze
from ramet.host.locks import VmLocks
from ramet.hypervisor.qmp_balloon import GuestStats
from ramet.model.machine import Machine, Vm, VmState
from ramet.model.memory import MemoryRow
from ramet.model.units import GIB, MIB
from tests.unit.host.test_gauge import PROCESS

IDLE = Guest("a", configured=GIB, wanted=GIB, actual=GIB, available=700 * MIB, unique=500 * MIB)


def guest(name: str = "a", **change: Any) -> Guest:
    return Guest(**{**vars(IDLE), "id": name, **change})


# -- what is decided --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "before", "now"),
    [
        (200, Level.CALM, Level.CALM),
        (160, Level.CALM, Level.CALM),
        (160, Level.LOW, Level.LOW),
        (149, Level.CALM, Level.LOW),
        (124, Level.CALM, Level.SHORT),
        (130, Level.SHORT, Level.LOW),
        (176, Level.SHORT, Level.CALM),
    ],
)
def test_it_is_calm_again_later_than_it_was_short(available: int, before: Level, now: Level) -> None:
    assert level(available, 100, before) is now


def test_without_a_reserve_there_is_nothing_to_guard() -> None:
    assert level(0, 0, Level.CALM) is Level.CALM


def test_an_idle_guest_is_asked_for_a_step() -> None:
    (change,) = squeeze([IDLE], short=GIB)
    assert (change.id, change.size) == ("a", GIB - 128 * MIB)
    assert squeeze([IDLE], short=0) == []


@pytest.mark.parametrize(
    "change",
    [
        {"available": None},  # it has no driver, or hangs
        {"available": 130 * MIB},  # what it keeps for itself
        {"actual": GIB // 4},
        {"unique": 4 * MIB},  # all else is shared: it would come back to nobody
    ],
)
def test_a_guest_that_needs_its_memory_is_left_alone(change: dict[str, Any]) -> None:
    assert squeeze([guest(**change)], short=GIB) == []


def test_idle_guests_go_first_then_those_that_can_give_most() -> None:
    guests = [guest("busy", growth_per_s=2 * MIB), guest("small", available=150 * MIB), guest("large")]
    assert [change.id for change in squeeze(guests, short=GIB)] == ["large", "small", "busy"]
    assert [change.id for change in squeeze(guests, short=MIB)] == ["large"]


def test_memory_goes_back_to_who_has_least_within_what_there_is() -> None:
    guests = [guest("a", actual=GIB // 2), guest("b", actual=GIB // 4)]
    assert [(c.id, c.size) for c in release(guests, room=2 * GIB)] == [("b", GIB // 2), ("a", 3 * GIB // 4)]
    assert [c.id for c in release(guests, room=300 * MIB)] == ["b"]
    assert release(guests, room=100 * MIB) == []


def test_one_that_has_not_begun_to_give_is_told_that_it_need_not() -> None:
    assert [(c.id, c.size) for c in release([IDLE], room=0)] == [("a", GIB)]


sizes = st.integers(0, 8 * GIB)
made_up = st.builds(
    lambda name, configured, actual, available, unique: Guest(
        name, configured, configured, min(actual, configured), available, unique
    ),
    st.text("abcdef", min_size=1),
    st.integers(32 * MIB, 8 * GIB),
    sizes,
    st.none() | sizes,
    sizes,
)


@given(st.lists(made_up, unique_by=lambda one: one.id), sizes)
def test_no_guest_is_asked_for_what_it_needs(guests: list[Guest], short: int) -> None:
    by_id = {one.id: one for one in guests}
    changes = squeeze(guests, short)
    assert len(changes) <= AT_ONCE
    for change in changes:
        one = by_id[change.id]
        given_up = one.actual - change.size
        assert one.available is not None
        assert 0 < given_up <= min(one.available, one.unique)
        assert change.size >= LEAST * one.configured - 1


@given(st.lists(made_up, unique_by=lambda one: one.id), sizes)
def test_nobody_gets_more_than_he_is_to_have_nor_more_than_there_is(guests: list[Guest], room: int) -> None:
    by_id = {one.id: one for one in guests}
    changes = release(guests, room)
    assert all(by_id[change.id].actual <= change.size <= by_id[change.id].wanted for change in changes)
    assert sum(change.size - by_id[change.id].actual for change in changes) <= room


# -- what is done -----------------------------------------------------------------------------------------------------


class Qmp:
    """A guest with a balloon's driver, which does at once what it is asked."""

    def __init__(self, size: int) -> None:
        self.actual = size
        self.available = 160 * MIB
        self.every_s = 0
        self.asked: list[int] = []
        self.broken = False

    async def balloon(self, size: int) -> None:
        if self.broken:
            raise QemuError("QEMU ended.")
        self.asked.append(size)
        self.available -= self.actual - size
        self.actual = size

    async def balloon_actual_bytes(self) -> int:
        return self.actual

    async def poll_balloon(self, every_s: int) -> None:
        self.every_s = every_s

    async def balloon_stats(self) -> GuestStats | None:
        return GuestStats(self.available, time.time()) if self.every_s else None


class House:
    """VMs of 256 MiB, and a host whose available memory is what it is set to."""

    def __init__(self) -> None:
        self.available = 10 * GIB
        self.events: list[tuple[str, str]] = []
        self.locks = VmLocks()
        self.machines: dict[str, Any] = {}
        self.rows: list[MemoryRow] = []
        emit = lambda kind, message, vm=None, **fields: self.events.append((kind, message))  # noqa: E731
        rooms = SimpleNamespace(book=SimpleNamespace(emit=emit))
        shown = lambda: list(self.machines.values())  # noqa: E731
        self.floor = cast("Any", SimpleNamespace(rooms=rooms, machines=self.machines, shown=shown))
        self.guard = self.restarted()

    def restarted(self) -> Guard:
        self.guard = Guard(
            self.floor, self.locks, Gauge(self.floor), lambda: self.rows, GIB, available=lambda: self.available
        )
        return self.guard

    def add(self, name: str, unique_mib: int = 100, state: VmState = VmState.RUNNING, lineage: str = "") -> Qmp:
        machine = Machine(name=name, memory_mib=256)
        vm = Vm(id=name, machine=machine, state=state, process=PROCESS, lineage_id=lineage or name, created_at=0.0)
        qmp = Qmp(256 * MIB)
        self.machines[name] = SimpleNamespace(id=name, name=name, vm=vm, qmp=qmp, squeezed_to=None)
        self.measured(name, time.time(), unique_mib)
        return qmp

    def measured(self, name: str, at: float, unique_mib: int) -> None:
        lineage = self.machines[name].vm.lineage_id
        self.rows = [row for row in self.rows if row.id != name]
        self.rows.append(
            MemoryRow(id=name, name=name, lineage_id=lineage, measured_at=at, unique_bytes=unique_mib * MIB)
        )

    def said(self, kind: str) -> list[str]:
        return [message for this, message in self.events if this == kind]


@pytest.fixture
def house() -> House:
    return House()


async def test_while_there_is_memory_nothing_is_asked_and_nothing_said(house: House) -> None:
    qmp = house.add("web")
    for _ in range(3):
        assert await house.guard.look() is Level.CALM
    assert (qmp.asked, qmp.every_s, house.events) == ([], 0, [])


async def test_it_warns_once_with_the_lineage_that_grows(house: House) -> None:
    house.add("web")
    house.add("web-2", lineage="web")
    house.measured("web-2", time.time() - 60, 10)
    await house.guard.look()
    house.measured("web-2", time.time(), 130)
    house.available = int(1.4 * GIB)
    for _ in range(3):
        assert await house.guard.look() is Level.LOW
    (warning,) = house.said("host.memory")
    assert warning.startswith("Memory is short: 1.4 GiB is available, 1 GiB is to stay free; the lineage of 'web' ")
    assert warning.endswith("a minute, 'web-2' most.")


async def test_guests_are_asked_step_by_step_and_keep_what_they_need(house: House) -> None:
    qmp = house.add("web")
    house.available = GIB
    for _ in range(8):
        await house.guard.look()
    assert qmp.asked[:2] == [224 * MIB, 192 * MIB]
    assert qmp.asked == sorted(qmp.asked, reverse=True)
    assert qmp.available >= 48 * MIB
    assert house.said("vm.balloon") == [
        "web is asked for memory that the host is short of: it is to have 224 MiB of 256 MiB."
    ]


async def test_it_is_given_back_when_there_is_memory_again(house: House) -> None:
    qmp = house.add("web")
    house.available = GIB
    for _ in range(4):
        await house.guard.look()
    assert qmp.actual < 256 * MIB
    house.available = 10 * GIB
    for _ in range(4):
        await house.guard.look()
    assert qmp.actual == 256 * MIB
    assert house.machines["web"].squeezed_to is None
    assert qmp.every_s == 0
    assert house.said("vm.balloon")[1:] == ["web gets its memory back: it is to have 256 MiB of 256 MiB."]
    assert house.said("host.memory")[-1] == "Memory suffices again: 10 GiB is available."


async def test_a_later_daemon_gives_back_what_another_took(house: House) -> None:
    qmp = house.add("web")
    qmp.actual = 128 * MIB
    await house.restarted().look()
    await house.guard.look()
    assert qmp.actual == 256 * MIB


async def test_the_owners_target_is_where_it_ends(house: House) -> None:
    qmp = house.add("web")
    live = house.machines["web"]
    live.vm = live.vm.changed(machine=live.vm.machine.changed(memory_target_mib=200))
    qmp.actual = 128 * MIB
    for _ in range(4):
        await house.guard.look()
    assert qmp.actual == 200 * MIB


@pytest.mark.parametrize("state", [VmState.FROZEN, VmState.PAUSED, VmState.STARTING])
async def test_only_guests_that_run_are_asked(house: House, state: VmState) -> None:
    qmp = house.add("web", state=state)
    house.available = 0
    for _ in range(3):
        await house.guard.look()
    assert (qmp.asked, qmp.every_s) == ([], 0)


async def test_whoever_works_on_a_vm_goes_first(house: House) -> None:
    qmp = house.add("web")
    house.available = 0
    async with house.locks.hold("web", "clone"):
        for _ in range(3):
            await house.guard.look()
    assert qmp.asked == []


async def test_one_that_fails_keeps_nobody_from_helping(house: House) -> None:
    bad, good = house.add("bad", unique_mib=120), house.add("good")
    bad.broken = True
    house.available = 0
    for _ in range(3):
        await house.guard.look()
    assert good.asked
