"""Live streams, handed over as descriptors: consoles, displays, TCP connections into guests.

On `run/streams.sock` the client sends one line, ``{"kind": "tcp", "vm": "web", "port": 22}`` (kinds: tcp, console, vnc;
the port for tcp alone). The daemon answers one line: ``{"ok": true}``, with the connected socket beside it
(SCM_RIGHTS), or ``{"error": {…}}``. Then it is out of the way: no byte of the stream passes through it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket

import structlog
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from ramet.api.contract import Host, StreamKind
from ramet.api.peer import PeerPolicy
from ramet.errors import DeadlineError, InternalError, RametError, UsageError
from ramet.model.base import Model, explain

log = structlog.stdlib.get_logger(__name__)

_MOST_REQUESTS = 64
_LONGEST_LINE_BYTES = 4096
_ASK_S = 10.0
_OPEN_S = 30.0
_BACK_OFF_S = 0.5


class StreamRequest(Model):
    kind: StreamKind
    vm: str
    port: int | None = None


class StreamServer:
    """Accepts until cancelled, and ends with its requests."""

    def __init__(self, host: Host, policy: PeerPolicy) -> None:
        self._host = host
        self._policy = policy
        self._places = asyncio.Semaphore(_MOST_REQUESTS)

    async def serve(self, listener: socket.socket) -> None:
        """`listener` stays the caller's; it must not block."""
        async with asyncio.TaskGroup() as requests:
            while True:
                await self._places.acquire()
                conn = await self._accept(listener)
                requests.create_task(self._serve_one(conn), name="stream")

    async def _accept(self, listener: socket.socket) -> socket.socket:
        while True:
            try:
                conn, _ = await asyncio.get_running_loop().sock_accept(listener)
                return conn
            except OSError as exc:
                if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.error("no descriptor is left for a stream", error=str(exc))
                await asyncio.sleep(_BACK_OFF_S)

    async def _serve_one(self, conn: socket.socket) -> None:
        """Whatever goes wrong with one request ends that request alone."""
        try:
            with conn:
                await self._answer(conn)
        except OSError as exc:
            log.debug("a stream's client went away", error=str(exc))
        except Exception:
            log.exception("a stream's request failed by a bug of ours")
        finally:
            self._places.release()

    async def _answer(self, conn: socket.socket) -> None:
        try:
            self._policy.check(conn)
            stream = await self._open(await _read_request(conn))
        except RametError as exc:
            _send(conn, {"error": exc.as_dict()})
        except Exception:
            log.exception("a stream was not opened by a bug of ours")
            _send(conn, {"error": InternalError("Something went wrong inside Ramet.").as_dict()})
        else:
            with stream:
                stream.setblocking(True)  # the flag goes with the descriptor: clients expect an ordinary socket
                _send(conn, {"ok": True}, stream.fileno())

    async def _open(self, request: StreamRequest) -> socket.socket:
        if (request.port is not None) != (request.kind == "tcp"):
            raise UsageError("A port belongs to a stream of the kind tcp, and to no other.")
        if request.port is not None and not 0 < request.port < 65536:
            raise UsageError(f"{request.port} is not a port.")
        try:
            async with asyncio.timeout(_OPEN_S):
                return await self._host.open_stream(request.kind, request.vm, request.port)
        except TimeoutError as exc:
            raise DeadlineError(f"The {request.kind} of {request.vm!r} did not open within {_OPEN_S:.0f} s.") from exc


async def _read_request(conn: socket.socket) -> StreamRequest:
    line = b""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_ASK_S):
            while not line.endswith(b"\n"):
                chunk = await loop.sock_recv(conn, _LONGEST_LINE_BYTES)
                line += chunk
                if not chunk or len(line) > _LONGEST_LINE_BYTES:
                    raise UsageError(f"A request is one line of JSON, at most {_LONGEST_LINE_BYTES} bytes.")
    except TimeoutError as exc:
        raise DeadlineError("The request did not come.") from exc
    try:
        return StreamRequest.model_validate_json(line)
    except ValidationError as exc:
        raise UsageError(explain(exc)) from exc


def _send(conn: socket.socket, message: dict[str, object], fd: int | None = None) -> None:
    """One line into an empty socket's buffer: it fits, and does not block."""
    line = json.dumps(to_jsonable_python(message, fallback=str)).encode() + b"\n"
    socket.send_fds(conn, [line], [] if fd is None else [fd])
