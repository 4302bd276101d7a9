"""Files to and from guests over HTTP: GET and PUT of /guestFile?token=…, each address good once.

    app = make_app(world)                            # ASGI; for paths that begin with /guestFile
    url_of(world, secret) -> "https://*:8443/guestFile?token=…"        # '*': the name that the client called

A file is read and written in pieces, never held whole. As another user than root it goes by a file of the guest's in
between, which that user's own rights have opened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import structlog

from ramet.errors import RametError
from ramet.vsphere.core.world import World
from ramet.vsphere.guest import scripts
from ramet.vsphere.machine.tickets import Ticket, Tickets
from ramet.vsphere.types import vmodl

if TYPE_CHECKING:
    from ramet.vsphere.guest.login import Guest

log = structlog.stdlib.get_logger(__name__)

PATH = "/guestFile"
MAX_BYTES = 1 << 40
IDLE_S = 120.0
"""For which a client may say nothing in the middle of a file."""
_MAX_QUERY = 4096

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What an address was given out for."""

    guest: Guest
    path: str
    size: int
    """Bytes: as the guest said, or as the client will send."""
    attributes: tuple[str, str, str, str] = ("", "", "", "")


@dataclass
class Address:
    """Where clients reach this server; set by whoever opens it."""

    port: int = 443


def url_of(world: World, secret: str) -> str:
    """By the API's own rule the client puts the host's name in the place of the '*'."""
    address = world.parts.get(Address)
    return f"https://*:{address.port if address else 443}{PATH}?token={secret}"


def make_app(world: World) -> App:
    async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        purpose = {"GET": "download", "PUT": "upload", "POST": "upload"}.get(str(scope["method"]))
        if purpose is None:
            await _answer(send, 405, "Files are read with GET and written with PUT.")
            return
        ticket = world.part(Tickets).redeem(purpose, _token(scope))
        if ticket is None:
            await _answer(send, 404, "There is no such transfer: an address is good once, for ten minutes.")
            return
        carry = _download if purpose == "download" else _upload
        with _told(ticket):
            await carry(ticket.what, scope, receive, send)

    return app


def _token(scope: Mapping[str, Any]) -> str:
    query = bytes(scope.get("query_string", b""))[:_MAX_QUERY].decode("latin-1")
    return parse_qs(query).get("token", [""])[0]


@contextlib.contextmanager
def _told(ticket: Ticket) -> Any:
    """A transfer that breaks off is the client's, or the guest's; it is no error of ours."""
    try:
        yield
    except (RametError, OSError, vmodl.MethodFault) as exc:
        said = getattr(exc, "msg", None) or str(exc)
        log.warning("a file's transfer ended early", user=ticket.user_name, vm=ticket.what.guest.vm_id, error=said)


# -- from the guest ----------------------------------------------------------------------------------------------------


async def _download(transfer: Transfer, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    started = False
    try:
        async with _readable(transfer) as path:
            chunks = transfer.guest.host.read_file(transfer.guest.vm_id, path)
            async for chunk in chunks:
                if not started:
                    started = True
                    await _begin(send, 200, (b"content-type", b"application/octet-stream"))
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not started:
            await _begin(send, 200, (b"content-type", b"application/octet-stream"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (RametError, OSError, vmodl.MethodFault) as exc:
        if started:
            raise  # a body that is not ended is how the client learns it
        await _answer(send, 500, _words(exc))


@contextlib.asynccontextmanager
async def _readable(transfer: Transfer) -> AsyncIterator[str]:
    """Its path; for others than root that of a copy which they made."""
    guest = transfer.guest
    if guest.user == "root":
        yield transfer.path
        return
    async with _held(guest) as path:
        await guest.run(scripts.COPY, transfer.path, path, path=transfer.path)
        yield path


@contextlib.asynccontextmanager
async def _held(guest: Guest) -> AsyncIterator[str]:
    """A file of the user's own in the guest, that nobody else reads; removed in the end."""
    path = (await guest.run(scripts.HOLD)).decode(errors="replace").strip()
    try:
        yield path
    finally:
        with contextlib.suppress(RametError, OSError, vmodl.MethodFault):
            await asyncio.shield(guest.run(scripts.DELETE_FILE, path))


# -- to the guest ------------------------------------------------------------------------------------------------------


async def _upload(transfer: Transfer, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    guest = transfer.guest
    try:
        if guest.user == "root":
            await _write(transfer, transfer.path, receive)
        else:
            async with _held(guest) as path:
                await _write(transfer, path, receive)
                await guest.run(scripts.COPY, path, transfer.path, path=transfer.path)
        if any(transfer.attributes):
            await guest.run(scripts.ATTRIBUTES, transfer.path, *transfer.attributes, path=transfer.path)
    except (RametError, OSError, vmodl.MethodFault) as exc:
        await _answer(send, 500, _words(exc))
        return
    await _answer(send, 200, "")


async def _write(transfer: Transfer, path: str, receive: Receive) -> None:
    guest = transfer.guest
    await guest.host.write_file(guest.vm_id, path, _body(receive, transfer.size))


async def _body(receive: Receive, size: int) -> AsyncIterator[bytes]:
    """The request's; neither more nor less than was said before."""
    left = min(size, MAX_BYTES)
    while True:
        async with asyncio.timeout(IDLE_S):
            message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("The client has gone.")
        chunk = bytes(message.get("body", b""))
        left -= len(chunk)
        if left < 0:
            raise ConnectionAbortedError("The file is larger than the client had said.")
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            break
    if left > 0:
        raise ConnectionAbortedError("The file is smaller than the client had said.")


def _words(exc: Exception) -> str:
    return str(getattr(exc, "msg", None) or exc)


async def _begin(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    length = (b"content-length", str(len(body)).encode())
    await _begin(send, status, (b"content-type", b"text/plain; charset=utf-8"), length)
    await send({"type": "http.response.body", "body": body, "more_body": False})
