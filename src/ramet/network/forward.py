"""A port of the host's loopback that leads to a guest, and the piping between two sockets that it is made of."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Self

from ramet.errors import RametError

logger = logging.getLogger(__name__)

Connect = Callable[[], Awaitable[socket.socket]]

_CHUNK_BYTES = 65536
_EXHAUSTED_PAUSE_S = 0.1


async def pipe(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until both sides have said all they had to say, or one is reset.

    One side's end of file becomes the other's, and the other may go on speaking.
    Resource handling: takes both sockets over and closes them, cancelled or not.
    """
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(one, other))
                both.create_task(_copy(other, one))
        except* OSError as failures:
            logger.debug("a forwarded connection broke: %s", failures.exceptions[0])


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _CHUNK_BYTES):
        await loop.sock_sendall(target, data)
    target.shutdown(socket.SHUT_WR)


class Forwarder:
    """`async with Forwarder(connect, port) as forwarder`: accepts on loopback, and pipes each connection to a
    socket from `connect`. At most `max_connections` at a time; more wait in the kernel's queue.

    `port` 0 lets the kernel choose; `address` then tells. Raises OSError when the port is taken.
    """

    def __init__(self, connect: Connect, port: int = 0, host: str = "127.0.0.1", max_connections: int = 64) -> None:
        self._connect = connect
        self._where = (host, port)
        self._places = asyncio.Semaphore(max_connections)
        self._listener: socket.socket | None = None
        self._accepted: set[socket.socket] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        if self._listener is None:
            return self._where
        host, port = self._listener.getsockname()
        return str(host), int(port)

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(self._where, backlog=128)
        self._listener.setblocking(False)
        self._task = asyncio.create_task(self._serve(self._listener), name=f"forward {self.address}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for sock in (self._listener, *self._accepted):
            if sock is not None:
                sock.close()

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as connections:
            while True:
                await self._places.acquire()
                try:
                    near, _ = await loop.sock_accept(listener)
                except OSError as exc:
                    # Out of descriptors: accept would fail at once, again and again.
                    logger.warning("a connection could not be accepted: %s", exc)
                    self._places.release()
                    await asyncio.sleep(_EXHAUSTED_PAUSE_S)
                    continue
                self._accepted.add(near)
                connections.create_task(self._carry(near))

    async def _carry(self, near: socket.socket) -> None:
        try:
            with near:
                await pipe(near, await self._connect())
        except (OSError, RametError) as exc:
            logger.warning("a connection was not forwarded: %s", exc)
        finally:
            self._accepted.discard(near)
            self._places.release()
