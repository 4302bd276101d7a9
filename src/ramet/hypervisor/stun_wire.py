"""Messages between the daemon and its stun helper: JSON objects with file descriptors, over a stream socket.

A frame is ``length (4 bytes) | descriptors (2 bytes) | JSON``. A plan with many forks is larger than a packet may be,
and has more descriptors than one message may carry (SCM_MAX_FD is 253), hence a stream with frames of its own.
Descriptors ride with a frame's first bytes and arrive in order, never later than the bytes that they were sent with.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ramet.errors import PeerError

MAX_FRAME_BYTES: Final = 8 << 20
MAX_FRAME_FDS: Final = 4096

_HEADER: Final = struct.Struct("!IH")
_FDS_PER_MESSAGE: Final = 250
_CHUNK_BYTES: Final = 65536

Message = dict[str, Any]


def encode(message: Message, fds: Sequence[int] = ()) -> Iterator[tuple[bytes, Sequence[int]]]:
    """The pieces to send, each with its descriptors; the pieces may be sent in parts once the descriptors are out."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME_BYTES or len(fds) > MAX_FRAME_FDS:
        raise PeerError("A message to the stun helper is too large.", bytes=len(body), descriptors=len(fds))
    frame = _HEADER.pack(len(body), len(fds)) + body
    batches = [fds[i : i + _FDS_PER_MESSAGE] for i in range(0, len(fds), _FDS_PER_MESSAGE)]
    for at, batch in enumerate(batches[:-1]):
        yield frame[at : at + 1], batch  # a batch needs a byte to ride on
    yield frame[max(0, len(batches) - 1) :], batches[-1] if batches else ()


class FrameDecoder:
    """Bytes and descriptors in, messages with their descriptors out. Sans-IO."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[tuple[Message, list[int]]]:
        """Messages that are complete now. Raises PeerError on nonsense.

        Resource handling: descriptors that are returned are the caller's; `close` closes the others.
        """
        self._buffer += data
        self._fds.extend(fds)
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> tuple[Message, list[int]] | None:
        if len(self._buffer) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._buffer)
        if length > MAX_FRAME_BYTES or count > MAX_FRAME_FDS:
            raise PeerError("A message of the stun helper has an impossible length.")
        if len(self._buffer) < _HEADER.size + length:
            return None
        if len(self._fds) < count:
            raise PeerError("A message of the stun helper came without its descriptors.")
        body = bytes(self._buffer[_HEADER.size : _HEADER.size + length])
        del self._buffer[: _HEADER.size + length]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise PeerError("A message of the stun helper is not JSON.") from exc
        if not isinstance(message, dict):
            raise PeerError("A message of the stun helper is not an object.")
        return message, [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close descriptors of messages that were never completed."""
        while self._fds:
            os.close(self._fds.popleft())


def receive(sock: socket.socket, decoder: FrameDecoder) -> list[tuple[Message, list[int]]] | None:
    """Read once without waiting: messages completed by it, None at the end of the stream."""
    fds = array.array("i")
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        data, ancillary, _, _ = sock.recvmsg(_CHUNK_BYTES, socket.CMSG_SPACE(4 * 253), flags)
    except (BlockingIOError, InterruptedError):
        return []
    except ConnectionError:
        return None
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    messages = decoder.feed(data, fds)
    return messages if data else None


def send_piece(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """One sendmsg that does not wait; the number of bytes that went. Raises BlockingIOError when none did."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def send(sock: socket.socket, message: Message, fds: Sequence[int] = (), *, timeout_s: float) -> None:
    """Send a whole message, waiting for room. Raises OSError: the peer is gone, or (TimeoutError) does not read."""
    deadline = time.monotonic() + timeout_s
    for data, batch in encode(message, fds):
        rest: memoryview = memoryview(data)
        while rest:
            try:
                sent = send_piece(sock, rest, batch)
            except BlockingIOError:
                _wait_for_room(sock, deadline)
                continue
            rest, batch = rest[sent:], ()


def _wait_for_room(sock: socket.socket, deadline: float) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("the peer does not read")
