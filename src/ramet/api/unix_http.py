"""HTTP over a Unix socket, for httpx: its own transport, with connections that are closed also when they fail.

httpcore (1.0.9) leaves the socket of a connect that is refused to the garbage collector, and a client that waits for
its daemon to come back is refused many times. So its connections are made here.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx


class UnixTransport(httpx.HTTPTransport):
    """Connections to `path`, kept alive as httpx does by default. To be closed by the client that has it."""

    def __init__(self, path: str) -> None:
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)
        super().__init__(uds=path, limits=limits)
        self._pool = httpcore.ConnectionPool(
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            uds=path,
            network_backend=_Backend(),
        )


class _Backend(httpcore.NetworkBackend):
    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _errors(httpcore.ConnectTimeout, httpcore.ConnectError):
                sock.settimeout(timeout)
                sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return _Stream(sock)


class _Stream(httpcore.NetworkStream):
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors(httpcore.ReadTimeout, httpcore.ReadError):
            self._sock.settimeout(timeout)
            return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors(httpcore.WriteTimeout, httpcore.WriteError):
            view = memoryview(buffer)
            while view:
                self._sock.settimeout(timeout)
                view = view[self._sock.send(view) :]

    def close(self) -> None:
        self._sock.close()

    def get_extra_info(self, info: str) -> Any:
        """`is_readable` of a connection that nobody uses: the other side has closed it."""
        if info == "is_readable":
            return self._is_readable()
        return self._sock if info == "socket" else None

    def _is_readable(self) -> bool:
        if self._sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))


@contextmanager
def _errors(timeout: type[Exception], other: type[Exception]) -> Iterator[None]:
    """The kernel's, in httpcore's words."""
    try:
        yield
    except TimeoutError as exc:
        raise timeout(str(exc)) from exc
    except OSError as exc:
        raise other(str(exc)) from exc
