"""A batch of clones: who waits for whom, what a failure costs, and what a cancelled one leaves. No VMs."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.clone import growth
from ramet.clone.check import Order
from ramet.clone.growth import Ground, Harvest, grow_all
from ramet.errors import QemuError, RametError
from ramet.machine.live import LiveMachine

ABREAST = 2
STEPS = ("loaded", "settled", "ran", "recorded")


class Garden:
    """In place of VMs: notes what happens to each clone, and fails, or stands still, where it is told to."""

    def __init__(self, count: int, fails: dict[int, str] | None = None, sticks: tuple[int, str] | None = None) -> None:
        self.names = tuple(f"c{index}" for index in range(count))
        self.fails = {f"c{index}": step for index, step in (fails or {}).items()}
        self.sticks = (f"c{sticks[0]}", sticks[1]) if sticks else None
        self.stuck = asyncio.Event()
        self.log: list[tuple[str, str]] = []
        self.told: list[tuple[int, int]] = []
        self.abreast = self.most_abreast = 0

    async def step(self, seedling: Any, step: str) -> None:
        name = seedling.live.name
        await asyncio.sleep(0)
        if self.fails.get(name) == step:
            raise QemuError(f"{name} fails") if step != "settled" else OSError(28, "No space left on device")
        if self.sticks == (name, step):
            self.stuck.set()
            await asyncio.get_running_loop().create_future()
        self.log.append((name, step))

    async def prepare(self, _: object, name: str, __: object) -> Any:
        self.abreast += 1
        self.most_abreast = max(self.most_abreast, self.abreast)
        notes = SimpleNamespace(changed=lambda **_: None)
        live = SimpleNamespace(name=name, id=name)
        return SimpleNamespace(live=live, timings=notes, asked=None, discard=lambda: self.discard(name))

    async def hatch(self, seedling: Any, *_: object) -> None:
        try:
            await self.step(seedling, "loaded")
        finally:
            self.abreast -= 1

    async def discard(self, name: str) -> None:
        self.log.append((name, "discarded"))

    async def fork(self, _: object) -> None:
        return None

    async def adopt(self, _: object) -> None:
        return None

    async def grow(self) -> Harvest:
        source = SimpleNamespace(rooms=SimpleNamespace(limits=SimpleNamespace(parallel_forks=ABREAST)))
        order = SimpleNamespace(names=self.names, vm_ids=self.names)
        return await grow_all(
            cast("LiveMachine", source), cast("Order", order), cast("Any", self.fork), Ground({}, b"", b"", "m"),
            cast("Any", self.adopt), lambda done, of: self.told.append((done, of)),
        )  # fmt: skip

    def at(self, name: str, step: str) -> int:
        return self.log.index((name, step))

    def ended(self, name: str) -> str:
        return [step for of, step in self.log if of == name and step in (*STEPS, "discarded")][-1]


def planted(patch: pytest.MonkeyPatch, garden: Garden) -> Garden:
    for name, step in (("_settle", "settled"), ("run", "ran"), ("record", "recorded")):
        patch.setattr(growth, name, lambda seedling, step=step: garden.step(seedling, step))
    patch.setattr(growth, "release", garden_release(garden))
    patch.setattr(growth, "prepare", garden.prepare)
    patch.setattr(growth, "hatch_forked", garden.hatch)
    patch.setattr(growth, "record_of", lambda _, order, index, __: order.names[index])
    return garden


def garden_release(garden: Garden) -> Any:
    async def release(seedling: Any) -> None:
        for step in STEPS[2:]:
            await garden.step(seedling, step)

    return release


async def test_none_runs_before_all_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    garden = planted(monkeypatch, Garden(8))
    harvest = await garden.grow()
    assert [seedling.live.name for seedling in harvest.seedlings] == list(garden.names)
    for before, after in itertools.pairwise(("settled", "ran", "recorded")):
        last = max(garden.at(name, before) for name in garden.names)
        assert last < min(garden.at(name, after) for name in garden.names)
    assert garden.told == [(done, 8) for done in range(1, 9)]
    assert garden.most_abreast <= ABREAST


async def test_one_alone_is_not_settled_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    garden = planted(monkeypatch, Garden(1))
    await garden.grow()
    assert [step for _, step in garden.log] == ["loaded", "ran", "recorded"]


@settings(max_examples=60)
@given(st.integers(2, 9), st.dictionaries(st.integers(0, 8), st.sampled_from(STEPS), max_size=5))
def test_a_failure_costs_its_own_clone_and_nothing_of_it_is_left(count: int, fails: dict[int, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        garden = planted(patch, Garden(count, fails))
        failed = {name for name in garden.fails if name in garden.names}
        if len(failed) == count:
            with pytest.raises(RametError):
                asyncio.run(garden.grow())
        else:
            harvest = asyncio.run(garden.grow())
            assert set(harvest.failures) == failed
            assert {seedling.live.name for seedling in harvest.seedlings} == set(garden.names) - failed
        for name in garden.names:
            assert garden.ended(name) == ("discarded" if name in failed else "recorded")
        assert sorted(name for name, step in garden.log if step == "discarded") == sorted(failed)
        assert garden.told[-1] == (count, count)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("index", [0, 4])
async def test_a_cancelled_batch_leaves_nothing(monkeypatch: pytest.MonkeyPatch, index: int, step: str) -> None:
    garden = planted(monkeypatch, Garden(6, sticks=(index, step)))
    growing = asyncio.create_task(garden.grow())
    await garden.stuck.wait()
    growing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await growing
    begun = {name for name, _ in garden.log} | {f"c{index}"}
    assert {name for name, step in garden.log if step == "discarded"} >= begun


async def test_one_that_does_not_answer_does_not_keep_the_others_from_being_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    garden = planted(monkeypatch, Garden(4, sticks=(2, "ran")))
    monkeypatch.setattr(growth, "_PATIENCE_S", 0.01)
    growing = asyncio.create_task(garden.grow())
    async with asyncio.timeout(5):
        while sum(step == "recorded" for _, step in garden.log) < 3:  # noqa: ASYNC110 - it is a list
            await asyncio.sleep(0.01)
    growing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await growing
    assert {garden.ended(name) for name in garden.names} == {"discarded"}


async def test_when_the_first_fails_for_all_it_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    garden = planted(monkeypatch, Garden(2, {0: "loaded", 1: "ran"}))
    with pytest.raises(QemuError, match="c0 fails"):
        await garden.grow()
