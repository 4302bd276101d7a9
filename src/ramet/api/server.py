"""The API on its sockets.

    async with serve(host, settings, on_death=stop.set):     # answers from here on, until the end of the block
        await stop.wait()

`on_death` is called when a server ends by itself, which is a bug of ours: the daemon then stops rather than live mute.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ramet.api import edge
from ramet.api.app import make_app
from ramet.api.contract import Host
from ramet.api.peer import PeerPolicy
from ramet.api.streams import StreamServer
from ramet.errors import PrivilegeError, UsageError
from ramet.host.settings import Settings

log = structlog.stdlib.get_logger(__name__)

SOCKET_PATH_BYTES = 107
"""sun_path holds 108 bytes, the last of which is zero."""
_BACKLOG = 128
_MOST_CONNECTIONS = 512
_DRAIN_S = 3


def listen(path: Path, gid: int | None) -> socket.socket:
    """A listening Unix socket for our user and `gid`; takes the place of a dead daemon's. The caller closes it."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise UsageError(
            f"The path of the socket {path} is longer than {SOCKET_PATH_BYTES} bytes.",
            hint="Choose a shorter state folder.",
        )
    with suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))  # nobody can connect before listen: the mode is right by then
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(0o660 if gid is not None else 0o600)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def peer_protocol(policy: PeerPolicy) -> type[H11Protocol]:
    """uvicorn's protocol, which asks who connects: strangers get one answer and no more."""

    class PeerProtocol(H11Protocol):
        refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            try:
                peer = policy.check(transport.get_extra_info("socket"))
            except PrivilegeError as error:
                self.refused = True
                transport.write(_refusal(error))
                transport.close()
            else:
                self.app_state = {**self.app_state, "ramet_uid": peer.uid}

        def data_received(self, data: bytes) -> None:
            if not self.refused:
                super().data_received(data)

    return PeerProtocol


def _refusal(error: PrivilegeError) -> bytes:
    body = bytes(edge.answer(error).body)
    head = f"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


class _Server(uvicorn.Server):
    """Signals belong to the daemon."""

    started_event: asyncio.Event

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_event.set()


@asynccontextmanager
async def serve(host: Host, settings: Settings, on_death: Callable[[], None]) -> AsyncIterator[None]:
    """Serve the API and the streams. At the end: no new connection, waits end, what is under way has 3 s."""
    policy = PeerPolicy.of_daemon(settings.group)
    async with _serve_http(host, settings, policy, on_death), _serve_streams(host, settings, policy, on_death):
        yield


@asynccontextmanager
async def _serve_http(
    host: Host, settings: Settings, policy: PeerPolicy, on_death: Callable[[], None]
) -> AsyncIterator[None]:
    closing = asyncio.Event()
    sock = listen(settings.api_socket, policy.gid)
    server = _Server(_config(make_app(host, closing), policy))
    server.started_event = asyncio.Event()
    runner = asyncio.create_task(server.serve(sockets=[sock]), name="api")
    try:
        async with _watched(runner, closing, on_death):
            started = asyncio.create_task(server.started_event.wait())
            await asyncio.wait({runner, started}, return_when=asyncio.FIRST_COMPLETED)
            await edge.drop(started)
            yield
            closing.set()
    finally:
        closing.set()
        server.should_exit = True
        await asyncio.wait({runner})
        sock.close()
        settings.api_socket.unlink(missing_ok=True)


def _config(app: object, policy: PeerPolicy) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=peer_protocol(policy),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_DRAIN_S,
    )


@asynccontextmanager
async def _serve_streams(
    host: Host, settings: Settings, policy: PeerPolicy, on_death: Callable[[], None]
) -> AsyncIterator[None]:
    closing = asyncio.Event()
    sock = listen(settings.streams_socket, policy.gid)
    runner = asyncio.create_task(StreamServer(host, policy).serve(sock), name="streams")
    try:
        async with _watched(runner, closing, on_death):
            yield
            closing.set()
    finally:
        closing.set()
        await edge.drop(runner)
        sock.close()
        settings.streams_socket.unlink(missing_ok=True)


@asynccontextmanager
async def _watched(
    runner: asyncio.Task[None], closing: asyncio.Event, on_death: Callable[[], None]
) -> AsyncIterator[None]:
    """Tell the daemon when a server ends although nobody asked it to."""

    def ended(task: asyncio.Task[None]) -> None:
        if not closing.is_set():
            error = None if task.cancelled() else task.exception()
            log.error("a server ended by itself", server=task.get_name(), error=repr(error))
            on_death()

    runner.add_done_callback(ended)
    try:
        yield
    finally:
        closing.set()
        runner.remove_done_callback(ended)
