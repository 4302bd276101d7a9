"""A VM that freezes ends what waits for its guest: nobody in it can answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.errors import StateError
from ramet.guest.agent import Agent
from ramet.machine.lifecycle import Operation
from ramet.machine.live import LiveMachine
from ramet.model.machine import Machine, Vm, VmState
from ramet.testing.fake_agent import FakeAgent


class Book:
    """Keeps nothing, tells nobody."""

    async def save(self, vm: Vm) -> None: ...

    async def save_fact(self, vm: Vm) -> None: ...

    def emit(self, *_: Any, **__: Any) -> None: ...


async def test_a_command_ends_when_its_vm_freezes(tmp_path: Path) -> None:
    rooms = cast("Any", SimpleNamespace(book=Book()))
    vm = Vm(id="v1", machine=Machine(name="web"), state=VmState.RUNNING, created_at=0)
    live = LiveMachine(rooms, vm)
    async with FakeAgent(tmp_path / "agent") as fake:
        live._agent = Agent(fake.path)
        asked = asyncio.Event()
        fake.commands["guest-ping"] = lambda arguments: asked.set()
        waiting = asyncio.create_task(live.agent.ping(timeout_s=60))
        await asked.wait()
        await live.move(Operation.FREEZE)
        with pytest.raises(StateError, match="'web' froze") as caught:
            await waiting
        assert "ramet vm thaw web" in (caught.value.hint or "")
        fake.commands["guest-ping"] = lambda arguments: {}
        await live.move(Operation.THAW)
        await live.agent.ping()
        await live._agent.close()
