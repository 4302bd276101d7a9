"""What a full disk refused is written later, once, and the newest of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ramet.errors import CapacityError, ConflictError
from ramet.host.debts import Debts
from ramet.host.inventory import Inventory
from ramet.host.journal import Journal
from ramet.host.sqlite_store import SqliteStore


class Disk:
    def __init__(self, full: bool = False) -> None:
        self.full = full
        self.written: list[str] = []

    def writes(self, text: str) -> Callable[..., Awaitable[None]]:
        async def write(*_: object) -> None:
            await asyncio.sleep(0)
            if self.full:
                raise CapacityError("full")
            self.written.append(text)

        return write


async def test_what_was_refused_is_written_when_there_is_room() -> None:
    disk, debts = Disk(), Debts()
    disk.full = True
    await debts.write("vm a", disk.writes("old"))
    await debts.write("vm a", disk.writes("new"))
    await debts.write("vm b", disk.writes("other"))
    await debts.pay()
    assert (disk.written, len(debts)) == ([], 2)
    disk.full = False
    await debts.pay()
    await debts.pay()
    assert (disk.written, len(debts)) == (["new", "other"], 0)


async def test_a_later_write_that_succeeds_takes_the_place_of_the_debt() -> None:
    disk, debts = Disk(), Debts()
    disk.full = True
    await debts.write("vm a", disk.writes("old"))
    disk.full = False
    await debts.write("vm a", disk.writes("new"))
    await debts.pay()
    assert disk.written == ["new"]
    disk.full = True
    await debts.write("vm a", disk.writes("gone"))
    debts.paid("vm a")
    disk.full = False
    await debts.pay()
    assert disk.written == ["new"]


async def test_an_operation_succeeds_though_its_entry_cannot_be_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, debts = await SqliteStore.open(tmp_path / "inventory.db"), Debts()
    async with Inventory.open(store) as inventory:
        journal = Journal(inventory.journal, debts)
        with monkeypatch.context() as full:
            full.setattr(inventory.journal, "remove", Disk(full=True).writes("x"))
            async with journal.operation("clone", "v"):
                pass
        assert [entry.kind for entry in journal.pending()] == ["clone"]
        assert len(debts) == 1
    await store.aclose()


async def test_other_errors_are_the_callers() -> None:
    async def taken() -> None:
        raise ConflictError("taken")

    debts = Debts()
    with pytest.raises(ConflictError):
        await debts.write("vm a", taken)
    assert len(debts) == 0
