"""SOAP over HTTP: POST /sdk, and the documents about the service beside it. Raw ASGI.

    app = make_app(world)

    POST /sdk                          a call; faults are answered with HTTP 500, as SOAP says
    GET  /sdk/vimServiceVersions.xml   the versions that are spoken
    GET  /sdk/vimService.wsdl, vim.wsdl

A body is bounded, plain or gzipped, and smaller before a login. The session is found by its cookie, which clients
replay with all of its attributes. A call that only waits is cancelled when its client goes; any other runs to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.calls import Call, Session
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.world import World
from ramet.vsphere.types import version_for, vim, vmodl
from ramet.vsphere.wire import envelope
from ramet.vsphere.wire.soap_request import SoapRequest, parse_request
from ramet.vsphere.wire.versions import versions_xml
from ramet.vsphere.wire.wsdl import service_wsdl, vim_wsdl

__all__ = ["make_app"]

log = structlog.stdlib.get_logger(__name__)

MAX_BODY_BYTES = 4 << 20
MAX_ANONYMOUS_BYTES = 256 << 10
"""Before a login there is nothing long to say."""
_COOKIE = re.compile(r'vmware_soap_session\s*=\s*"?([^";,\s]+)')
_CALLS = ("/sdk", "/sdk/", "/sdk/vimService", "/sdk/webService")
_XML = "text/xml; charset=utf-8"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    session: Session | None = None
    """The one that was opened: its secret becomes a cookie."""


def make_app(world: World) -> App:
    endpoint = _Endpoint(world)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        answer = await endpoint.answer(scope, receive)
        if answer is not None:
            await _send(scope, send, answer)

    return app


async def _send(scope: Message, send: Send, answer: _Answer) -> None:
    headers = [
        (b"content-type", _XML.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        (b"cache-control", b"no-cache"),
    ]
    if answer.session is not None:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f'vmware_soap_session="{answer.session.secret}"; Path=/; HttpOnly{secure}'
        headers.append((b"set-cookie", cookie.encode("latin-1")))
    if answer.status == 405:
        headers.append((b"allow", b"GET, HEAD, POST"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})


class _Endpoint:
    def __init__(self, world: World) -> None:
        self._world = world
        self._versions = versions_xml()
        self._wsdl: asyncio.Future[bytes] | None = None

    async def answer(self, scope: Message, receive: Receive) -> _Answer | None:
        """None when there is nobody to answer any more."""
        if scope["method"] == "POST":
            return await self._post(scope, receive)
        if scope["method"] in ("GET", "HEAD"):
            return await self._get(scope)
        return _Answer(405, b"")

    async def _get(self, scope: Message) -> _Answer:
        path, query = scope["path"], scope.get("query_string", b"").lower()
        if path == "/sdk/vimServiceVersions.xml":
            return _Answer(200, self._versions)
        if path == "/sdk/vim.wsdl":
            return _Answer(200, await self._description())
        if path == "/sdk/vimService.wsdl" or (path in _CALLS and query == b"wsdl"):
            return _Answer(200, service_wsdl(f"{scope.get('scheme', 'https')}://{_host(scope)}/sdk"))
        return _Answer(405 if path in _CALLS else 404, b"")

    async def _description(self) -> bytes:
        """Made once, in a thread: it loads the whole schema."""
        if self._wsdl is None:
            self._wsdl = asyncio.ensure_future(asyncio.to_thread(vim_wsdl))
        return await asyncio.shield(self._wsdl)

    async def _post(self, scope: Message, receive: Receive) -> _Answer | None:
        if scope["path"] not in _CALLS:
            return _Answer(404, b"")
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        session = self._session(headers)
        version = version_for(headers.get(b"soapaction"))
        try:
            body = await _read(receive, headers, MAX_BODY_BYTES if session else MAX_ANONYMOUS_BYTES)
            asked = parse_request(body)
        except _GoneError:
            return None
        except vmodl.MethodFault as exc:
            return _Answer(500, envelope.fault(exc, version))
        if session is None and asked.cookie:
            session = self._world.part(Sessions).find(asked.cookie)
        peer, host = (scope.get("client") or ("",))[0], headers.get(b"host", "")
        call = Call(session, version, peer, headers.get(b"user-agent", ""), host)
        return await self._call(call, asked, receive)

    def _session(self, headers: dict[bytes, str]) -> Session | None:
        sessions = self._world.part(Sessions)
        secrets = _COOKIE.findall(headers.get(b"cookie", ""))
        if b"vmware-api-session-id" in headers:
            secrets.append(headers[b"vmware-api-session-id"].strip().strip('"'))
        return next((found for found in map(sessions.find, secrets) if found is not None), None)

    async def _call(self, call: Call, asked: SoapRequest, receive: Receive) -> _Answer | None:
        work = partial(invoke, self._world, call, asked.moid, asked.name, asked.arguments)
        try:
            result = await (_unless_gone(work, receive) if self._waits(call, asked) else work())
            if envelope.is_long(result):
                body = await envelope.response_of_many(asked.info, result, call.version)
            else:
                body = envelope.response(asked.info, result, call.version)
        except _GoneError:
            return None
        except vmodl.MethodFault as exc:
            _name_as_asked(exc, asked)
            return _Answer(500, envelope.fault(exc, call.version))
        except Exception:
            log.exception("a result could not be written: a bug of ours", object=asked.moid, method=asked.name)
            return _Answer(500, envelope.fault(_internal(), call.version))
        return _Answer(200, body, call.reply.session)

    def _waits(self, call: Call, asked: SoapRequest) -> bool:
        mo = self._world.get(asked.moid, call)
        operation = mo.operations.get(asked.name) if mo is not None else None
        return operation is not None and operation.waits


def _name_as_asked(fault: Any, asked: SoapRequest) -> None:
    """The object is of the type that the client knows it by: what it is here tells whether it is here."""
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound) and fault.obj._moId == asked.moid:
        fault.obj = asked.this
    elif isinstance(fault, vim.fault.NotAuthenticated) and getattr(fault.object, "_moId", None) == asked.moid:
        fault.object = asked.this


class _GoneError(Exception):
    """The client has closed its connection."""


async def _unless_gone(work: Callable[[], Awaitable[Any]], receive: Receive) -> Any:
    """The result of what waits; it is cancelled when its client goes first."""
    working = asyncio.ensure_future(work())
    going = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _GoneError
        return working.result()
    finally:
        for task in (working, going):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.wait({working, going})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(receive: Receive, headers: dict[bytes, str], most: int) -> bytes:
    """The whole body, unpacked. InvalidRequest when it is larger than `most`: the rest is then not read."""
    packed = headers.get(b"content-encoding", "").strip().lower()
    if packed not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise vmodl.fault.InvalidRequest(msg=f"A body in the encoding {packed[:20]!r} is not understood: send gzip.")
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        piece = message.get("body", b"")
        size += len(piece)
        if size > most:
            raise _too_large(most)
        pieces.append(piece)
        if not message.get("more_body"):
            break
    body = b"".join(pieces)
    return body if packed in ("", "identity") else _unpack(body, most)


def _unpack(body: bytes, most: int) -> bytes:
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by what stands there
    try:
        plain = unpacking.decompress(body, most + 1)
    except zlib.error as exc:
        raise vmodl.fault.InvalidRequest(msg="The body is not what its content encoding says.") from exc
    if len(plain) > most:
        raise _too_large(most)
    return plain


def _too_large(most: int) -> Exception:
    made: Exception = vmodl.fault.InvalidRequest(msg=f"The body is larger than {most >> 10} KiB.")
    return made


def _host(scope: Message) -> str:
    """As the client calls us; nothing but letters of a host's name and port gets into the document."""
    named = next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"host"), "")
    return named if re.fullmatch(r"[\w.:\[\]-]{1,255}", named, re.ASCII) else "localhost"


def _internal() -> Any:
    return vmodl.fault.SystemError(
        reason="Internal error.", msg="Something went wrong inside the server; its log has the details."
    )
