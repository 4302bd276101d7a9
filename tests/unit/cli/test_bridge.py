"""Bytes between descriptors: nothing lost, half-closes kept, ends noticed."""

from __future__ import annotations

import os
import pty
import queue
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ramet.cli import bridge
from ramet.cli.forward import Forwarder

BIG = os.urandom(3 << 20)


@contextmanager
def background(work: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20)
        assert not thread.is_alive()


def drain(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def feed(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(data)


def send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_stdio_carries_both_ways_and_ends_with_the_stream() -> None:
    stream, guest = socket.socketpair()
    in_r, in_w = os.pipe()
    out_r, out_w = os.pipe()
    got: list[bytes] = []

    def peer() -> None:
        got.append(drain(guest))  # until our stdin has ended
        guest.sendall(b"the end")
        guest.close()

    with background(peer), background(lambda: feed(in_w, BIG[:100_000])):
        bridge.stdio(stream, in_r, out_w)
    assert got == [BIG[:100_000]]
    os.close(out_w)
    assert os.read(out_r, 100) == b"the end"
    os.close(out_r)
    os.close(in_r)
    stream.close()


def test_stdio_reads_a_regular_file(tmp_path: object) -> None:
    stream, guest = socket.socketpair()
    file = os.open(__file__, os.O_RDONLY)
    null = os.open(os.devnull, os.O_WRONLY)
    got: list[bytes] = []

    def peer() -> None:
        got.append(drain(guest))
        guest.close()

    with background(peer):
        bridge.stdio(stream, file, null)
    with open(__file__, "rb") as expected:
        assert got == [expected.read()]
    os.close(file)
    os.close(null)
    stream.close()


def test_stdio_ends_when_nobody_reads_our_output() -> None:
    stream, guest = socket.socketpair()
    out_r, out_w = os.pipe()
    in_r, in_w = os.pipe()
    os.close(out_r)
    guest.sendall(b"x" * 100)
    bridge.stdio(stream, in_r, out_w)
    for fd in (out_w, in_r, in_w):
        os.close(fd)
    stream.close()
    guest.close()


def test_the_escape_key_ends_it() -> None:
    stream, guest = socket.socketpair()
    in_r, in_w = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    os.write(in_w, b"abc\x1d")
    bridge.stdio(stream, in_r, null, bridge.escape_at(0x1D))
    stream.close()
    assert drain(guest) == b""
    guest.close()
    for fd in (in_r, in_w, null):
        os.close(fd)


def test_both_sides_writing_at_once_do_not_block_each_other() -> None:
    left, near = socket.socketpair()
    right, far = socket.socketpair()
    got: dict[str, bytes] = {}

    def end(name: str, sock: socket.socket) -> Callable[[], None]:
        def work() -> None:
            with background(lambda: send(sock, BIG)):
                got[name] = drain(sock)

        return work

    with background(end("near", near)), background(end("far", far)):
        bridge.sockets(left, right)
    assert got == {"near": BIG, "far": BIG}
    for sock in (left, near, right, far):
        sock.close()


def test_half_closed_connections_stay_open_the_other_way() -> None:
    left, near = socket.socketpair()
    right, far = socket.socketpair()
    with background(lambda: bridge.sockets(left, right)):
        near.shutdown(socket.SHUT_WR)
        assert drain(far) == b""
        far.sendall(b"late answer")
        far.close()
        assert drain(near) == b"late answer"
    for sock in (left, near, right):
        sock.close()


def test_a_terminal_is_raw_and_comes_back() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with bridge.raw_terminal(theirs):
        assert not termios.tcgetattr(theirs)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_raw_terminal_leaves_pipes_alone() -> None:
    read, write = os.pipe()
    with bridge.raw_terminal(read):
        pass
    os.close(read)
    os.close(write)


# -- forwarding


@contextmanager
def forwarding(dial: Callable[[], socket.socket], complain: Callable[[str], None] = print) -> Iterator[Forwarder]:
    forwarder = Forwarder("127.0.0.1", 0, dial, complain)
    with background(forwarder.serve):
        try:
            yield forwarder
        finally:
            forwarder.close()


def test_every_connection_gets_its_own_stream() -> None:
    guests: queue.Queue[socket.socket] = queue.Queue()

    def dial() -> socket.socket:
        ours, theirs = socket.socketpair()
        guests.put(theirs)
        return ours

    with forwarding(dial) as forwarder:
        clients = [socket.create_connection(forwarder.address, timeout=10) for _ in range(3)]
        for number, client in enumerate(clients):
            client.sendall(bytes([number]))
            client.shutdown(socket.SHUT_WR)
        for _ in clients:
            with guests.get(timeout=10) as guest:
                guest.settimeout(10)
                guest.sendall(drain(guest) * 2)
        for number, client in enumerate(clients):
            with client:
                assert drain(client) == bytes([number]) * 2


def test_a_guest_that_refuses_is_told_and_the_next_may_do_better() -> None:
    told: list[str] = []

    def dial() -> socket.socket:
        raise OSError("connection refused")

    with forwarding(dial, told.append) as forwarder:
        for _ in range(2):
            with socket.create_connection(forwarder.address, timeout=10) as client:
                assert drain(client) == b""
    assert told == ["connection refused"] * 2


def test_closing_ends_open_connections() -> None:
    ours, theirs = socket.socketpair()
    with forwarding(lambda: ours) as forwarder:
        client = socket.create_connection(forwarder.address, timeout=10)
        client.sendall(b"hello")
        theirs.settimeout(10)
        assert theirs.recv(5) == b"hello"
    assert drain(client) == b""
    client.close()
    theirs.close()
