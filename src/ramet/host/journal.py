"""What is under way, written down before it begins: so that a crash leaves nothing half done for good.

    journal = Journal(inventory.journal)
    async with journal.operation("clone", vm_id, {"names": ["a"]}) as entry:   # durable before the body begins
        entry.on_undo(remove_overlay, path)         # function or coroutine function; run last first when the body fails
        await entry.update(overlay="abc")           # durable when it returns
        entry.detail, entry.id
    journal.pending() -> list[JournalEntry]         # for recovery, oldest first
    await journal.erase(entry_id)                   # recovery is done with it

On success the entry is erased. When the body fails or is cancelled the undo runs, then the entry is erased; should an
undo fail, or the process die, the entry stays and the next start finds it with `pending`. Recovery must cope with an
operation that was complete and only not erased yet. A disk too full to erase an entry makes no operation fail: that is
done as soon as there is room.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from ramet.host.debts import Debts
from ramet.host.inventory import Table
from ramet.model.host import JournalEntry

log = structlog.stdlib.get_logger(__name__)


class Operation:
    """One operation under way. Made by `Journal.operation`."""

    def __init__(self, table: Table[JournalEntry], entry: JournalEntry) -> None:
        self._table = table
        self._entry = entry
        self._undo: list[Callable[[], Any]] = []

    @property
    def id(self) -> str:
        return self._entry.id

    @property
    def detail(self) -> dict[str, Any]:
        return dict(self._entry.detail)

    async def update(self, **detail: Any) -> None:
        """Add to the detail what is about to exist, before it does. Durable when this returns."""
        self._entry = self._entry.model_copy(update={"detail": {**self._entry.detail, **detail}})
        await self._table.put(self._entry)

    def on_undo(self, undo: Callable[..., Any], *args: Any) -> None:
        """Run `undo(*args)` when the body fails; awaited when it is a coroutine. Last registered, first run."""
        self._undo.append(lambda: undo(*args))

    async def undo(self) -> bool:
        """Run all of them, whatever each does; True when none failed."""
        whole = True
        while self._undo:
            try:
                result = self._undo.pop()()
                if inspect.isawaitable(result):
                    await result
            except Exception:
                whole = False
                log.exception("undo failed; the next start tries again", kind=self._entry.kind, entry=self.id)
        return whole


class Journal:
    def __init__(self, table: Table[JournalEntry], debts: Debts | None = None) -> None:
        self._table = table
        self._debts = Debts() if debts is None else debts  # an empty one is false

    @asynccontextmanager
    async def operation(
        self, kind: str, vm_id: str | None = None, detail: dict[str, Any] | None = None
    ) -> AsyncIterator[Operation]:
        """See the module. A second cancellation, one that comes while the undo runs, leaves the entry to the start."""
        entry = JournalEntry(kind=kind, vm_id=vm_id, at=time.time(), detail=detail or {})
        await self._table.add(entry)
        operation = Operation(self._table, entry)
        try:
            yield operation
        except BaseException:
            if await operation.undo():
                await self.erase(entry.id)
            raise
        await self.erase(entry.id)

    def pending(self) -> list[JournalEntry]:
        """What was begun and not ended, oldest first: at the start, what a crash left."""
        return sorted(self._table.all(), key=lambda entry: (entry.at, entry.id))

    async def erase(self, entry_id: str) -> None:
        await self._debts.write(f"journal {entry_id}", lambda: self._table.remove(entry_id))
