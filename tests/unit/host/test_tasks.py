import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import CapacityError, ConflictError, NotFoundError, StateError, UsageError
from ramet.host.sqlite_store import SqliteStore
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.model.host import Task, TaskState
from ramet.model.views import CloneResult, CloneTimings


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "inventory.db")
    yield store
    await store.aclose()


@pytest.fixture
async def tasks(store: SqliteStore) -> AsyncIterator[TaskManager]:
    async with TaskManager.open(store) as tasks:
        yield tasks


async def nothing(handle: TaskHandle) -> None:
    pass


async def forever(handle: TaskHandle) -> None:
    await asyncio.Event().wait()


async def test_work_that_succeeds_leaves_its_result_and_the_time_of_its_steps(tasks: TaskManager) -> None:
    async def work(handle: TaskHandle) -> Any:
        with handle.step("prepare"):
            handle.progress(40.0, "copying")
        with handle.step("fork"):
            pass
        return [CloneResult(name="a", id="1", task=handle.id, timings_ms=CloneTimings(total=5.0))]

    task = await tasks.start("clone", "web", work, vm_id="v", by_uid=7)
    task = await tasks.wait(task.id, 10)
    assert (task.state, task.progress_percent, task.error, task.doing) == (TaskState.SUCCESS, 100.0, None, "")
    assert (task.kind, task.target, task.vm_id, task.by_uid) == ("clone", "web", "v", 7)
    assert [(step.name, step.took_ms is not None) for step in task.steps] == [("prepare", True), ("fork", True)]
    assert task.result[0]["timings_ms"]["total"] == 5.0
    assert task.ended_at is not None


async def test_an_error_of_ours_is_the_tasks_error(tasks: TaskManager) -> None:
    async def work(handle: TaskHandle) -> None:
        with handle.step("check"):
            raise UsageError("No.", hint="Try yes.", path=Path("/x"))

    task = await tasks.wait((await tasks.start("x", "y", work)).id, 10)
    assert task.state is TaskState.ERROR
    assert task.error == {"code": "usage", "message": "No.", "hint": "Try yes.", "fields": {"path": "/x"}}
    assert task.steps[0].took_ms is not None


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("secret"), OSError("secret"), ExceptionGroup("secret", [ValueError()])]
)
async def test_a_bug_ends_the_task_without_showing_its_inside(tasks: TaskManager, error: Exception) -> None:
    async def work(handle: TaskHandle) -> None:
        raise error

    task = await tasks.wait((await tasks.start("x", "y", work)).id, 10)
    assert task.state is TaskState.ERROR
    assert task.error is not None
    assert task.error["code"] == "internal"
    assert "secret" not in str(task)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "capacity"), (errno.EAGAIN, "capacity"), (errno.EACCES, "privilege")]
)
async def test_what_the_host_refuses_says_what_to_do(tasks: TaskManager, number: int, code: str) -> None:
    async def work(handle: TaskHandle) -> None:
        raise OSError(number, os.strerror(number), "/some/where")

    task = await tasks.wait((await tasks.start("x", "y", work)).id, 10)
    assert task.error is not None
    assert task.error["code"] == code
    assert "/some/where" in task.error["message"]
    assert task.error["hint"]


async def test_a_result_that_cannot_be_told_is_an_error_too(tasks: TaskManager) -> None:
    async def work(handle: TaskHandle) -> object:
        return object()

    task = await tasks.wait((await tasks.start("x", "y", work)).id, 10)
    assert task.state is TaskState.ERROR


async def test_cancelling_runs_the_works_clean_up_and_ends_cancelled(tasks: TaskManager) -> None:
    cleaned = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    task = await tasks.start("image.build", "debian", work, cancellable=True)
    await asyncio.sleep(0)
    assert (await tasks.cancel(task.id)).doing == "cancelling"
    task = await tasks.wait(task.id, 10)
    assert cleaned.is_set()
    assert task.state is TaskState.CANCELLED
    assert task.error is not None
    assert task.error["code"] == "cancelled"
    assert await tasks.cancel(task.id) == task


async def test_work_that_is_cancelled_before_it_began_ends_too(tasks: TaskManager) -> None:
    task = await tasks.start("x", "y", forever, cancellable=True)
    await tasks.cancel(task.id)
    assert (await tasks.wait(task.id, 10)).state is TaskState.CANCELLED


async def test_cancelling_reaches_a_loop_that_only_looks(tasks: TaskManager) -> None:
    begun = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        loop = asyncio.get_running_loop()

        def block() -> None:
            loop.call_soon_threadsafe(begun.set)
            while True:
                handle.check_cancelled()

        await asyncio.shield(asyncio.to_thread(block))

    task = await tasks.start("x", "y", work, cancellable=True)
    await begun.wait()
    await tasks.cancel(task.id)
    assert (await tasks.wait(task.id, 10)).state is TaskState.CANCELLED


async def test_what_cannot_be_cancelled_says_so(tasks: TaskManager) -> None:
    task = await tasks.start("x", "y", forever)
    with pytest.raises(StateError, match="cannot be cancelled"):
        await tasks.cancel(task.id)
    with pytest.raises(NotFoundError):
        await tasks.cancel("nope")


async def test_past_the_point_of_no_return_there_is_no_cancelling(tasks: TaskManager) -> None:
    async def work(handle: TaskHandle) -> None:
        handle.cancellable = False
        await forever(handle)

    task = await tasks.start("x", "y", work, cancellable=True)
    assert (await tasks.wait(task.id, 10, since_version=task.version)).cancellable is False
    with pytest.raises(StateError):
        await tasks.cancel(task.id)


async def test_a_wait_ends_with_news_or_with_the_time(tasks: TaskManager) -> None:
    go = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        await go.wait()
        handle.progress(10.0, "half way")
        await forever(handle)

    task = await tasks.start("x", "y", work)
    assert (await tasks.wait(task.id, 0.001, since_version=task.version)).version == task.version
    waiting = asyncio.ensure_future(tasks.wait(task.id, 10, since_version=task.version))
    await asyncio.sleep(0)
    go.set()
    assert (await waiting).doing == "half way"


async def test_progress_does_not_go_back(tasks: TaskManager) -> None:
    async def work(handle: TaskHandle) -> None:
        handle.progress(50)
        handle.progress(20)
        handle.progress(400)
        assert handle.task.progress_percent == 100.0

    assert (await tasks.wait((await tasks.start("x", "y", work)).id, 10)).state is TaskState.SUCCESS


async def test_what_a_crash_left_running_is_an_error_at_the_next_start(store: SqliteStore) -> None:
    left = Task(kind="clone", target="web", state=TaskState.RUNNING, created_at=1.0, cancellable=True)
    await store.put(f"task/{left.id}", left.model_dump(mode="json"))
    for _ in range(2):
        async with TaskManager.open(store) as tasks:
            task = tasks.get(left.id)
            assert task.state is TaskState.ERROR
            assert task.error is not None
            assert task.error["message"] == "The daemon was restarted while this ran."


async def test_a_record_of_the_past_that_is_not_valid_is_ignored(store: SqliteStore) -> None:
    await store.put("task/x", {"kind": "x", "surprise": 1})
    async with TaskManager.open(store) as tasks:
        assert tasks.list() == []


async def test_closing_cancels_what_runs_and_remembers_it(store: SqliteStore) -> None:
    async with TaskManager.open(store) as tasks:
        task = await tasks.start("x", "y", forever)
    entry = await store.get(f"task/{task.id}")
    assert entry is not None
    assert entry.value["state"] == "cancelled"
    assert entry.value["error"]["message"] == "The daemon was stopped while this ran."
    with pytest.raises(StateError, match="stopping"):
        await tasks.start("x", "y", nothing)


async def test_a_final_state_is_durable_before_it_is_seen(store: SqliteStore) -> None:
    seen: list[str] = []

    async with TaskManager.open(store, on_final=lambda task: seen.append(task.id)) as tasks:
        task = await tasks.wait((await tasks.start("x", "y", nothing)).id, 10)
        entry = await store.get(f"task/{task.id}")
        assert entry is not None
        assert entry.value["state"] == "success"
        assert seen == [task.id]


async def test_the_history_is_bounded_and_survives(store: SqliteStore) -> None:
    async with TaskManager.open(store, history=3) as tasks:
        running = await tasks.start("long", "y", forever)
        ids = []
        for n in range(6):
            task = await tasks.start("x", str(n), nothing)
            ids.append((await tasks.wait(task.id, 10)).id)
        assert [task.id for task in tasks.list()] == [*reversed(ids[3:]), running.id]
        assert len(await store.list("task/")) == 4
    async with TaskManager.open(store, history=3) as tasks:
        assert [task.id for task in tasks.list()][:2] == [ids[5], ids[4]]


async def test_a_task_ends_also_when_its_end_cannot_be_written(store: SqliteStore) -> None:
    async with TaskManager.open(store) as tasks:
        go = asyncio.Event()

        async def work(handle: TaskHandle) -> None:
            await go.wait()

        task = await tasks.start("x", "y", work)
        pages = store._database._db.execute("PRAGMA page_count").fetchone()[0]
        store._database._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(CapacityError):
            await tasks.start("x", "y" * 50_000, nothing)
        go.set()
        assert (await tasks.wait(task.id, 10)).state.is_final


async def test_a_straggler_cannot_change_a_task_that_has_ended(tasks: TaskManager) -> None:
    handles: list[TaskHandle] = []

    async def work(handle: TaskHandle) -> None:
        handles.append(handle)

    task = await tasks.wait((await tasks.start("x", "y", work)).id, 10)
    handles[0].progress(1, "late")
    assert tasks.get(task.id) == task


async def test_a_key_finds_the_task_it_began_unless_that_failed(tasks: TaskManager) -> None:
    async def fail(handle: TaskHandle) -> None:
        raise CapacityError("The disk is full.")

    failed = await tasks.start("clone", "web", fail, key="k", digest="d")
    await tasks.wait(failed.id, 10)
    assert tasks.by_key("k", "d") is None
    again = await tasks.start("clone", "web", nothing, key="k", digest="d")
    assert tasks.by_key("k", "d") is not None
    await tasks.wait(again.id, 10)
    found = tasks.by_key("k", "d")
    assert found is not None
    assert found.id == again.id
    with pytest.raises(ConflictError, match="another request"):
        tasks.by_key("k", "other")
    assert tasks.by_key("unknown", "d") is None


async def test_watchers_hear_of_every_change_and_a_bad_one_hinders_nobody(store: SqliteStore) -> None:
    heard: list[tuple[str, float | None]] = []

    async with TaskManager.open(store, history=1) as tasks:

        def told(task_id: str) -> None:
            known = {task.id: task.progress_percent for task in tasks.list()}
            heard.append((task_id, known.get(task_id)))

        def broken(task_id: str) -> None:
            raise ZeroDivisionError

        tasks.watchers += [broken, told]

        async def work(handle: TaskHandle) -> None:
            handle.progress(40.0)

        first = await tasks.start("a", "b", work)
        await tasks.wait(first.id, 10)
        assert heard == [(first.id, 0.0), (first.id, 40.0), (first.id, 100.0)]
        second = await tasks.start("a", "b", nothing)
        await tasks.wait(second.id, 10)
        assert (first.id, None) in heard  # forgotten: the history keeps one
