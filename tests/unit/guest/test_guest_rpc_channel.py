"""The channel against a socket that plays QEMU and the guest behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.guest.rpc_channel import RpcChannel

OPENING = b"\x18\n?\n"


class Port:
    """QEMU's listening chardev socket, and what the guest writes and reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.sock: socket.socket | None = None

    async def accept(self) -> None:
        self.sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)

    async def say(self, data: bytes) -> None:
        assert self.sock is not None
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self, size: int) -> bytes:
        assert self.sock is not None
        got = b""
        async with asyncio.timeout(5):
            while len(got) < size:
                got += await asyncio.get_running_loop().sock_recv(self.sock, size - len(got))
        return got

    async def readable(self) -> None:
        """Something has been sent here and is not read yet."""
        arrived = asyncio.Event()
        assert self.sock is not None
        asyncio.get_running_loop().add_reader(self.sock, arrived.set)
        await asyncio.wait_for(arrived.wait(), 5)
        asyncio.get_running_loop().remove_reader(self.sock)

    def hears_nothing(self) -> bool:
        assert self.sock is not None
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self.listener.close()
        if self.sock is not None:
            self.sock.close()


class Guest:
    """Counts what was carried out; 'wait' blocks until told."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.called = asyncio.Event()
        self.go = asyncio.Event()

    async def handle(self, text: bytes) -> tuple[bool, bytes]:
        self.seen.append(text)
        self.called.set()
        if text == b"wait":
            await self.go.wait()
        if text == b"broken":
            raise RuntimeError("a bug")
        return True, text.upper()


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    port = Port(tmp_path / "rpc")
    yield port
    port.close()


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
async def channel(port: Port, guest: Guest) -> AsyncIterator[RpcChannel]:
    channel = await RpcChannel.open(port.path, guest.handle, timeout_s=5)
    await port.accept()
    assert await port.hear(len(OPENING)) == OPENING
    yield channel
    await channel.close()


async def test_asks_and_answers(port: Port, channel: RpcChannel) -> None:
    await port.say(b"1 p abc\n")
    assert await port.hear(10) == b"1 1 p ABC\n"


async def test_one_that_waits_does_not_hold_up_another(port: Port, channel: RpcChannel, guest: Guest) -> None:
    await port.say(b"1 p wait\n2 p b\n")
    assert await port.hear(8) == b"2 1 p B\n"
    guest.go.set()
    assert await port.hear(11) == b"1 1 p WAIT\n"


async def test_a_bug_in_the_handler_is_an_answer(port: Port, channel: RpcChannel) -> None:
    await port.say(b"1 p broken\n")
    assert await port.hear(21) == b"1 0 p Internal error\n"


async def test_a_request_in_a_stun_is_pending_and_answered_after_it(
    port: Port, channel: RpcChannel, guest: Guest
) -> None:
    await port.say(b"1 p wait\n")
    await asyncio.wait_for(guest.called.wait(), 5)
    await channel.quiesce()
    guest.go.set()
    await port.say(b"2 p b\n3 p par")
    channel.drain()
    assert channel.pending() == b"1 p wait\n2 p b\n3 p par"
    await asyncio.sleep(0.01)
    assert port.hears_nothing()
    assert guest.seen == [b"wait"]
    channel.resume()
    await port.say(b"t\n")
    got = await port.hear(len(b"1 1 p WAIT\n2 1 p B\n3 1 p PART\n"))
    assert sorted(got.splitlines()) == [b"1 1 p WAIT", b"2 1 p B", b"3 1 p PART"]


async def test_an_answer_the_vm_has_not_read_is_pending_too(port: Port, channel: RpcChannel) -> None:
    await port.say(b"1 p a\n")
    await port.readable()
    await channel.quiesce(timeout_s=0.02)
    assert channel.pending() == b"1 p a\n"
    channel.resume()
    assert await port.hear(8) == b"1 1 p A\n"
    await channel.quiesce(timeout_s=5)
    assert channel.pending() == b""


async def test_a_clone_answers_by_itself(port: Port, guest: Guest) -> None:
    async def over(text: bytes) -> tuple[bool, bytes]:
        return True, b"over"

    channel = await RpcChannel.open(
        port.path, guest.handle, timeout_s=5, pending=b"1 p instantclone.freeze\n2 p re", inherited=over
    )
    await port.accept()
    assert await port.hear(15) == OPENING + b"1 1 p over\n"
    await port.say(b"st\n")
    assert await port.hear(11) == b"2 1 p REST\n"
    assert guest.seen == [b"rest"]
    await channel.close()


async def test_a_held_channel_answers_its_inheritance_only_when_the_vm_is_somebodys(port: Port, guest: Guest) -> None:
    """What is right to say is known only then: nothing is even asked before."""
    asked: list[bytes] = []

    async def who(text: bytes) -> tuple[bool, bytes]:
        asked.append(text)
        return True, b"me"

    pending = b"1 p info-get guestinfo.me\n"
    channel = await RpcChannel.open(port.path, guest.handle, timeout_s=5, pending=pending, inherited=who, held=True)
    await port.accept()
    assert await port.hear(len(OPENING)) == OPENING
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked == []
    assert channel.pending() == pending
    channel.resume()
    assert await port.hear(9) == b"1 1 p me\n"
    assert asked == [b"info-get guestinfo.me"]
    await channel.close()


async def test_a_flood_is_answered_or_refused_and_ends(port: Port, channel: RpcChannel, guest: Guest) -> None:
    flood = b"".join(b"%d p x\n" % i for i in range(400))
    await port.say(flood)
    got = b""
    while got.count(b"\n") < 400:
        got += await port.hear(1)
    assert {line.split()[0] for line in got.splitlines()} <= {b"%d" % i for i in range(400)}


@pytest.mark.parametrize("said", [b"x\n", b"\n", b"x", b"1 p log x\n", b"\x18"])
async def test_a_guest_that_never_ends_does_not_keep_others_from_their_turn(
    port: Port, guest: Guest, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A socket that always has something to read never makes its reader wait."""
    reads = 0

    class Endless(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            nonlocal reads
            reads += 1
            return (said * size)[:size] if reads < 500 else b""

    monkeypatch.setattr(socket, "socket", Endless)
    channel = await RpcChannel.open(port.path, guest.handle, timeout_s=5)
    try:
        for _ in range(20):
            await asyncio.sleep(0)
        assert 0 < reads < 30
    finally:
        await channel.close()


async def test_nothing_is_read_in_a_stun_and_nothing_is_taken_twice(
    port: Port, channel: RpcChannel, guest: Guest
) -> None:
    """QEMU would go on with what its guest has queued, and change the memory of one that stands still."""
    await channel.quiesce()
    await port.say(b"1 p a\n2 p b\n3 p")
    for _ in range(10):
        await asyncio.sleep(0)
    channel.drain()
    channel.drain()
    assert channel.pending() == b"1 p a\n2 p b\n3 p"
    assert channel._sock.recv(100, socket.MSG_PEEK) == b"1 p a\n2 p b\n3 p"
    channel.resume()
    await port.say(b" c\n")
    assert sorted((await port.hear(24)).splitlines()) == [b"1 1 p A", b"2 1 p B", b"3 1 p C"]
    assert sorted(guest.seen) == [b"a", b"b", b"c"]


async def test_who_said_too_much_is_heard_again(port: Port, channel: RpcChannel, guest: Guest) -> None:
    channel._tokens = -20.0  # after a flood, which would take seconds here
    await port.say(b"x\n" * 10)
    await port.say(b"1 p abc\n")
    assert await port.hear(10) == b"1 1 p ABC\n"


async def test_the_end_of_qemu_ends_the_channel(port: Port, channel: RpcChannel) -> None:
    port.close()
    async with asyncio.timeout(5):
        await channel.wait_closed()


async def test_closing_cancels_what_waits(port: Port, channel: RpcChannel, guest: Guest) -> None:
    await port.say(b"1 p wait\n")
    await asyncio.wait_for(guest.called.wait(), 5)
    await channel.close()
    await channel.close()
    assert port.sock is not None
    assert await asyncio.get_running_loop().sock_recv(port.sock, 100) == b""


async def test_nobody_listening_is_an_oserror(tmp_path: Path, guest: Guest) -> None:
    with pytest.raises(OSError, match="No such file"):
        await RpcChannel.open(tmp_path / "none", guest.handle, timeout_s=1)
