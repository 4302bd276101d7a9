"""Files to and from guests over HTTP: GET and PUT of /guestFile?token=…, each address good once.

    app = make_app(world)                            # ASGI; for paths that begin with /guestFile
    url_of(world, secret) -> "https://*:8443/guestFile?token=…"        # '*': the name that the client called

A file is read and written in pieces, never held whole. As another user than root it goes by a file of the guest's in
between, in a folder that only its root changes, and which that user's own rights have opened. An address, and a file
that is on its way, end with the session in which they were asked for; one that is read, with its client's connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import structlog

from ramet.errors import RametError
from ramet.vsphere.access.address import address_of
from ramet.vsphere.access.sessions import Sessions, UserSession
from ramet.vsphere.core.world import World
from ramet.vsphere.guest import scripts
from ramet.vsphere.machine.tickets import Tickets
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.vsphere.guest.login import Guest

log = structlog.stdlib.get_logger(__name__)

PATH = "/guestFile"
MAX_BYTES = 1 << 40
IDLE_S = 120.0
"""For which a client may say nothing in the middle of a file."""
UNSIZED_BYTES = 1 << 20
"""Of a file that has no size: those of /proc come into being as they are read."""
QUERY, MODIFY = "VirtualMachine.GuestOperations.Query", "VirtualMachine.GuestOperations.Modify"
_MAX_QUERY = 4096
_FOLDER = re.compile(r"/[\w./-]{1,200}/transfer-\w+")

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
    overwrite: bool = True


@dataclass
class Exchange:
    """One request and its answer."""

    receive: Receive
    send: Send
    started: bool = False

    async def body(self, piece: bytes, *, more: bool = True) -> None:
        if not self.started:
            self.started = True
            head = [(b"content-type", b"application/octet-stream")]
            await self.send({"type": "http.response.start", "status": 200, "headers": head})
        await self.send({"type": "http.response.body", "body": piece, "more_body": more})


def url_of(world: World, secret: str) -> str:
    """By the API's own rule the client puts the host's name in the place of the '*'."""
    return f"https://*:{address_of(world).port}{PATH}?token={secret}"


def make_app(world: World) -> App:
    async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        purpose = {"GET": "download", "PUT": "upload", "POST": "upload"}.get(str(scope["method"]))
        if purpose is None:
            await _answer(send, 405, "Files are read with GET and written with PUT.")
            return
        opened = _opened(world, purpose, _token(scope))
        if opened is None:
            await _answer(send, 404, "There is no such transfer: an address is good once, for ten minutes.")
            return
        transfer, session = opened
        world.part(Sessions).enter(session)  # it does not grow old meanwhile
        try:
            await _carry(world, session, transfer, Exchange(receive, send), purpose)
        finally:
            world.part(Sessions).leave(session)

    return app


def _opened(world: World, purpose: str, secret: str) -> tuple[Transfer, UserSession] | None:
    """What was asked for, if the session in which that was is open and its user may still do it."""
    ticket = world.part(Tickets).redeem(purpose, secret)
    session = world.part(Sessions).find(ticket.session.secret) if ticket is not None else None
    if ticket is None or session is None or session is not ticket.session:
        return None
    return (ticket.what, session) if session.may(QUERY if purpose == "download" else MODIFY) else None


async def _carry(world: World, session: UserSession, transfer: Transfer, exchange: Exchange, purpose: str) -> None:
    """A transfer that breaks off is the client's, or the guest's; it is no error of ours."""
    try:
        if purpose == "download":
            await _unless(_download(transfer, exchange), _over(world, session), _gone(exchange))
        else:
            await _unless(_upload(transfer, exchange), _over(world, session))
    except (RametError, OSError, vmodl.MethodFault) as exc:
        log.warning(
            "a file's transfer ended early", user=session.user_name, vm=transfer.guest.vm_id, error=_words(exc)
        )
        if not exchange.started:
            await _answer(exchange.send, 500, _words(exc))


async def _unless(work: Coroutine[Any, Any, None], *ends: Coroutine[Any, Any, None]) -> None:
    """What `work` raises; or, when one of `ends` comes first, what that raises, after the work was cancelled."""
    doing, *waiting = tasks = [asyncio.ensure_future(one) for one in (work, *ends)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await (doing if doing.done() else next(one for one in waiting if one.done()))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _over(world: World, session: UserSession) -> None:
    with world.updates.watch(lambda moid, shape, kind: False) as woken:
        while not session.is_over:
            woken.clear()
            await woken.wait()
    raise ConnectionAbortedError("The session has ended.")


async def _gone(exchange: Exchange) -> None:
    while (await exchange.receive())["type"] != "http.disconnect":
        pass
    raise ConnectionResetError("The client has gone.")


def _token(scope: Mapping[str, Any]) -> str:
    query = bytes(scope.get("query_string", b""))[:_MAX_QUERY].decode("latin-1")
    return parse_qs(query).get("token", [""])[0]


# -- from the guest ----------------------------------------------------------------------------------------------------


async def _download(transfer: Transfer, exchange: Exchange) -> None:
    async with _readable(transfer) as path, contextlib.aclosing(_pieces(transfer, path)) as pieces:
        async for piece in pieces:
            await exchange.body(piece)
    await exchange.body(b"", more=False)  # a body that is not ended is how a client learns that it is not whole


async def _pieces(transfer: Transfer, path: str) -> AsyncGenerator[bytes, None]:
    """No more than was said before, however the file grows."""
    left = _most(transfer)
    chunks = transfer.guest.host.read_file(transfer.guest.vm_id, path)
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return


def _most(transfer: Transfer) -> int:
    return min(transfer.size or UNSIZED_BYTES, MAX_BYTES)


@contextlib.asynccontextmanager
async def _readable(transfer: Transfer) -> AsyncIterator[str]:
    """Its path; for others than root that of a copy which they made."""
    guest = transfer.guest
    if guest.user == "root":
        await guest.run(scripts.READABLE, transfer.path, path=transfer.path)  # to open a pipe would block the agent
        yield transfer.path
        return
    async with _held(guest) as folder:
        await _give(guest, folder)
        held, most = f"{folder}/file", str(_most(transfer))
        await guest.run(scripts.COPY_SOME, transfer.path, held, most, path=transfer.path)
        yield held


@contextlib.asynccontextmanager
async def _held(guest: Guest) -> AsyncIterator[str]:
    """A folder of root's in the guest with an empty file in it, which nobody else reads yet; removed in the end."""
    folder = (await guest.run_as_root(scripts.HOLD)).decode(errors="replace").strip()
    if not _FOLDER.fullmatch(folder):
        raise vim.fault.GuestOperationsUnavailable(msg="The guest does not say where a file can lie meanwhile.")
    try:
        yield folder
    finally:
        with contextlib.suppress(RametError, OSError, vmodl.MethodFault):
            await asyncio.shield(guest.run_as_root(scripts.RELEASE, folder))


async def _give(guest: Guest, folder: str) -> None:
    """The file to its user. The folder stays root's: what is found there is that file, and no link."""
    await guest.run_as_root(scripts.GIVE, folder, guest.user)


# -- to the guest ------------------------------------------------------------------------------------------------------


async def _upload(transfer: Transfer, exchange: Exchange) -> None:
    guest = transfer.guest
    if guest.user == "root":
        overwrite, mode = "yes" if transfer.overwrite else "no", transfer.attributes[1]
        await guest.run(scripts.WRITABLE_NOW, transfer.path, overwrite, mode, path=transfer.path)
        await _write(transfer, transfer.path, exchange)
    else:
        async with _held(guest) as folder:
            held = f"{folder}/file"
            await _write(transfer, held, exchange)
            await _give(guest, folder)
            await guest.run(scripts.COPY, held, transfer.path, path=transfer.path)
    if any(transfer.attributes):
        await guest.run(scripts.ATTRIBUTES, transfer.path, *transfer.attributes, path=transfer.path)
    await _answer(exchange.send, 200, "")


async def _write(transfer: Transfer, path: str, exchange: Exchange) -> None:
    guest = transfer.guest
    await guest.host.write_file(guest.vm_id, path, _body(exchange.receive, transfer.size))


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


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    kind = (b"content-type", b"text/plain; charset=utf-8")
    head = [kind, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
