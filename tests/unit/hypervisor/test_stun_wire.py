"""The messages between daemon and helper: whole, in pieces, with many descriptors, and broken."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import PeerError
from ramet.hypervisor.stun_plan import PristineCheck, SnapshotStep, StunPlan
from ramet.hypervisor.stun_wire import MAX_FRAME_BYTES, FrameDecoder, Message, encode, receive, send
from tests.unit.hypervisor.stun_kit import Source

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)
messages = st.dictionaries(st.text(), values, max_size=4)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with Source(tmp_path) as source:
        yield source


def chunks(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(st.lists(messages, max_size=4), st.lists(st.integers(1, 9), max_size=30))
def test_messages_arrive_however_they_are_cut(sent: list[Message], sizes: list[int]) -> None:
    data = b"".join(bytes(piece) for message in sent for piece, _ in encode(message))
    decoder = FrameDecoder()
    received = [message for chunk in chunks(data, sizes) for message, _ in decoder.feed(chunk)]
    assert received == sent


@given(st.binary(max_size=200))
def test_nonsense_is_a_peers_fault(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        for message, fds in decoder.feed(data):
            assert isinstance(message, dict)
            assert fds == []
    except PeerError:
        pass


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!IH", MAX_FRAME_BYTES + 1, 0),
        struct.pack("!IH", 2, 5000),
        struct.pack("!IH", 2, 1) + b"{}",
        struct.pack("!IH", 2, 0) + b"[]",
        struct.pack("!IH", 1, 0) + b"{",
        struct.pack("!IH", 9000, 0) + b"[" * 9000,
    ],
)
def test_broken_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(PeerError):
        FrameDecoder().feed(frame)


@pytest.mark.parametrize("count", [0, 1, 249, 250, 251, 500, 501])
def test_descriptors_arrive_in_order(count: int) -> None:
    """Each is a file of its own, so that a mix-up shows."""
    ours, theirs = socket.socketpair()
    files = [os.memfd_create("f") for _ in range(3)]
    sent = [files[i % 3] for i in range(count)]
    decoder = FrameDecoder()
    received: list[int] = []
    with ours, theirs:
        send(ours, {"a": 1}, sent, timeout_s=5)
        send(ours, {"b": 2}, files, timeout_s=5)
        got: list[tuple[Message, list[int]]] = []
        while len(got) < 2:
            got += receive(theirs, decoder) or []
        received = [fd for _, fds in got for fd in fds]
        assert [message for message, _ in got] == [{"a": 1}, {"b": 2}]
        assert [len(fds) for _, fds in got] == [count, 3]
        assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(fd).st_ino for fd in sent + files]
        assert not any(os.get_inheritable(fd) for fd in received)
    for fd in files + received:
        os.close(fd)


def test_descriptors_of_a_message_that_never_ends_are_closed() -> None:
    fd = os.dup(0)
    decoder = FrameDecoder()
    assert decoder.feed(struct.pack("!IH", 100, 1), [fd]) == []
    decoder.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_the_end_of_the_stream_is_seen() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        assert receive(theirs, FrameDecoder()) == []
        ours.close()
        assert receive(theirs, FrameDecoder()) is None


def test_a_peer_that_does_not_read_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs, pytest.raises(TimeoutError):
        send(ours, {"a": "x" * (4 << 20)}, timeout_s=0.05)


def test_a_peer_that_is_gone_is_an_os_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(BrokenPipeError):
        send(ours, {"a": 1}, timeout_s=1)


def test_a_plan_comes_out_as_it_went_in(source: Source) -> None:
    plan = source.plan(
        snapshots=(SnapshotStep("a", "b"), SnapshotStep("c", "d")),
        pristine=(PristineCheck("/x"),),
        forks=(source.request("one", 4), source.request("two", 5)),
        hold=True,
        bound_ms=12.5,
        expect=("running", "paused"),
    )
    message, fds = plan.to_wire()
    assert StunPlan.from_wire(message, fds) == plan
    shifted = StunPlan.from_wire(message, [fd + 1000 for fd in fds])
    assert shifted.state_fd == plan.state_fd + 1000
    assert shifted.forks[1].fds == tuple(fd + 1000 for fd in plan.forks[1].fds)


def test_a_plan_that_is_none_is_refused(source: Source) -> None:
    message, fds = source.plan().to_wire()
    for key in message:
        with pytest.raises(PeerError):
            StunPlan.from_wire({k: v for k, v in message.items() if k != key}, fds)
    with pytest.raises(PeerError):
        StunPlan.from_wire(message, fds[:1])
