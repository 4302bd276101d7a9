"""VMs whose time is over are asked to go, once, and again when that came to nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from ramet.errors import BusyError
from ramet.host.expiry import Expiry
from ramet.host.floor import Floor


class FakeFloor:
    def __init__(self, **times: float | None) -> None:
        self.emitted: list[str] = []
        book = SimpleNamespace(emit=lambda kind, message, vm: self.emitted.append(kind))
        self.rooms = SimpleNamespace(book=book)
        self.machines = {
            name: SimpleNamespace(id=name, name=name, vm=SimpleNamespace(expires_at=at, registered=True))
            for name, at in times.items()
        }


class Clocks:
    """The clock on the wall, which anybody sets, and the other one."""

    def __init__(self, wall: float, steady: float = 5.0) -> None:
        self.wall = wall
        self.steady = steady

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def expiry(floor: FakeFloor, remove: Any, clocks: Clocks | None = None) -> Expiry:
    if clocks is None:
        return Expiry(cast("Floor", floor), remove)
    return Expiry(cast("Floor", floor), remove, wall=lambda: clocks.wall, clock=lambda: clocks.steady)


async def test_only_those_whose_time_is_over_go() -> None:
    floor, gone = FakeFloor(old=1.0, young=1e12, endless=None), asyncio.Event()
    asked: list[str] = []

    async def remove(vm_id: str) -> None:
        asked.append(vm_id)
        gone.set()

    task = asyncio.create_task(expiry(floor, remove).run())
    await asyncio.wait_for(gone.wait(), 10)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert asked == ["old"]
    assert floor.emitted == ["vm.expired"]


async def test_one_that_is_busy_is_asked_again_and_one_that_is_going_is_not() -> None:
    floor = FakeFloor(old=100.0)
    answers: list[Exception | None] = [BusyError("busy"), None]

    async def remove(vm_id: str) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    watch = expiry(floor, remove, Clocks(200.0))
    for _ in range(4):
        for live in watch._due():
            await watch._end(live)
    assert answers == []
    assert floor.emitted == ["vm.expired"]


def test_it_wakes_when_the_first_is_due() -> None:
    def pause_s(**times: float) -> float:
        watch = expiry(FakeFloor(**times), None, Clocks(100.0))
        watch._due()
        return watch._pause_s()

    assert pause_s(soon=101.5, later=500.0) == 1.5
    assert pause_s(later=5000.0) == 2.0
    assert 0 < pause_s(past=50.0) <= 5
    assert pause_s() == 2.0


async def test_a_bug_at_one_vm_does_not_let_the_others_live_on() -> None:
    floor = FakeFloor(bad=1.0, good=1.0)
    asked: list[str] = []

    async def remove(vm_id: str) -> None:
        asked.append(vm_id)
        if vm_id == "bad":
            raise KeyError(vm_id)

    watch = expiry(floor, remove, Clocks(200.0))
    for live in watch._due():
        await watch._end(live)
    assert asked == ["bad", "good"]
    assert floor.emitted == ["vm.expired"]


def test_a_wall_clock_that_is_set_neither_ends_vms_nor_lets_them_live_on() -> None:
    floor, clocks = FakeFloor(hour=3700.0), Clocks(100.0)
    watch = expiry(floor, None, clocks)
    assert watch._due() == []
    clocks.wall += 86400
    assert watch._due() == []
    clocks.wall -= 30 * 86400
    clocks.passes(3599)
    assert watch._due() == []
    clocks.passes(1)
    assert [live.id for live in watch._due()] == ["hour"]


def test_a_time_that_was_changed_holds() -> None:
    floor, clocks = FakeFloor(hour=3700.0), Clocks(100.0)
    watch = expiry(floor, None, clocks)
    watch._due()
    floor.machines["hour"].vm.expires_at = 130.0
    assert watch._due() == []
    clocks.passes(30)
    assert [live.id for live in watch._due()] == ["hour"]
    floor.machines["hour"].vm.expires_at = None
    assert watch._due() == []
