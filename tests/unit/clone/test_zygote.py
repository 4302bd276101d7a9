"""What is forked for a clone of a frozen VM, and what when its zygote fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.clone import zygote
from ramet.errors import ForkError
from ramet.hypervisor.fork import ForkReply, ForkRequest
from ramet.hypervisor.rundir import RunDir
from ramet.machine.live import LiveMachine

REPLY = ForkReply(1, 2, 3.0)
REQUEST = ForkRequest(("/qemu",), {}, (0, 1, 2), "x")


class Source:
    """A frozen VM, as far as forking it goes."""

    def __init__(self, *, fails: bool = False) -> None:
        self.rooms = SimpleNamespace(limits=SimpleNamespace(zygotes=True))
        self.run_dir = RunDir(Path("/run/vm"))
        self.name = "source"
        self.zygote: RunDir | None = None
        self.zygote_tried = False
        self.zygote_lock = asyncio.Lock()
        self.while_frozen = contextlib.AsyncExitStack()
        self.fails = fails
        self.begun = 0

    async def drop_zygote(self) -> None:
        self.zygote = None
        await self.while_frozen.aclose()

    @contextlib.asynccontextmanager
    async def make(self, _: object) -> AsyncIterator[RunDir]:
        self.begun += 1
        if self.fails:
            raise ForkError("no room")
        yield self.run_dir.zygote


async def forked_at(monkeypatch: pytest.MonkeyPatch, source: Source, *, broken: bool = False) -> list[Path]:
    """Where forks were asked for, in order."""
    asked: list[Path] = []

    async def fork_from(_: object, run_dir: RunDir, request: ForkRequest) -> ForkReply:
        asked.append(run_dir.path)
        if broken and run_dir.path.name == "zygote":
            raise ForkError("it is gone")
        return REPLY

    async def has_zygotes(_: object) -> bool:
        return bool(source.rooms.limits.zygotes)

    monkeypatch.setattr(zygote, "fork_from", fork_from)
    monkeypatch.setattr(zygote, "has_zygotes", has_zygotes)
    monkeypatch.setattr(zygote, "_zygote", source.make)
    for _ in range(2):
        assert await zygote.fork_frozen(cast("LiveMachine", cast("Any", source)), REQUEST) == REPLY
    return asked


async def test_one_zygote_is_made_and_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    assert await forked_at(monkeypatch, source) == [Path("/run/vm/zygote")] * 2
    assert source.begun == 1


async def test_a_zygote_that_fails_is_given_up_and_the_vm_itself_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    asked = await forked_at(monkeypatch, source, broken=True)
    assert asked == [Path("/run/vm/zygote"), Path("/run/vm"), Path("/run/vm")]
    assert (source.begun, source.zygote) == (1, None)


async def test_one_that_cannot_be_made_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(fails=True)
    assert await forked_at(monkeypatch, source) == [Path("/run/vm")] * 2
    assert source.begun == 1


async def test_without_the_setting_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    source.rooms.limits.zygotes = False
    assert await forked_at(monkeypatch, source) == [Path("/run/vm")] * 2
    assert source.begun == 0
