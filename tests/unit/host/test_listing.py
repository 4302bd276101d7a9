"""Lists of VMs, some of which go while they are looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ramet.errors import NotFoundError
from ramet.host import listing


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def view(live: Any, **_: Any) -> Any:
        if live.lost:
            raise NotFoundError("There is no layer x.")
        return live.id

    monkeypatch.setattr(listing, "vm_view", view)


def machine(name: str, *, lost: bool = False, removed: bool = False) -> Any:
    return SimpleNamespace(id=name, lost=lost, removed=removed)


async def no_addresses(live: Any) -> dict[str, tuple[str, ...]]:
    return {}


async def listed(*machines: Any) -> list[Any]:
    found: list[Any] = await listing.views_of(machines, {}, no_addresses, lambda vm_id: None)
    return found


@pytest.mark.usefixtures("seen")
async def test_those_that_are_removed_meanwhile_are_left_out() -> None:
    assert await listed(machine("a"), machine("b", lost=True, removed=True), machine("c", removed=True)) == ["a", "c"]


@pytest.mark.usefixtures("seen")
async def test_one_that_is_there_and_damaged_is_told_of() -> None:
    with pytest.raises(NotFoundError):
        await listed(machine("a"), machine("b", lost=True))
