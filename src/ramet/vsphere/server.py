"""HTTP over TLS for those who come from outside: bounded in every direction, and ended without anyone left waiting.

    server = Server(app, sock, context, most=512)     # takes the listening socket over
    server.start()
    await server.close()                     # no new connection; what is under way has some seconds, then is cut

HTTP itself is uvicorn's, parsed by httptools. What a stranger could hold without end is bounded here: connections
(those whose handshake is not done count), a request's head, the time for a handshake, a head, a piece of a body, and
for an answer to be taken; WebSockets have bounds of their own (``websocket``). When all connections are in use, one
that nobody asks anything on makes room.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from contextlib import suppress
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ramet.vsphere.websocket import MOST_BYTES, PING_S, PONG_S, WebSocket

log = structlog.stdlib.get_logger(__name__)

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 200
HANDSHAKE_S = 10.0
HEAD_S = 20.0
"""From the first byte of a request, or a connection's beginning, to the end of its head."""
BODY_WINDOW_S = 30.0
BODY_WINDOW_BYTES = 4096
"""At least so much of a body comes in each window."""
REFUSED_S = 0.5
ANSWER_S = 60.0
"""For a client to take what is in the buffer."""
KEEP_ALIVE_S = 1200
"""Longer than clients keep a connection that they do not use: pyVmomi 900 s."""
DRAIN_S = 2.0
CUT_S = 2.0
WEBSOCKETS = b"/ticket/"
_BACKLOG = 256
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Protocol(HttpToolsProtocol):
    """One connection. One timer runs at a time: for a head, or for a body; another for an answer."""

    in_head = True
    head_bytes = 0
    """As they came, from the first byte of a request; what is behind the head may be among them."""
    header_bytes = 0
    """As they were understood."""
    window_bytes = 0
    idle_since: float | None = 0.0
    """On the loop's clock, while no request is under way."""
    timer: asyncio.TimerHandle | None = None
    answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._arm(HEAD_S, self._cut)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.timer, self.answer_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()  # uvicorn's own stays armed after an error
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.in_head and self.head_bytes == 0:
            self._arm(HEAD_S, self._cut)
        self.window_bytes += len(data)
        self.head_bytes += len(data) if self.in_head else 0
        super().data_received(data)
        if self.in_head and self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    # Called by the parser; what they raise ends the connection with 400.

    def on_message_begin(self) -> None:
        if self._is_asked:  # uvicorn would put this one in a queue without end, and read its head into the other's
            raise ValueError("one request at a time")
        super().on_message_begin()
        self.in_head, self.idle_since, self.header_bytes = True, None, 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_HEAD_BYTES:
            raise ValueError("too large")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self.header_bytes += len(name) + len(value)
        if self.header_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            raise ValueError("too large")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.in_head, self.head_bytes, self.window_bytes = False, 0, 0
        self._arm(BODY_WINDOW_S, self._look_at_body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.in_head, self.head_bytes = True, 0
        self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.idle_since = self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.answer_timer = self.loop.call_later(ANSWER_S, self._cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.answer_timer is not None:
            self.answer_timer.cancel()
            self.answer_timer = None

    @property
    def _is_asked(self) -> bool:
        """There is a request that has not had its whole answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        if self._is_asked and self.cycle.response_started:
            self._cut()  # it would stand in the middle of that answer
            return
        super().send_400_response(msg)
        self._arm(REFUSED_S, self._cut)  # TLS would wait for the other side's farewell

    # WebSockets: for consoles alone, on a connection where nothing else is under way. All others are plain requests.

    def _should_upgrade(self) -> bool:
        free = self.cycle is None or self.cycle.response_complete
        return free and self.url.startswith(WEBSOCKETS) and self.scope["method"] == "GET" and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """It is answered as what else it is."""

    def handle_websocket_upgrade(self) -> None:
        """Uvicorn's own leaves one that fails behind among the connections."""
        self.connections.discard(self)
        for timer in (self.timer, self.answer_timer):
            if timer is not None:
                timer.cancel()
        protocol = WebSocket(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        lines = [b"GET " + self.url + b" HTTP/1.1", *(name + b": " + value for name, value in self.headers)]
        protocol.begin(b"\r\n".join([*lines, b"", b""]))

    def _look_at_body(self) -> None:
        if self.window_bytes < BODY_WINDOW_BYTES and not self.flow.read_paused:
            self._cut()
            return
        self.window_bytes = 0
        self._arm(BODY_WINDOW_S, self._look_at_body)

    def _arm(self, seconds: float, then: Any) -> None:
        self._disarm()
        self.timer = self.loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Server:
    """One listening socket. `context` may be given another certificate at any time."""

    def __init__(self, app: Any, sock: socket.socket, context: ssl.SSLContext, most: int) -> None:
        self.context = context
        self._sock = sock
        self._most = most
        self._config = _config(app)
        self._state = ServerState()
        self._shaking: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Needs a socket that listens already and does not block."""
        self._config.load()
        self._accepting = asyncio.create_task(self._accept(), name="vsphere: accept")

    @property
    def connections(self) -> list[Protocol | WebSocket]:
        return [one for one in self._state.connections if isinstance(one, Protocol | WebSocket)]

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError as exc:
                if exc.errno in _SHORT_OF:
                    log.warning("a connection could not be taken", error=str(exc))
                    await asyncio.sleep(0.5)
                continue
            if not self._has_room():
                sock.close()
                continue
            task = asyncio.create_task(self._shake(sock), name="vsphere: handshake")
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    def _has_room(self) -> bool:
        """What nobody uses goes first."""
        if len(self._state.connections) + len(self._shaking) < self._most:
            return True
        requests = [one for one in self.connections if isinstance(one, Protocol)]
        idle = [one for one in requests if one.idle_since is not None and not one.transport.is_closing()]
        if not idle:
            return False
        min(idle, key=lambda one: one.idle_since or 0.0).transport.abort()
        return True

    async def _shake(self, sock: socket.socket) -> None:
        """Who is not done in time, or speaks no TLS, is gone."""
        loop = asyncio.get_running_loop()
        try:
            # asyncio does so for sockets of its own only; else an answer in two pieces takes 40 ms more
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                lambda: Protocol(self._config, self._state, {}, loop),
                sock,
                ssl=self.context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CUT_S,
            )
        except OSError as exc:
            sock.close()
            log.debug("a handshake failed", error=str(exc))
        except asyncio.CancelledError:
            sock.close()
            raise

    async def close(self) -> None:
        """Within some seconds, whatever clients do."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        self._sock.close()
        await self._end(self._shaking)
        for connection in self.connections:
            connection.shutdown()
        if tasks := set(self._state.tasks):
            await asyncio.wait(tasks, timeout=DRAIN_S)
        await self._end(set(self._state.tasks))
        for _ in range(20):  # answers that are on their way
            if not self.connections:
                return
            await asyncio.sleep(0.01)
        for connection in self.connections:
            connection.transport.abort()
        await asyncio.sleep(0)

    @staticmethod
    async def _end(tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_S)


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws=WebSocket,
        ws_max_size=MOST_BYTES,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PONG_S,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


def bind(address: str, port: int) -> socket.socket:
    """A listening TCP socket that does not block; the caller closes it. OSError passes."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with suppress(OSError):  # [::] is for IPv4 as well
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        sock.bind((address, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
