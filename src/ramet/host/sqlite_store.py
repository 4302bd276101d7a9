"""The store in one SQLite file, for one host.

    store = await SqliteStore.open(path)      # DamagedError when the file is not whole
    await store.aclose()

A write that has been acknowledged survives kill -9 and the loss of power: write-ahead log with synchronous=FULL.
Writes that arrive together share one transaction, hence one fsync.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import json
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from ramet.errors import CapacityError, ConflictError, DamagedError, RametError, UsageError
from ramet.host.store import MAX_VALUE_BYTES, Change, ChangeLog, Delete, Entry, Put

log = structlog.stdlib.get_logger(__name__)

SCHEMA_VERSION = 1

_REPAIR = "let 'ramet doctor --repair' put together"
WAY_BACK = "'ramet doctor --repair' puts it together again from what is whole; VMs go on meanwhile."

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('revision', 0);
"""


class _Database:
    """The SQLite file, used by one thread only. Every method blocks."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=5000;")
            self._check()
        except BaseException:
            self._db.close()
            raise

    def _check(self) -> None:
        found = self._db.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not (version and {"meta", "entries"} <= tables):
            raise sqlite3.DatabaseError("it is another program's database")
        if version == 0:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise DamagedError(
                f"The inventory has format {version}; this version of Ramet knows format {SCHEMA_VERSION}.",
                hint=f"Run the version of Ramet that wrote it, or {_REPAIR} what this one understands.",
            )

    def copy_to(self, path: Path) -> None:
        """A whole copy, put in place at once."""
        fresh = path.with_suffix(path.suffix + ".new")
        fresh.unlink(missing_ok=True)
        with closing(sqlite3.connect(fresh)) as copy:
            self._db.backup(copy)
        fresh.replace(path)

    def close(self) -> None:
        self._db.close()

    def begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        with suppress(sqlite3.Error):  # a failed COMMIT may have rolled back already
            self._db.execute("ROLLBACK")

    def revision(self) -> int:
        return int(self._db.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0])

    def get(self, key: str) -> Entry | None:
        row = self._db.execute("SELECT key, value, revision FROM entries WHERE key = ?", (key,)).fetchone()
        return _entry(row) if row else None

    def list(self, prefix: str) -> builtins.list[Entry]:
        rows = self._db.execute(
            "SELECT key, value, revision FROM entries WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key",
            (prefix, len(prefix), prefix),
        )
        return [_entry(row) for row in rows]

    def write(self, changes: Sequence[tuple[Put | Delete, str]]) -> builtins.list[Change]:
        """Check all conditions, then write all, under one revision. The changes that were made."""
        for change, _ in changes:
            self._check_revision(change.key, change.if_revision)
        revision = self.revision() + 1
        done = [made for change, text in changes if (made := self._apply(change, text, revision)) is not None]
        if done:
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (revision,))
        return done

    def _check_revision(self, key: str, if_revision: int | None) -> None:
        if if_revision is None:
            return
        row = self._db.execute("SELECT revision FROM entries WHERE key = ?", (key,)).fetchone()
        found = row[0] if row else 0
        if found != if_revision:
            raise ConflictError(f"The record {key} is at revision {found}, not {if_revision}.", key=key, revision=found)

    def _apply(self, change: Put | Delete, text: str, revision: int) -> Change | None:
        if isinstance(change, Put):
            self._db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (change.key, text, revision))
            return Change(change.key, json.loads(text), revision)
        gone = self._db.execute("DELETE FROM entries WHERE key = ?", (change.key,)).rowcount
        return Change(change.key, None, revision) if gone else None


def _entry(row: tuple[Any, Any, Any]) -> Entry:
    """SQLite vouches for its pages, not for what stands in them."""
    key, text, revision = row
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as exc:
        raise DamagedError(f"The inventory's record {key!r:.80} is damaged: {exc}.", hint=WAY_BACK) from exc
    if not isinstance(key, str) or not isinstance(value, dict) or not isinstance(revision, int):
        raise DamagedError(f"The inventory's record {key!r:.80} is damaged.", hint=WAY_BACK)
    return Entry(key, value, revision)


@dataclass(slots=True)
class _Request:
    """One call on its way through the worker thread."""

    run: Callable[[_Database], Any]
    future: asyncio.Future[Any]
    changes: builtins.list[Change]


class SqliteStore:
    """The store in one SQLite file. Made by `open`, ended by `aclose`; calls after that raise RuntimeError."""

    def __init__(self, path: Path, database: _Database, worker: ThreadPoolExecutor, revision: int) -> None:
        self.path = path
        self._database = database
        self._worker = worker
        self._waiting: deque[_Request] = deque()
        self._log = ChangeLog(revision)
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open or make the file; a copy of it, `<path>.bak`, is kept from each time that it was found whole."""
        worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        loop = asyncio.get_running_loop()
        try:
            database = await loop.run_in_executor(worker, _open, path)
            revision = await loop.run_in_executor(worker, database.revision)
        except BaseException:
            worker.shutdown(wait=False)
            raise
        return cls(path, database, worker, revision)

    async def aclose(self) -> None:
        """Finish the writes under way, end every watch, close the file."""
        self._log.close()
        await self._loop.run_in_executor(self._worker, self._database.close)
        self._worker.shutdown()

    async def get(self, key: str) -> Entry | None:
        entry: Entry | None = await self._submit(lambda db: db.get(key))
        return entry

    async def list(self, prefix: str) -> builtins.list[Entry]:
        entries: list[Entry] = await self._submit(lambda db: db.list(prefix))
        return entries

    async def revision(self) -> int:
        return int(await self._submit(lambda db: db.revision()))

    async def put(self, key: str, value: dict[str, Any], if_revision: int | None = None) -> int:
        return await self.put_all([Put(key, value, if_revision)])

    async def delete(self, key: str, if_revision: int | None = None) -> int | None:
        changes = await self._write([Delete(key, if_revision)])
        return changes[0].revision if changes else None

    async def put_all(self, changes: Sequence[Put | Delete]) -> int:
        """Returns the revision of the write, or the current one when nothing was there to change."""
        done = await self._write(changes)
        return done[0].revision if done else await self.revision()

    def watch(self, prefix: str, since_revision: int) -> AsyncIterator[Change]:
        return self._log.watch(prefix, since_revision)

    async def _write(self, changes: Sequence[Put | Delete]) -> builtins.list[Change]:
        keys = [change.key for change in changes]
        if len(set(keys)) != len(keys):
            raise UsageError("One transaction names the same record twice.", keys=keys)
        texts = [(change, _encode(change)) for change in changes]
        done: list[Change] = await self._submit(lambda db: db.write(texts))
        return done

    async def _submit(self, run: Callable[[_Database], Any]) -> Any:
        request = _Request(run, self._loop.create_future(), [])
        self._waiting.append(request)
        self._worker.submit(self._drain)
        try:
            return await asyncio.shield(request.future)
        except asyncio.CancelledError:
            # The write goes on in its thread. Leaving only when it is over keeps the order of what callers do next.
            await asyncio.wait([request.future])
            request.future.exception()  # nobody else will look at it
            raise

    def _drain(self) -> None:
        """In the worker thread: everything that waits, in one transaction."""
        batch: list[_Request] = []
        with suppress(IndexError):
            while len(batch) < 256:
                batch.append(self._waiting.popleft())
        if not batch:
            return  # an earlier round took them along
        results = self._run(batch)
        changes = [change for request in batch for change in request.changes]
        with suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
            self._loop.call_soon_threadsafe(self._finish, batch, results, changes)

    def _run(self, batch: builtins.list[_Request]) -> builtins.list[Any]:
        """Results or exceptions, one a request. A request that fails has changed nothing (conditions come first)."""
        try:
            self._database.begin()
            results = [self._run_one(request) for request in batch]
            self._database.commit()
        except Exception as exc:
            self._database.rollback()
            for request in batch:
                request.changes.clear()
            return [_translate(exc, self.path)] * len(batch)
        return results

    def _run_one(self, request: _Request) -> Any:
        try:
            result = request.run(self._database)
        except RametError as exc:
            return exc
        if isinstance(result, list):
            request.changes.extend(item for item in result if isinstance(item, Change))
        return result

    def _finish(
        self, batch: builtins.list[_Request], results: builtins.list[Any], changes: builtins.list[Change]
    ) -> None:
        """In the loop: the watchers learn before the callers, and learn also of a write whose caller went away."""
        if changes:
            self._log.publish(changes)
        for request, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)


def _encode(change: Put | Delete) -> str:
    if isinstance(change, Delete):
        return ""
    text = json.dumps(change.value, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_VALUE_BYTES:
        raise UsageError(f"The record {change.key} is larger than 1 MiB.", key=change.key, bytes=len(text))
    return text


def backup_path(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".bak")


def _open(path: Path) -> _Database:
    try:
        database = _Database(path)
    except UnicodeDecodeError as exc:  # SQLite's own words are what is damaged
        raise DamagedError(f"The inventory {path} is damaged.", hint=WAY_BACK, path=str(path)) from exc
    except sqlite3.Error as exc:
        told = _translate(exc, path)
        if isinstance(told, RametError):
            raise told from exc
        raise DamagedError(f"The inventory {path} cannot be opened: {exc}.", hint=WAY_BACK) from exc
    try:
        database.copy_to(backup_path(path))
    except (sqlite3.Error, OSError) as exc:
        # A full disk is no reason to refuse the start: the daemon is what can make room there.
        log.warning("no copy of the inventory was made", path=str(path), error=str(exc))
    return database


_FULL = {sqlite3.SQLITE_FULL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


def _translate(exc: Exception, path: Path) -> Exception:
    """SQLite's errors in our words."""
    if not isinstance(exc, sqlite3.Error):
        return exc
    extended = getattr(exc, "sqlite_errorcode", None)
    code = None if extended is None else extended & 0xFF
    if code in _FULL:
        return CapacityError("The inventory's disk is full.", hint="Make room there and try again.", path=str(path))
    undecodable = code is None and not isinstance(exc, sqlite3.ProgrammingError)
    if code in _DAMAGED or undecodable:
        return DamagedError(f"The inventory {path} is damaged: {exc}.", hint=WAY_BACK, path=str(path))
    return OSError(errno.EIO, str(exc), str(path))

