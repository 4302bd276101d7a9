"""Forwarding a port: what goes in at one end comes out at the other, whole, and ends when either does."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from ramet.model.host import Network
from ramet.network.forward import Forwarder, pipe
from tests.unit.network.network_kit import Lab, needs_privilege


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


async def receive_all(sock: socket.socket) -> bytes:
    loop, parts = asyncio.get_running_loop(), []
    while part := await loop.sock_recv(sock, 65536):
        parts.append(part)
    return b"".join(parts)


async def test_pipe_carries_both_ways_and_half_closes() -> None:
    loop = asyncio.get_running_loop()
    with pair() as (client, near), pair() as (far, server):
        piping = asyncio.create_task(pipe(near, far))
        request, answer = b"q" * 1_000_000, b"a" * 1_000_000
        sending = asyncio.create_task(loop.sock_sendall(client, request))
        sending.add_done_callback(lambda _: client.shutdown(socket.SHUT_WR))
        assert await receive_all(server) == request
        answering = asyncio.create_task(loop.sock_sendall(server, answer))
        answering.add_done_callback(lambda _: server.close())
        assert await receive_all(client) == answer
        async with asyncio.timeout(5):
            await asyncio.gather(piping, sending, answering)
        assert near.fileno() == far.fileno() == -1


async def test_a_cancelled_pipe_closes_both_sockets() -> None:
    with pair() as (client, near), pair() as (far, server):
        piping = asyncio.create_task(pipe(near, far))
        await asyncio.get_running_loop().sock_sendall(client, b"x")
        assert await asyncio.get_running_loop().sock_recv(server, 10) == b"x"
        piping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await piping
        assert near.fileno() == far.fileno() == -1


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def connect(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


async def say(address: tuple[str, int], text: bytes) -> bytes:
    """What comes back, until the end of file; nothing when the connection is reset."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(address, timeout=5) as sock:
        sock.setblocking(False)
        try:
            await loop.sock_sendall(sock, text)
            sock.shutdown(socket.SHUT_WR)
            return await receive_all(sock)
        except (ConnectionResetError, BrokenPipeError):
            return b""


async def test_many_connections_share_few_places() -> None:
    async with echo_server() as port, Forwarder(functools.partial(connect, port), max_connections=2) as forwarder:
        texts = [f"connection {number}".encode() for number in range(8)]
        async with asyncio.timeout(10):
            assert await asyncio.gather(*(say(forwarder.address, text) for text in texts)) == texts


async def test_a_guest_that_refuses_ends_the_connection_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with Forwarder(functools.partial(connect, port)) as forwarder:
        for _ in range(3):
            async with asyncio.timeout(5):
                assert await say(forwarder.address, b"anybody?") == b""


async def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with Forwarder(functools.partial(connect, 1), port=taken.getsockname()[1]):
            pass


async def test_leaving_ends_open_connections() -> None:
    async with echo_server() as port:
        async with Forwarder(functools.partial(connect, port)) as forwarder:
            reader, writer = await asyncio.open_connection(*forwarder.address)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        assert await reader.read() == b""
        writer.close()


@needs_privilege
async def test_a_guest_is_reached_through_its_port_group(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        guest = await lab.guest("a", "10.99.0.11/24")
        listener = await guest.thread.run(socket.create_server, ("10.99.0.11", 80))
        server = await asyncio.start_server(_echo, sock=listener)
        reach = functools.partial(lab.networks.connect_tcp, "10.99.0.11", 80, 5.0)
        async with server, Forwarder(reach) as forwarder:
            assert await say(forwarder.address, b"x" * 300_000) == b"x" * 300_000
