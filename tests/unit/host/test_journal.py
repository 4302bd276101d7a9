import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.host.inventory import Inventory
from ramet.host.journal import Journal
from ramet.host.sqlite_store import SqliteStore


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    store = await SqliteStore.open(tmp_path / "inventory.db")
    async with Inventory.open(store) as inventory:
        yield Journal(inventory.journal)
    await store.aclose()


async def test_an_operation_is_written_down_while_it_runs(journal: Journal) -> None:
    async with journal.operation("clone", "v", {"names": ["a"]}) as entry:
        await entry.update(overlay="x")
        (pending,) = journal.pending()
        assert (pending.kind, pending.vm_id, pending.detail) == ("clone", "v", {"names": ["a"], "overlay": "x"})
        assert pending.id == entry.id
        assert pending.detail == entry.detail
    assert journal.pending() == []


async def test_a_failure_is_undone_last_first_and_erased(journal: Journal) -> None:
    undone: list[str] = []

    async def undo(what: str) -> None:
        assert len(journal.pending()) == 1
        undone.append(what)

    async def fail() -> None:
        async with journal.operation("clone") as entry:
            entry.on_undo(undo, "overlay")
            entry.on_undo(undone.append, "tap")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert undone == ["tap", "overlay"]
    assert journal.pending() == []


async def test_cancellation_is_undone_too(journal: Journal) -> None:
    begun, undone = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with journal.operation("clone") as entry:
            entry.on_undo(undone.set)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone.is_set()
    assert journal.pending() == []


async def test_an_undo_that_fails_leaves_the_entry_for_the_next_start(journal: Journal) -> None:
    undone: list[str] = []

    def refuse() -> None:
        raise OSError("no")

    async def fail() -> None:
        async with journal.operation("clone") as entry:
            entry.on_undo(undone.append, "overlay")
            entry.on_undo(refuse)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert undone == ["overlay"]
    (left,) = journal.pending()
    await journal.erase(left.id)
    assert journal.pending() == []


async def test_success_undoes_nothing(journal: Journal) -> None:
    async with journal.operation("clone") as entry:
        entry.on_undo(pytest.fail, "undone")


_CRASHES = """
import asyncio, sys, time
from pathlib import Path
from ramet.host.inventory import Inventory
from ramet.host.journal import Journal
from ramet.host.sqlite_store import SqliteStore

async def main() -> None:
    store = await SqliteStore.open(Path(sys.argv[1]))
    async with Inventory.open(store) as inventory:
        async with Journal(inventory.journal).operation("clone", "v", {"step": 1}) as entry:
            await entry.update(step=2)
            print("there", flush=True)
            time.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_kill_9_leaves_the_entry_as_last_updated(tmp_path: Path) -> None:
    path = tmp_path / "inventory.db"

    def crash() -> None:
        with subprocess.Popen([sys.executable, "-c", _CRASHES, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"there\n"
            os.kill(child.pid, signal.SIGKILL)

    await asyncio.to_thread(crash)
    store = await SqliteStore.open(path)
    async with Inventory.open(store) as inventory:
        (left,) = Journal(inventory.journal).pending()
        assert (left.vm_id, left.detail) == ("v", {"step": 2})
    await store.aclose()
