"""The inventory's floor: five verbs over one ordered map of JSON records, with one revision for all of it.

    class Store(Protocol):
        async get(key) -> Entry | None
        async list(prefix) -> list[Entry]                          # sorted by key
        async put(key, value, if_revision=None) -> int             # the new revision; 0 = must not exist
        async delete(key, if_revision=None) -> int | None          # None: there was nothing
        watch(prefix, since_revision) -> AsyncIterator[Change]
        async put_all(changes: Sequence[Put | Delete]) -> int      # all or none, one revision
        async revision() -> int

    from ramet.host.sqlite_store import SqliteStore
    store = await SqliteStore.open(path)      # DamagedError when the file is not whole
    await store.aclose()

The semantics are etcd's on purpose: every write takes the next revision of the whole map, an entry carries the
revision of its last write, a watch resumes after a revision and says so when that lies too far back. So an etcd can
stand behind the same protocol.

A cancelled call may still have written: the outcome is unknown to the caller, never to the watchers, and it is settled
when the call ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ramet.errors import ConflictError
from ramet.host.bell import Bell

MAX_VALUE_BYTES = 1 << 20
"""etcd refuses requests above 1.5 MiB; what does not fit there should not get used to fitting here."""
CHANGES_KEPT = 512


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    value: dict[str, Any]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One write. `value` is None for a deletion."""

    key: str
    value: dict[str, Any] | None
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: dict[str, Any]
    if_revision: int | None = None
    """None: unconditional; 0: the key must not exist; else the revision the key must have."""


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    if_revision: int | None = None


class Store(Protocol):
    """What the inventory stands on. Errors: ConflictError, CapacityError (disk full), DamagedError."""

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str) -> list[Entry]: ...

    async def put(self, key: str, value: dict[str, Any], if_revision: int | None = None) -> int: ...

    async def delete(self, key: str, if_revision: int | None = None) -> int | None: ...

    async def put_all(self, changes: Sequence[Put | Delete]) -> int: ...

    async def revision(self) -> int: ...

    def watch(self, prefix: str, since_revision: int) -> AsyncIterator[Change]: ...


class ChangeLog:
    """The last changes of a store, for its watchers: shared and bounded, however slow a watcher is."""

    def __init__(self, revision: int, kept: int = CHANGES_KEPT) -> None:
        self._changes: deque[Change] = deque()
        self._kept = kept
        self._bell = Bell()
        self._closed = False
        self.compacted_revision = revision
        """Changes up to here are gone."""

    def publish(self, changes: Sequence[Change]) -> None:
        """Changes in order of their revisions."""
        self._changes.extend(changes)
        while len(self._changes) > self._kept:
            self.compacted_revision = self._changes.popleft().revision
        self._bell.ring()

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        self._bell.ring()

    async def watch(self, prefix: str, since_revision: int) -> AsyncIterator[Change]:
        """Changes after `since_revision`; ends with `close`. ConflictError when they are no longer kept."""
        while not self._closed:
            if since_revision < self.compacted_revision:
                raise ConflictError(
                    f"The changes after revision {since_revision} are no longer kept.",
                    hint="List again and watch from there.",
                    compacted_revision=self.compacted_revision,
                )
            news = self._after(since_revision)
            if not news:
                await self._bell.wait()
                continue
            since_revision = news[-1].revision
            for change in news:
                if change.key.startswith(prefix):
                    yield change

    def _after(self, revision: int) -> list[Change]:
        start = bisect_right(self._changes, revision, key=lambda change: change.revision)
        return [self._changes[i] for i in range(start, len(self._changes))]
