"""A clone request as a task: one for a key however often it is asked, and nothing left of one that is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.errors import ConflictError, NotFoundError
from ramet.host import clones
from ramet.host.clones import CloneDesk
from ramet.host.locks import VmLocks
from ramet.model.requests import CloneVm

SOURCE = SimpleNamespace(id="s1", name="web", vm=SimpleNamespace(frozen=True, moment_id="m1"))


class FakeFloor:
    def __init__(self) -> None:
        self.machines: dict[str, Any] = {}

    def find(self, ref: str) -> Any:
        return SOURCE

    def is_taken(self, name: str) -> bool:
        return False

    @contextlib.contextmanager
    def reserve(self, *names: str) -> Iterator[None]:
        yield


class FakeOrder:
    workflow = "frozen"
    accepted_at = 0.0

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.request = CloneVm(names=names)

    def without(self, names: Any) -> FakeOrder:
        return FakeOrder(tuple(name for name in self.names if name not in names))


class FakeTasks:
    """Writes slowly, as a disk does."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.work: Callable[[Any], Awaitable[Any]] | None = None

    def by_key(self, key: str, digest: str) -> Any:
        for task in self.begun:
            if task.key == key:
                if task.digest != digest:
                    raise ConflictError("another request")
                return task
        return None

    async def start(self, kind: str, target: str, work: Any, **fields: Any) -> Any:
        await asyncio.sleep(0.01)
        self.work = work
        self.begun.append(SimpleNamespace(**fields))
        return self.begun[-1]


class FakeIdentities:
    async def guard(self, live: Any) -> None:
        return None


@pytest.fixture
def tasks() -> FakeTasks:
    return FakeTasks()


@pytest.fixture
def removed() -> list[str]:
    return []


@pytest.fixture
def desk(tasks: FakeTasks, removed: list[str], monkeypatch: pytest.MonkeyPatch) -> CloneDesk:
    order = FakeOrder(("a", "b"))
    monkeypatch.setattr(clones, "check", lambda *_: order)

    async def remove(vm_id: str) -> None:
        if vm_id == "gone":
            raise NotFoundError("gone")
        removed.append(vm_id)

    accounts = SimpleNamespace(before=lambda live: None)
    parts = (FakeFloor(), tasks, VmLocks(), None, FakeIdentities(), remove, accounts)
    return CloneDesk(*cast("Any", parts))


async def test_two_requests_with_one_key_at_once_are_one_task(desk: CloneDesk, tasks: FakeTasks) -> None:
    request = CloneVm(names=("a",), key="k")
    one, two = await asyncio.gather(desk.clone("web", request, 0), desk.clone("web", request, 0))
    assert one is two
    assert len(tasks.begun) == 1


async def test_one_key_at_once_for_two_requests_is_a_mistake_of_one_of_them(desk: CloneDesk, tasks: FakeTasks) -> None:
    asked = (desk.clone("web", CloneVm(names=(name,), key="k"), 0) for name in ("a", "b"))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, ConflictError) for answer in answers] == [False, True]
    assert len(tasks.begun) == 1


@pytest.mark.parametrize("by_user", [True, False])
async def test_one_that_is_cancelled_leaves_none_of_its_pool_either(
    desk: CloneDesk, tasks: FakeTasks, removed: list[str], monkeypatch: pytest.MonkeyPatch, by_user: bool
) -> None:
    """One was taken out of the pool, one has taken itself back; the next was being grown. A daemon that stops leaves
    what runs to the next one."""

    async def from_pool(pools: Any, source: Any, order: Any, made: list[Any]) -> list[Any]:
        made += [SimpleNamespace(id="pooled"), SimpleNamespace(id="gone")]
        return [SimpleNamespace(name="a")]

    async def grow(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(clones, "from_pool", from_pool)
    monkeypatch.setattr(desk, "_from_moment", grow)
    await desk.clone("web", CloneVm(names=("a", "b")), 0)
    assert tasks.work is not None
    handle = SimpleNamespace(id="t1", cancel_requested=by_user)
    work = asyncio.ensure_future(tasks.work(cast("Any", handle)))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert removed == (["pooled"] if by_user else [])
