"""One HTTP exchange of raw ASGI, for the parts of the surface that answer with a whole body.

    make = asgi(respond, world)                # respond: async (Request) -> Response
    Request: method, path, query, headers, cookies, body, peer
    Response(status, body, kind, headers)
    await unless_gone(request, waiting)        # for what only waits: cancelled when the client has gone

A body is read to the end before anything is done, and no further than MAX_BODY_BYTES, or MAX_ANONYMOUS_BYTES when the
request's head names no open session: 413 beyond. What `respond` raises is a bug of ours: a plain 500 that tells nothing
of the inside, and a line in the log.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import structlog

from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.world import World

__all__ = ["MAX_ANONYMOUS_BYTES", "MAX_BODY_BYTES", "App", "Request", "Response", "asgi", "unless_gone"]

log = structlog.stdlib.get_logger(__name__)

MAX_BODY_BYTES = 4 << 20
MAX_ANONYMOUS_BYTES = 256 << 10
"""Before a login there is nothing long to say."""
COOKIE = "vmware_soap_session"
SESSION_HEADER = "vmware-api-session-id"

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Decoded; the query is not in it."""
    query_string: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """By their names in lower case; the last one of a name counts. Passwords stand here: no log shows them."""
    body: bytes = field(default=b"", repr=False)
    peer: str = ""
    receive: Receive | None = field(default=None, repr=False)

    @cached_property
    def query(self) -> list[tuple[str, str]]:
        return _pairs(self.query_string)

    @cached_property
    def form(self) -> list[tuple[str, str]]:
        """The fields of a form in the body, in their order."""
        return _pairs(self.body.decode("utf-8", "replace"))

    def asked(self, name: str) -> str | None:
        """The first value of that name in the query."""
        return next((value for key, value in self.query if key == name), None)

    @property
    def host(self) -> str:
        """As the client calls this server."""
        return self.headers.get("host", "")

    @property
    def session_secret(self) -> str | None:
        """What the header says, or else the cookie: clients replay a whole Set-Cookie, quoted or not."""
        found = self.headers.get(SESSION_HEADER)
        if found:
            return found.strip().strip('"')
        return self.cookie(COOKIE)

    def cookie(self, name: str) -> str | None:
        for part in self.headers.get("cookie", "").replace(",", ";").split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                return value.strip().strip('"') or None
        return None

    @property
    def basic(self) -> tuple[str, str] | None:
        """The name and the password of HTTP Basic; None when there are none."""
        scheme, _, encoded = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, colon, password = base64.b64decode(encoded.strip()).decode("utf-8", "replace").partition(":")
        except (binascii.Error, ValueError):
            return None
        return (name, password) if colon else None


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        return []


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    kind: str = ""
    """Its content type; empty for no body."""
    headers: tuple[tuple[str, str], ...] = ()

    def head(self) -> list[tuple[bytes, bytes]]:
        kind = [("content-type", self.kind)] if self.kind else []
        length = [] if self.status == 204 else [("content-length", str(len(self.body)))]
        return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in (*kind, *length, *self.headers)]


def asgi(respond: Callable[[Request], Awaitable[Response]], world: World) -> App:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        request = await _read(world, scope, receive)
        answer = Response(413) if request is None else await _answer(respond, request)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.head()})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    return app


async def _answer(respond: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    try:
        return await respond(request)
    except Exception:
        log.exception("a request failed by a bug of ours", method=request.method, path=request.path)
        return Response(500, b"Something went wrong inside the server; its log has the details.\n", "text/plain")


async def _read(world: World, scope: Message, receive: Receive) -> Request | None:
    """None when the body is too large: the rest of it is not read."""
    request = _head(scope, receive)
    most = MAX_ANONYMOUS_BYTES
    pieces, size = [], 0
    while True:
        message = await receive()
        piece = message.get("body", b"")
        size += len(piece)
        if size > most and _is_known(world, request):
            most = MAX_BODY_BYTES
        if size > most:
            return None
        pieces.append(piece)
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            break
    return replace(request, body=b"".join(pieces))


def _head(scope: Message, receive: Receive) -> Request:
    return Request(
        method=scope["method"],
        path=scope["path"],
        query_string=scope.get("query_string", b"").decode("latin-1"),
        headers={key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]},
        peer=(scope.get("client") or ("",))[0],
        receive=receive,
    )


def _is_known(world: World, request: Request) -> bool:
    sessions = world.part(Sessions)
    secrets = (request.session_secret, request.cookie(SESSION_HEADER))
    return any(sessions.find(secret) is not None for secret in secrets)


async def unless_gone(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """What `waiting` returns or raises; cancelled, and CancelledError, when the client closes its connection first."""
    work = asyncio.ensure_future(waiting)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        return await work
    finally:
        for one in (work, gone):
            one.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    if request.receive is None:
        await asyncio.Event().wait()
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass
