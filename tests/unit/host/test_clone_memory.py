"""What a clone did to memory: measured once it is calm, never while its source is busy, and told in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio

from ramet.host import clone_memory
from ramet.host.clone_memory import CloneAccounts
from ramet.host.sqlite_store import SqliteStore
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.model.host import TaskState
from ramet.model.memory import MemorySample
from ramet.model.views import CloneResult, CloneTimings

SOURCE = cast("Any", SimpleNamespace(id="s", vm=SimpleNamespace(lineage_id="")))
CLONES = cast("Any", [SimpleNamespace(id="c1"), SimpleNamespace(id="c2")])
BEFORE = MemorySample(processes=1, measured_at=1.0, spent_bytes=10)
AFTER = MemorySample(processes=3, measured_at=2.0, spent_bytes=30)


class FakeSampler:
    """Of one lineage, with three members."""

    def __init__(self) -> None:
        self.ledger = self
        self.measured: list[list[str]] = []
        self.fails = False

    def sync(self) -> None: ...

    def members(self, lineage_id: str) -> frozenset[str]:
        return frozenset({"s", "c1", "c2", "x"})

    def sample(self, lineage_id: str, fresh: Any = None) -> MemorySample:
        return AFTER if fresh is not None else BEFORE

    async def measure(self, ids: Any, whole: bool) -> float:
        if self.fails:
            raise OSError("no /proc")
        self.measured.append(list(ids))
        return 0.0


@pytest_asyncio.fixture
async def tasks(tmp_path: Path) -> AsyncIterator[TaskManager]:
    store = await SqliteStore.open(tmp_path / "db")
    async with TaskManager.open(store) as tasks:
        yield tasks
    await store.aclose()


class Bench:
    def __init__(self, tasks: TaskManager) -> None:
        self.sampler = FakeSampler()
        self.busy: set[str] = set()
        self.tasks = tasks
        self.accounts = CloneAccounts(cast("Any", self.sampler), self.busy.__contains__, tasks)

    async def clone(self, lasts: asyncio.Event | None = None) -> str:
        """A request that has its clones at once, and ends then, or when its guests have their identities."""

        async def work(handle: TaskHandle) -> list[CloneResult]:
            account = self.accounts.open(SOURCE, CLONES, self.accounts.before(SOURCE), handle.id)
            if lasts is not None:
                await lasts.wait()
            one = CloneResult(name="c1", id="c1", task=handle.id, timings_ms=CloneTimings(), memory=account.tell())
            return [one]

        return (await self.tasks.start("clone", "c1", work)).id

    async def told(self, task_id: str) -> dict[str, Any]:
        """The result when it has `after`."""
        async with asyncio.timeout(10):
            while True:
                task = await self.tasks.wait(task_id, 10)
                found: dict[str, Any] = task.result[0]["memory"]
                if found["after"] is not None:
                    return found
                await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def bench(tasks: TaskManager, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(clone_memory, "CALM_S", 0.02)
    monkeypatch.setattr(clone_memory, "PATIENCE_S", 0.2)
    monkeypatch.setattr(clone_memory, "_LOOK_S", 0.001)
    made = Bench(tasks)
    runner = asyncio.create_task(made.accounts.run())
    yield made
    runner.cancel()
    await asyncio.wait([runner])


async def test_a_task_that_has_ended_is_amended(bench: Bench) -> None:
    task_id = await bench.clone()
    ended = await bench.tasks.wait(task_id, 10)
    assert ended.result[0]["memory"]["before"]["spent_bytes"] == 10
    assert (await bench.told(task_id))["after"]["spent_bytes"] == 30
    assert bench.tasks.get(task_id).version > ended.version
    assert bench.sampler.measured == [["c1", "c2", "s", "x"]]


async def test_a_task_that_goes_on_tells_it_in_its_end(bench: Bench) -> None:
    lasts = asyncio.Event()
    task_id = await bench.clone(lasts)
    async with asyncio.timeout(10):
        while not bench.sampler.measured:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    lasts.set()
    ended = await bench.tasks.wait(task_id, 10)
    assert ended.result[0]["memory"]["after"]["processes"] == 3


async def test_several_in_a_row_are_measured_together(bench: Bench) -> None:
    ids = [await bench.clone() for _ in range(3)]
    for task_id in ids:
        await bench.told(task_id)
    assert len(bench.sampler.measured) == 1


async def test_a_source_that_stays_busy_is_not_read(bench: Bench) -> None:
    bench.busy.add("s")
    await bench.told(await bench.clone())
    assert bench.sampler.measured == [["c1", "c2", "x"]]


async def test_what_cannot_be_measured_costs_no_clone(bench: Bench) -> None:
    bench.sampler.fails = True
    first = await bench.clone()
    assert (await bench.tasks.wait(first, 10)).state is TaskState.SUCCESS
    await asyncio.sleep(0.1)
    bench.sampler.fails = False
    await bench.told(await bench.clone())
    assert bench.tasks.get(first).result[0]["memory"]["after"] is None


async def test_amending_is_for_tasks_that_succeeded(tasks: TaskManager) -> None:
    async def work(handle: TaskHandle) -> None:
        raise RuntimeError("a bug")

    task = await tasks.wait((await tasks.start("clone", "x", work)).id, 10)
    await tasks.amend(task.id, ["better"])
    await tasks.amend("unknown", ["better"])
    assert tasks.get(task.id).result is None
