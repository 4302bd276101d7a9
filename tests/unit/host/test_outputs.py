"""What tasks print, kept and followed."""

from __future__ import annotations

import asyncio
import base64

import pytest

from ramet.errors import NotFoundError
from ramet.host.outputs import MOST_LOGS, OutputLog, Outputs
from ramet.model.execution import ExecEvent


def said(text: str) -> ExecEvent:
    return ExecEvent(kind="stdout", data_base64=base64.b64encode(text.encode()).decode())


async def test_who_comes_early_and_who_comes_late_sees_all() -> None:
    log = OutputLog()
    seen: list[ExecEvent] = []

    async def follow() -> None:
        seen.extend([event async for event in log.follow()])

    early = asyncio.create_task(follow())
    for text in ("one", "two", "three"):
        log.put(said(text))
        await asyncio.sleep(0)
    log.close()
    await asyncio.wait_for(early, 10)
    late = [event async for event in log.follow()]
    assert seen == late == [said("one"), said("two"), said("three")]


async def test_what_is_too_much_is_dropped_and_told() -> None:
    log = OutputLog(most_bytes=40)
    for number in range(10):
        log.put(said(f"event {number:06}"))
    log.close()
    lost, *rest = [event async for event in log.follow()]
    assert rest == [said("event 000008"), said("event 000009")]
    assert (lost.kind, lost.lost_bytes) == ("lost", 8 * 12)


async def test_old_logs_go() -> None:
    outputs = Outputs()
    assert outputs.open("0") is outputs.open("0")
    for number in range(MOST_LOGS + 5):
        outputs.open(str(number)).close()
    outputs.open("last")
    with pytest.raises(NotFoundError):
        outputs.find("0")
    assert outputs.find("last") is outputs.open("last")
