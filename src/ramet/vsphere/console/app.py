"""A VM's display as a WebSocket: wss://HOST:PORT/ticket/TICKET carries RFB, in binary messages.

    app = make_app(world)                            # ASGI; for paths that begin with /ticket
    url_of("esx1", 8443, secret) -> "wss://esx1:8443/ticket/…"

The ticket is all that is asked for: it is good once, for 30 s. What goes wrong before the WebSocket is there is a plain
answer with a sentence. Who opened which console, and for how long, stands in the audit log.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from ramet.errors import CapacityError, RametError
from ramet.vsphere.console.consoles import PATH, Consoles, Grant
from ramet.vsphere.console.relay import Ending, Message, Receive, Send, relay
from ramet.vsphere.core.faults import words_of
from ramet.vsphere.core.world import World

__all__ = ["make_app", "url_of"]

log = structlog.stdlib.get_logger(__name__)

App = Callable[[Message, Receive, Send], Awaitable[None]]

BINARY = "binary"
CLOSE_S = 5.0
"""For a client to take the last message."""
_MOST_NAMED = 128
_POLICY = 1008
_NO_TICKET = "The ticket is not good: one is good once, for 30 seconds, and while the session lasts that asked for it."
_NO_PROTOCOL = "A console speaks the subprotocol 'binary', or none: ask for another ticket."


def url_of(host: str, port: int, secret: str) -> str:
    return f"wss://{f'[{host}]' if ':' in host else host}:{port}{PATH}/{secret}"


def make_app(world: World) -> App:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _visit(world, scope, receive, send)
        else:
            await _no_websocket(send)

    return app


async def _no_websocket(send: Send) -> None:
    body = b"A console is a WebSocket: open this address with noVNC.\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"upgrade", b"websocket"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 426, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _visit(world: World, scope: Message, receive: Receive, send: Send) -> None:
    """From the client's first word to the last. ConnectionError when it goes before there was a console."""
    await receive()  # 'websocket.connect'
    subprotocols = scope.get("subprotocols") or []
    consoles, peer = world.part(Consoles), (scope.get("client") or ("",))[0]
    # First of all: whatever comes of it, the address, which others may have seen by now, is good for nothing more.
    grant = consoles.redeem(scope["path"].removeprefix(f"{PATH}/")[:_MOST_NAMED])
    if grant is None:
        world.host.access.audit.note("console.open", via="vsphere", peer=peer, result="InvalidTicket")
        await _refuse(send, 403, _NO_TICKET)
        return
    if subprotocols and BINARY not in subprotocols:
        await _refuse(send, 400, _NO_PROTOCOL)
        return
    with contextlib.ExitStack() as stack:
        try:
            gone = stack.enter_context(consoles.place(grant))
            stream = await world.host.open_stream("vnc", grant.vm_id)
        except RametError as exc:
            _note(world, grant, peer, "console.open", result=type(exc).__name__.removesuffix("Error"))
            await _refuse(send, 503 if isinstance(exc, CapacityError) else 409, words_of(exc))
            return
        await _show(world, grant, peer, gone, stream, receive, send, BINARY if subprotocols else None)


async def _show(
    world: World, grant: Grant, peer: str, gone: asyncio.Event, stream: socket.socket, receive: Receive, send: Send,
    subprotocol: str | None,
) -> None:  # fmt: skip
    """Closes the stream."""
    _note(world, grant, peer, "console.open", result="ok")
    began = time.monotonic()
    ends = [(gone, Ending(_POLICY, "The user has no longer the right to it."))]
    live = world.host.floor.machines.get(grant.vm_id)
    if live is not None:  # a process forked from it may have the socket too, which then does not end with it
        ends.append((live.ended, Ending(1000, "The VM is off.")))
    try:
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
        except BaseException:
            stream.close()
            raise
        ending = await relay(stream, receive, send, ends)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await send({"type": "websocket.close", "code": ending.code, "reason": ending.reason})
    finally:
        _note(world, grant, peer, "console.close", seconds=round(time.monotonic() - began, 1))


def _note(world: World, grant: Grant, peer: str, action: str, **what: Any) -> None:
    vm = world.host.floor.inventory.get_vm(grant.vm_id)
    session = grant.session
    world.host.access.audit.note(
        action, user=session.user_name, via="vsphere", peer=peer, session=session.key, object=grant.moid,
        name=vm.name if vm is not None else None, **what,
    )  # fmt: skip


async def _refuse(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": f"{sentence}\n".encode()})
