import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ramet.errors import CapacityError, ConflictError, DamagedError, UsageError
from ramet.host.sqlite_store import SqliteStore, backup_path
from ramet.host.store import Change, Delete, Put


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "inventory.db")
    yield store
    await store.aclose()


async def test_a_record_is_read_as_it_was_put_with_the_revision_of_its_last_write(store: SqliteStore) -> None:
    first = await store.put("vm/a", {"name": "web"})
    second = await store.put("vm/b", {"name": "db"})
    third = await store.put("vm/a", {"name": "www"})
    assert first < second < third == await store.revision()
    entry = await store.get("vm/a")
    assert entry is not None
    assert (entry.value, entry.revision) == ({"name": "www"}, third)
    assert [e.key for e in await store.list("vm/")] == ["vm/a", "vm/b"]
    assert await store.get("vm/c") is None


async def test_list_takes_its_prefix_literally(store: SqliteStore) -> None:
    for key in ("vm/a", "vm-name/a", "vm%/a", "VM/a", "vm0"):
        await store.put(key, {})
    assert [e.key for e in await store.list("vm/")] == ["vm/a"]
    assert [e.key for e in await store.list("vm%")] == ["vm%/a"]
    assert len(await store.list("")) == 5


async def test_a_condition_that_does_not_hold_changes_nothing(store: SqliteStore) -> None:
    revision = await store.put("a", {"n": 1}, if_revision=0)
    with pytest.raises(ConflictError):
        await store.put("a", {"n": 2}, if_revision=0)
    with pytest.raises(ConflictError):
        await store.delete("a", if_revision=revision + 1)
    with pytest.raises(ConflictError):
        await store.put_all([Put("b", {}), Delete("a", revision + 1)])
    assert await store.get("b") is None
    assert await store.revision() == revision
    assert await store.put("a", {"n": 2}, if_revision=revision) == revision + 1


async def test_several_writes_are_one_revision(store: SqliteStore) -> None:
    await store.put("old", {})
    revision = await store.put_all([Put("new", {}, 0), Delete("old"), Put("x", {})])
    assert {e.key: e.revision for e in await store.list("")} == {"new": revision, "x": revision}
    with pytest.raises(UsageError):
        await store.put_all([Put("a", {}), Delete("a")])


async def test_deleting_what_is_not_there_is_nothing(store: SqliteStore) -> None:
    assert await store.delete("a") is None
    assert await store.revision() == 0


async def test_many_writers_at_once_each_get_a_revision_of_their_own(store: SqliteStore) -> None:
    revisions = await asyncio.gather(*(store.put(f"k{n}", {"n": n}) for n in range(300)))
    assert sorted(revisions) == list(range(1, 301))


async def test_of_two_writers_with_the_same_condition_one_wins(store: SqliteStore) -> None:
    results = await asyncio.gather(
        *(store.put("name", {"n": n}, if_revision=0) for n in range(8)), return_exceptions=True
    )
    assert sum(isinstance(result, ConflictError) for result in results) == 7


async def test_a_watch_sees_what_was_and_what_comes(store: SqliteStore) -> None:
    before = await store.put("vm/a", {"n": 1})
    await store.put("vm/b", {"n": 1})
    await store.put("image/a", {})
    watch = store.watch("vm/", before)
    assert await anext(watch) == Change("vm/b", {"n": 1}, before + 1)
    pending = asyncio.ensure_future(anext(watch))
    await store.delete("vm/a")
    assert await pending == Change("vm/a", None, before + 3)


async def test_a_watch_ends_when_the_store_closes(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "inventory.db")

    async def collect() -> list[Change]:
        return [change async for change in store.watch("", 0)]

    watcher = asyncio.ensure_future(collect())
    await store.put("a", {})
    await store.aclose()
    assert [change.key for change in await watcher] == ["a"]


async def test_a_watch_from_too_far_back_is_told_to_list_again(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "inventory.db")
    await store.put("a", {})
    await store.aclose()
    store = await SqliteStore.open(tmp_path / "inventory.db")
    with pytest.raises(ConflictError, match="no longer kept"):
        await anext(store.watch("", 0))
    await store.aclose()


async def test_a_write_whose_caller_was_cancelled_still_reaches_the_watchers(store: SqliteStore) -> None:
    writer = asyncio.ensure_future(store.put("a", {}))
    await asyncio.sleep(0)
    writer.cancel()
    assert (await anext(store.watch("", 0))).key == "a"


async def test_too_large_a_record_is_refused(store: SqliteStore) -> None:
    with pytest.raises(UsageError, match="1 MiB"):
        await store.put("a", {"text": "x" * (1 << 20)})


async def test_a_full_disk_is_a_capacity_error_and_the_record_stays(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "inventory.db")
    await store.put("a", {"n": 1})
    pages = store._database._db.execute("PRAGMA page_count").fetchone()[0]
    store._database._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(CapacityError, match="full"):
        await store.put("b", {"text": "x" * 100_000})
    entry = await store.get("a")
    assert entry is not None
    assert entry.value == {"n": 1}
    await store.aclose()


async def test_a_damaged_file_is_refused_with_a_way_back(tmp_path: Path) -> None:
    path = tmp_path / "inventory.db"
    store = await SqliteStore.open(path)
    await store.put("a", {"n": 1})
    await store.aclose()
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(DamagedError) as caught:
        await SqliteStore.open(path)
    assert "ramet doctor --repair" in (caught.value.hint or "")
    assert path.read_bytes() == b"no database at all" * 1000


async def test_damage_inside_the_file_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "inventory.db"
    store = await SqliteStore.open(path)
    for n in range(50):
        await store.put(f"k{n:03}", {"text": "x" * 500})
    await store.aclose()
    data = bytearray(path.read_bytes())
    data[8192:8292] = bytes(b ^ 0xFF for b in data[8192:8292])
    path.write_bytes(data)
    with pytest.raises(DamagedError):
        await SqliteStore.open(path)
    assert backup_path(path).exists()


async def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inventory.db"
    await (await SqliteStore.open(path)).aclose()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(DamagedError, match="format 99"):
        await SqliteStore.open(path)


_WRITER = """
import asyncio, sys
from pathlib import Path
from ramet.host.sqlite_store import SqliteStore

async def main() -> None:
    store = await SqliteStore.open(Path(sys.argv[1]))
    n = 0
    while True:
        n += 1
        await store.put(f"k{n}", {"n": n})
        print(n, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "inventory.db"
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(200)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]

    async def read() -> set[int]:
        store = await SqliteStore.open(path)
        found = {entry.value["n"] for entry in await store.list("k")}
        await store.aclose()
        return found

    assert set(acknowledged) <= asyncio.run(read())


_KEYS = st.sampled_from(["a", "a/b", "ab", "b", "%"])


class StoreMachine(RuleBasedStateMachine):
    """The store against a dict: same contents, same refusals, and a watch that tells every change once."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.store = self.run(SqliteStore.open(Path(self.folder.name) / "db"))
        self.model: dict[str, tuple[dict[str, Any], int]] = {}
        self.revision = 0
        self.told: list[Change] = []

    def run(self, work: Any) -> Any:
        async def call() -> Any:
            return await work

        return self.runner.run(call())

    @rule(key=_KEYS, n=st.integers(), condition=st.sampled_from([None, 0, "right", "wrong"]))
    def put(self, key: str, n: int, condition: Any) -> None:
        found = self.model[key][1] if key in self.model else 0
        wanted = {"right": found, "wrong": found + 1}.get(condition, condition)
        if wanted not in (None, found):
            with pytest.raises(ConflictError):
                self.run(self.store.put(key, {"n": n}, wanted))
            return
        self.revision += 1
        assert self.run(self.store.put(key, {"n": n}, wanted)) == self.revision
        self.model[key] = ({"n": n}, self.revision)
        self.told.append(Change(key, {"n": n}, self.revision))

    @rule(key=_KEYS)
    def delete(self, key: str) -> None:
        if self.model.pop(key, None) is None:
            assert self.run(self.store.delete(key)) is None
            return
        self.revision += 1
        assert self.run(self.store.delete(key)) == self.revision
        self.told.append(Change(key, None, self.revision))

    @rule(old=_KEYS, new=_KEYS)
    def move(self, old: str, new: str) -> None:
        if old == new or old not in self.model or new in self.model:
            return
        self.revision += 1
        value = self.model.pop(old)[0]
        assert self.run(self.store.put_all([Delete(old), Put(new, value, 0)])) == self.revision
        self.model[new] = (value, self.revision)
        self.told += [Change(old, None, self.revision), Change(new, value, self.revision)]

    @rule()
    def reopen(self) -> None:
        self.run(self.store.aclose())
        self.store = self.run(SqliteStore.open(Path(self.folder.name) / "db"))
        self.told.clear()

    @rule(prefix=_KEYS)
    def watch(self, prefix: str) -> None:
        since = self.revision - len({change.revision for change in self.told})
        wanted = [change for change in self.told if change.key.startswith(prefix)]

        async def read() -> list[Change]:
            changes = self.store.watch(prefix, since)
            return [await anext(changes) for _ in wanted]

        assert self.run(read()) == wanted

    @invariant()
    def same_contents(self) -> None:
        if not hasattr(self, "store"):
            return
        for prefix in ("", "a", "a/", "%"):
            found = {entry.key: (entry.value, entry.revision) for entry in self.run(self.store.list(prefix))}
            assert found == {key: entry for key, entry in self.model.items() if key.startswith(prefix)}
        assert self.run(self.store.revision()) == self.revision

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.aclose())
            self.runner.close()
            self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
