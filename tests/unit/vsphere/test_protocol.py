"""One connection of the listener: a request has its answer before the next is begun."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.server import ServerState

from ramet.vsphere.server import Protocol, _config

FIRST = b"POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
SECOND = b"GET /second HTTP/1.1\r\nHost: x\r\nX-Second: yes\r\n\r\n"


class Wire(asyncio.Transport):
    """What the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closing():
            self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class App:
    """It answers in two pieces, each when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heads: list[dict[bytes, bytes]] = []
        self.begin, self.finish = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        self.asked.append(scope["path"])
        await self.begin.wait()
        self.heads.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"on", "more_body": True})
        await self.finish.wait()
        await send({"type": "http.response.body", "body": b"ce"})


class Connection:
    def __init__(self) -> None:
        self.app, self.wire, self.state = App(), Wire(), ServerState()
        config = _config(self.app)
        config.load()
        self.protocol = Protocol(config, self.state, {}, asyncio.get_running_loop())
        self.protocol.connection_made(self.wire)

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.app.begin.set()
        self.app.finish.set()
        self.protocol.connection_lost(None)
        if self.state.tasks:
            await asyncio.wait(self.state.tasks, timeout=10)


async def test_one_request_after_the_other_is_answered() -> None:
    one = Connection()
    one.app.begin.set()
    one.app.finish.set()
    for said in (FIRST, SECOND):
        one.protocol.data_received(said)
        await one.settled()
    assert one.app.asked == ["/first", "/second"]
    assert one.wire.written.count(b"HTTP/1.1 200") == 2
    assert not one.wire.is_closing()
    await one.end()


@pytest.mark.parametrize("together", [True, False])
async def test_who_asks_again_before_the_answer_is_refused(together: bool) -> None:
    one = Connection()
    for said in [FIRST + SECOND] if together else [FIRST, SECOND]:
        one.protocol.data_received(said)
        await one.settled()
    assert one.app.asked == ["/first"]
    assert one.wire.written.startswith(b"HTTP/1.1 400 ")
    assert one.wire.closed
    await one.end()
    await one.settled()
    assert one.app.asked == ["/first"]
    assert all(b"x-second" not in head for head in one.app.heads)
    assert one.wire.written.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("said", [SECOND, b"nonsense\r\n\r\n"])
async def test_nothing_is_written_into_an_answer_that_has_begun(said: bytes) -> None:
    one = Connection()
    one.protocol.data_received(FIRST)
    one.app.begin.set()
    await one.settled()
    assert one.wire.written.endswith(b"\r\n\r\non")
    one.protocol.data_received(said)
    await one.settled()
    assert one.wire.aborted
    assert one.wire.written.endswith(b"\r\n\r\non")
    assert one.app.asked == ["/first"]
    await one.end()


async def test_many_requests_at_once_are_not_kept() -> None:
    one = Connection()
    one.protocol.data_received(FIRST + SECOND * 200)
    assert not one.protocol.pipeline
    assert len(one.state.tasks) == 1
    await one.end()
