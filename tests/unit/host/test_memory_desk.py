"""What callers are told of memory: all of it or some VMs', now or as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.errors import NotFoundError
from ramet.host.locks import VmLocks
from ramet.host.memory_desk import MemoryDesk
from ramet.host.settings import Settings
from ramet.memory.holdings import Holding
from tests.unit.host.test_memory_ledger import HOLDER, ONE, OTHER, WEB, reading

LIVES = {"web": WEB, "one": ONE, "other": OTHER}


class FakeFloor:
    """All that hold memory are told as holdings."""

    def __init__(self, held: list[Holding]) -> None:
        self.machines: dict[str, Any] = {}
        self.rooms = SimpleNamespace(holdings=SimpleNamespace(all=lambda: held))

    def find(self, ref: str) -> Any:
        if ref not in (*LIVES, "off"):
            raise NotFoundError(f"There is no VM {ref!r}.")
        return SimpleNamespace(id=LIVES[ref].id if ref in LIVES else "off-id", name=ref)


@pytest.fixture
def held() -> list[Holding]:
    return [WEB, ONE, HOLDER, OTHER]


@pytest.fixture
def desk(held: list[Holding], monkeypatch: pytest.MonkeyPatch) -> MemoryDesk:
    desk = MemoryDesk(cast("Any", FakeFloor(held)), cast("Any", None), VmLocks(), Settings())

    async def refresh() -> None:
        for number, one in enumerate(held):
            desk.sampler.ledger.note(one, reading(number + 1.0, unique=10, common=5, users=3))

    async def measure(ids: Any, *, whole: bool = True) -> float:
        asked = [one for one in held if one.id in ids]
        for one in asked:
            desk.sampler.ledger.note(one, reading(100.0, unique=20))
        return 0.0

    monkeypatch.setattr(desk.sampler, "refresh", refresh)
    monkeypatch.setattr(desk.sampler, "measure", measure)
    return desk


async def test_all_of_it(desk: MemoryDesk) -> None:
    view = await desk.view()
    assert [row.name for row in view.rows] == ["other", "holder of web", "one", "web"]
    assert view.totals.unique_bytes == sum(lineage.unique_bytes for lineage in view.lineages)
    assert 0 < view.available_bytes <= view.total_bytes
    assert view.unread == 0


async def test_some_vms_come_with_the_sums_of_their_whole_lineages(desk: MemoryDesk) -> None:
    view = await desk.view(["one"])
    assert [row.name for row in view.rows] == ["one"]
    assert [(lineage.name, lineage.processes) for lineage in view.lineages] == [("web", 3)]


async def test_now_measures_the_lineages_that_are_asked_for(desk: MemoryDesk) -> None:
    await desk.view()
    view = await desk.view(["web"], now=True)
    assert view.rows[0].measured_at == 100
    assert view.lineages[0].measured_at == 100
    assert next(row for row in desk.rows() if row.name == "other").measured_at == 4


async def test_a_vm_that_is_off_has_no_row_and_one_that_is_not_there_is_told(desk: MemoryDesk) -> None:
    view = await desk.view(["off"])
    assert (view.rows, view.lineages) == ((), ())
    with pytest.raises(NotFoundError):
        await desk.view(["nobody"])


async def test_one_that_went_is_left_out(desk: MemoryDesk, held: list[Holding]) -> None:
    await desk.view()
    held.remove(ONE)
    assert [row.name for row in (await desk.view()).rows] == ["other", "holder of web", "web"]


async def test_history_by_name_and_of_one_that_is_gone_by_id(desk: MemoryDesk, held: list[Holding]) -> None:
    await desk.view()
    desk._note(1000.0)
    held.remove(ONE)
    desk.sampler.sync()
    desk._note(1010.0)
    assert [point.at for point in desk.history("web", "hour").points] == [1000, 1010]
    assert [point.at for point in desk.history(ONE.id, "hour").points] == [1000]
    host = desk.history(None, "day")
    assert (host.name, host.every_s, len(host.points)) == ("host", 300, 1)
    assert desk.history("off", "hour").points == ()
    with pytest.raises(NotFoundError):
        desk.history("nobody", "hour")
