"""Bytes between a WebSocket and a display's socket, both ways, until one of them ends.

    ending = await relay(stream, receive, send, [ended, gone])     # takes `stream` over, and closes it

Neither side is read faster than the other takes it: what is under way is some hundred KiB.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

PIECE_BYTES = 64 << 10
_NORMAL, _UNSUPPORTED = 1000, 1003

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ending:
    code: int
    """Of the WebSocket."""
    reason: str


CLIENT_WENT = Ending(_NORMAL, "The client has gone.")
DISPLAY_ENDED = Ending(_NORMAL, "The display has gone.")
_TEXT = Ending(_UNSUPPORTED, "A console speaks in binary messages.")


async def relay(
    stream: socket.socket, receive: Receive, send: Send, ends: Sequence[tuple[asyncio.Event, Ending]]
) -> Ending:
    """`ends`: what else ends it. The WebSocket is accepted already, and stays the caller's to close."""
    try:
        reader, writer = await asyncio.open_connection(sock=stream, limit=PIECE_BYTES)
    except BaseException:
        stream.close()
        raise
    ways = [
        asyncio.create_task(_to_client(reader, send), name="console: to the client"),
        asyncio.create_task(_to_display(receive, writer), name="console: to the display"),
        *(asyncio.create_task(_until(event, ending), name="console: end") for event, ending in ends),
    ]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        return next(way for way in ways if way in done).result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.transport.abort()  # a display that reads nothing would keep what waits for it


async def _to_client(reader: asyncio.StreamReader, send: Send) -> Ending:
    while True:
        try:
            piece = await reader.read(PIECE_BYTES)
        except OSError:
            return DISPLAY_ENDED
        if not piece:
            return DISPLAY_ENDED
        try:
            await send({"type": "websocket.send", "bytes": piece})
        except OSError:
            return CLIENT_WENT


async def _to_display(receive: Receive, writer: asyncio.StreamWriter) -> Ending:
    while True:
        message = await receive()
        if message["type"] != "websocket.receive":
            return CLIENT_WENT
        if message.get("bytes") is None:
            return _TEXT
        try:
            writer.write(message["bytes"])
            await writer.drain()
        except OSError:
            return DISPLAY_ENDED


async def _until(event: asyncio.Event, ending: Ending) -> Ending:
    await event.wait()
    return ending
