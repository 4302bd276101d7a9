"""What stops a clone's guest between its first instruction and the record of it is not lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.machine.live import LiveMachine
from ramet.model.machine import Machine, Vm, VmState
from tests.unit.machine.test_frozen_agent import Book


def starting(monkeypatch: pytest.MonkeyPatch) -> LiveMachine:
    vm = Vm(id="v1", machine=Machine(name="web"), state=VmState.STARTING, created_at=0)
    monkeypatch.setattr(LiveMachine, "process_record", lambda *_, **__: None)
    return LiveMachine(cast("Any", SimpleNamespace(book=Book())), vm)


async def test_a_guest_that_stopped_at_once_is_paused_when_it_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    live = starting(monkeypatch)
    await live._on_event("RESUME", {})
    await live._on_event("BLOCK_IO_ERROR", {"action": "stop", "nospace": True})
    await live.mark_running(cast("Any", None), launched=False)
    assert (live.vm.state, live.vm.pause_reason) == (VmState.PAUSED, "disk full")


async def test_one_that_went_on_meanwhile_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    live = starting(monkeypatch)
    await live._on_event("GUEST_PANICKED", {})
    await live._on_event("RESUME", {})
    await live.mark_running(cast("Any", None), launched=False)
    assert (live.vm.state, live.vm.pause_reason) == (VmState.RUNNING, None)
