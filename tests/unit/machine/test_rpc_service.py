"""What a guest may do to its host by guest RPC: its log is bounded, for all VMs' events share one history."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from ramet.machine.rpc_service import GuestService


async def test_a_guest_that_logs_without_end_is_refused() -> None:
    told: list[str] = []
    book = SimpleNamespace(emit=lambda kind, message, vm: told.append(message))
    live = cast("Any", SimpleNamespace(name="web", vm=None, rooms=SimpleNamespace(book=book)))
    service = GuestService(live)
    answers = [await service.handle(b"log line") for _ in range(1000)]
    assert answers[0] == (True, b"")
    assert answers[-1] == (False, b"Too many log lines")
    assert told[0] == "web: line"
    assert len(told) < 300
