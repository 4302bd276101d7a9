"""Answers that come bit by bit: whoever goes away, and whenever, what was followed is ended, and nothing is raised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from starlette.responses import StreamingResponse

from ramet.api import following
from ramet.api.follow_routes import _lines
from ramet.api.following import StoppingError, beating, settled
from ramet.errors import GuestError
from ramet.model.execution import ExecEvent

SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}  # as uvicorn says
TURNS = 20


class Command:
    """It says `started`, then what it is given; to end it takes some turns of the loop."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.fault = fault
        self.turns = 0

    async def events(self) -> AsyncGenerator[ExecEvent, None]:
        try:
            yield ExecEvent(kind="started", id="e1")
            while True:
                yield ExecEvent(kind="stdout", data_base64=await self.said.get())
        finally:
            for _ in range(TURNS):
                await asyncio.sleep(0)
                self.turns += 1
            if self.fault is not None:
                raise self.fault


async def kinds_of(answer: bytes) -> list[str]:
    return [json.loads(line)["kind"] for line in answer.splitlines()]


async def answered(command: Command, gone: asyncio.Event, closing: asyncio.Event | None = None) -> bytes:
    """What a client was sent who goes away when `gone` is set, by Starlette as the daemon has it."""
    sent, begun = b"", asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message.get("body", b"")
        begun.set()

    response = StreamingResponse(_lines(command.events(), closing or asyncio.Event()))
    await response(SCOPE, receive, send)
    return sent


async def some_turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_a_client_that_goes_away_ends_the_command_wholly_and_quietly() -> None:
    command, gone = Command(), asyncio.Event()
    answer = asyncio.create_task(answered(command, gone))
    await some_turns()
    gone.set()
    assert await kinds_of(await answer) == ["started"]
    assert command.turns == TURNS


@pytest.mark.parametrize("turns", range(8))
async def test_it_goes_away_at_any_moment(turns: int) -> None:
    command, gone = Command(), asyncio.Event()
    answer = asyncio.create_task(answered(command, gone))
    await some_turns()
    command.said.put_nowait("")
    for _ in range(turns):
        await asyncio.sleep(0)
    gone.set()
    assert set(await kinds_of(await answer)) <= {"started", "stdout"}
    for _ in range(3):
        await some_turns()
    assert command.turns == TURNS


@pytest.mark.parametrize("fault", [GuestError("The agent is gone."), BrokenPipeError()])
async def test_a_command_that_cannot_be_ended_is_no_bug_of_ours(fault: Exception) -> None:
    command, gone = Command(fault), asyncio.Event()
    answer = asyncio.create_task(answered(command, gone))
    await some_turns()
    gone.set()
    assert await kinds_of(await answer) == ["started"]
    assert command.turns == TURNS


async def test_when_the_daemon_stops_the_last_line_says_so() -> None:
    command, closing = Command(), asyncio.Event()
    answer = asyncio.create_task(answered(command, asyncio.Event(), closing))
    await some_turns()
    closing.set()
    sent = await answer
    assert await kinds_of(sent) == ["started", "error"]
    assert b"The daemon is stopping." in sent
    assert command.turns == TURNS


async def test_who_is_cancelled_twice_still_ends_it() -> None:
    """As by the server's own end, after a client's."""
    command = Command()

    async def follow() -> None:
        async for _ in _lines(command.events(), asyncio.Event()):
            pass

    task = asyncio.create_task(follow())
    await some_turns()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert command.turns == TURNS


async def test_a_quiet_stream_has_beats() -> None:
    command = Command()
    async with aclosing(beating(command.events(), asyncio.Event(), 0.0)) as coming:
        seen = [await anext(coming) for _ in range(4)]
    assert [event and event.kind for event in seen if event is not None] == ["started"]
    assert None in seen


async def test_what_has_come_is_told_before_the_end() -> None:
    command, closing = Command(), asyncio.Event()
    coming = beating(command.events(), closing, 60.0)
    first = await anext(coming)
    command.said.put_nowait("")
    closing.set()
    second = await anext(coming)
    assert [event and event.kind for event in (first, second)] == ["started", "stdout"]
    with pytest.raises(StoppingError):
        await anext(coming)
    assert command.turns == TURNS


async def test_an_end_that_does_not_come_is_not_waited_for_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "END_S", 0.01)
    stuck = asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        try:
            await stuck.wait()
        finally:
            ended.append("cancelled")

    await settled(work())
    await some_turns()
    assert ended == ["cancelled"]
