"""Whatever was done to a source's guest before the stun is undone after it, cancelled or not; forks have an owner."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.clone import quiesce, workflows
from ramet.clone.quiesce import Quiesced, quiesced
from ramet.model.requests import CloneVm

REQUEST = CloneVm(names=("a",))


class Hooks:
    """The guest's, which take their time."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def run(self, agent: Any, which: str, timeout_s: float) -> bool:
        self.begun.set()
        await self.go_on.wait()
        self.ran.append(which)
        return True


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    hooks = Hooks()
    monkeypatch.setattr(quiesce, "freeze_hooks", hooks.run)
    return hooks


@pytest.fixture
def live() -> Any:
    async def is_listening(_: str) -> bool:
        return True

    return cast("Any", SimpleNamespace(name="web", agent=None, qmp=SimpleNamespace(is_listening=is_listening)))


async def cancelled_in_a_hook(hooks: Hooks, work: asyncio.Task[Any]) -> None:
    await hooks.begun.wait()
    work.cancel()
    await asyncio.sleep(0)
    hooks.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_source_is_woken_when_its_clone_is_cancelled_in_a_freeze_hook(hooks: Hooks, live: Any) -> None:
    async def work() -> None:
        async with quiesced(live, REQUEST):
            pytest.fail("cancelled before")

    await cancelled_in_a_hook(hooks, asyncio.ensure_future(work()))
    assert hooks.ran == ["freeze", "thaw"]


async def test_what_was_forked_is_ended_when_the_clone_is_cancelled_in_a_thaw_hook(
    hooks: Hooks, live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def take(*_: Any, hold: bool) -> Any:
        hooks.begun.clear()
        hooks.go_on.clear()
        return SimpleNamespace(result=SimpleNamespace(forks=["child"]))

    async def end_children(forks: list[str]) -> None:
        ended.extend(forks)

    monkeypatch.setattr("ramet.clone.moments.take", take)
    monkeypatch.setattr(workflows, "end_children", end_children)
    hooks.go_on.set()
    order = cast("Any", SimpleNamespace(request=REQUEST))
    work = asyncio.ensure_future(workflows._take(live, order, (), []))
    await asyncio.sleep(0.01)  # into the thaw hook
    await cancelled_in_a_hook(hooks, work)
    assert hooks.ran == ["freeze", "thaw"]
    assert ended == ["child"]


async def test_hooks_of_a_guest_that_has_none_are_not_undone(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(agent: Any, which: str, timeout_s: float) -> bool:
        assert which == "freeze"
        return False

    monkeypatch.setattr(quiesce, "freeze_hooks", none)
    async with quiesced(live, REQUEST) as done:
        assert done == Quiesced(timeout_s=REQUEST.freeze_hooks_timeout_s)
