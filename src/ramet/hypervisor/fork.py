"""Asks the library inside a VM's process to fork it. Blocking, and light to import: the stun helper uses it.

The wire is described in ``native/vmfork.h``: one SOCK_SEQPACKET packet is one message. `encode_*` and `decode_reply`
know the bytes and no socket; `ForkClient` knows the socket and no bytes.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.errors import DeadlineError, ForkError
from ramet.hypervisor.native import (
    ZYGOTE,
    NativePaths,
    create_ram,
    environment,
    install_native,
    library,
    library_problem,
    listen_control,
)

__all__ = [
    "ZYGOTE",
    "ForkClient",
    "ForkReply",
    "ForkRequest",
    "LibraryInfo",
    "NativePaths",
    "create_ram",
    "environment",
    "install_native",
    "library",
    "library_problem",
    "listen_control",
]

MAGIC = 0x4B464D56
VERSION = 1
QUERY, FORK, MERGE = 1, 2, 3
REFUSED, IS, FORKED, MERGED, LEAPT = 0, 1, 2, 3, 4
MAX_PACKET_BYTES = 128 << 10
MAX_ARGS, MAX_ENV, MAX_FDS = 1024, 256, 128
MAX_NAME_BYTES = 15

_REQUEST = struct.Struct("=IHHIIIIII")
_REPLY = struct.Struct("=IHHiI6Q")
_MAX_REASON_BYTES = 512
_MERGING, _ZYGOTES = 1, 2


@dataclass(frozen=True)
class ForkRequest:
    """A program to run over a fork of the VM's RAM.

    `argv[0]` is the absolute path of a dynamically linked program. `fds` become 0, 1, 2, 3… in the child, in order, and
    all else is closed; the first three are its stdin, stdout and stderr. `env` is `environment(...)` with the numbers
    that the descriptors get there, and whatever the program wants. Of `name`, the process's, the kernel keeps 15 bytes.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    fds: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class ForkReply:
    """The child. It is a sibling of the VM that was forked. Whoever asked closes `pidfd`."""

    pid: int
    pidfd: int
    fork_ms: float


@dataclass(frozen=True)
class LibraryInfo:
    """What the library says of its process. `generation` is 0 for a launched program, one more in a fork of it."""

    version: int
    pid: int
    ram_address: int
    ram_bytes: int
    generation: int
    forks: int
    merging: bool
    zygotes: bool = False
    """A fork of it can be a zygote; one of a library from before would run its program instead."""


@dataclass(frozen=True)
class Reply:
    """One answer on the wire. `error` is an errno, 0 for success; `reason` says it in words."""

    kind: int
    error: int
    values: tuple[int, ...]
    reason: str


def encode_query() -> bytes:
    return _REQUEST.pack(MAGIC, VERSION, QUERY, 0, 0, 0, 0, 0, 0)


def encode_merge(on: bool) -> bytes:
    return _REQUEST.pack(MAGIC, VERSION, MERGE, 0, int(on), 0, 0, 0, 0)


def encode_fork(request: ForkRequest) -> bytes:
    """The packet for `request`; its descriptors travel beside it. Raises ForkError when it cannot be said."""
    name = os.fsencode(request.name)[:MAX_NAME_BYTES].decode("utf-8", "ignore").encode()
    argv = [os.fsencode(argument) for argument in request.argv]
    env = [os.fsencode(f"{key}={value}") for key, value in request.env.items()]
    _check(request, name, argv, env)
    body = b"".join(string + b"\0" for string in (name, *argv, *env))
    if _REQUEST.size + len(body) > MAX_PACKET_BYTES:
        raise ForkError(f"Arguments and environment of {len(body)} bytes do not fit into a fork request.")
    head = _REQUEST.pack(MAGIC, VERSION, FORK, len(body), 0, len(argv), len(env), len(request.fds), 0)
    return head + body


def _check(request: ForkRequest, name: bytes, argv: list[bytes], env: list[bytes]) -> None:
    if not name or any(b"\0" in string for string in (name, *argv, *env)):
        raise ForkError("A fork request has an empty name, or a NUL byte in a string.")
    if not argv or not argv[0].startswith(b"/"):
        raise ForkError("A fork request needs the absolute path of a program.")
    if not 3 <= len(request.fds) <= MAX_FDS:
        raise ForkError(f"A fork request takes 3 to {MAX_FDS} descriptors, not {len(request.fds)}.")
    if len(argv) > MAX_ARGS or len(env) > MAX_ENV:
        raise ForkError(f"A fork request takes up to {MAX_ARGS} arguments and {MAX_ENV} environment strings.")


def decode_reply(packet: bytes) -> Reply:
    """The inverse of what the library sends. Raises ForkError for anything else."""
    if len(packet) < _REPLY.size:
        raise ForkError(f"The fork library answered with {len(packet)} bytes that are no reply.")
    magic, version, kind, error, length, *values = _REPLY.unpack_from(packet)
    if magic != MAGIC or version != VERSION or length != len(packet) - _REPLY.size:
        raise ForkError("The fork library answered in another protocol than this program speaks.")
    return Reply(kind, error, tuple(values), packet[_REPLY.size :].decode("utf-8", "replace"))


class ForkClient:
    """One connection to the library in a VM's process; any number of requests, one at a time. Not for several threads.

    After an error other than ForkError the connection is of no use any more. Use it as a context manager.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Resource handling: takes `connection` (connected, with a timeout), and closes it."""
        self._socket = connection

    @classmethod
    def connect(cls, path: Path | str, timeout_s: float) -> Self:
        """Connects; every single wait on the library is bounded by `timeout_s`. Raises OSError when nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            # A blocking connect waits in the listener's queue, up to the send timeout; a non-blocking one, which is
            # what a Python timeout makes of it, fails at once when the queue is full.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_s))
            connection.connect(os.fspath(path))
            connection.settimeout(timeout_s)
        except BlockingIOError as exc:
            connection.close()
            raise DeadlineError("The fork library does not take connections.") from exc
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fork(self, request: ForkRequest) -> ForkReply:
        """Forks, and waits until the child has left for its program. Raises ForkError with the library's reason."""
        reply = self.start_fork(request)
        try:
            self.finish_fork()
        except BaseException:
            os.close(reply.pidfd)
            raise
        return reply

    def start_fork(self, request: ForkRequest) -> ForkReply:
        """Forks, and returns as soon as the VM may run again. `finish_fork` must be the next call.

        On success the child exists: its memory is the VM's at this moment. The request's descriptors stay the caller's.
        """
        self._send(encode_fork(request), request.fds)
        reply, fds = self._receive(FORKED)
        if len(fds) != 1:
            _close_all(fds)
            raise ForkError("The fork library sent no descriptor of the child.")
        return ForkReply(reply.values[0], fds[0], reply.values[1] / 1e6)

    def finish_fork(self) -> float:
        """Waits until the child of `start_fork` has left for its program; how many ms after the fork that was.

        Raises ForkError when it never will: the child is then dead or dying.
        """
        reply, fds = self._receive(LEAPT)
        _close_all(fds)
        return reply.values[0] / 1e6

    def query(self) -> LibraryInfo:
        self._send(encode_query())
        reply, fds = self._receive(IS)
        _close_all(fds)
        address, size, generation, forks, flags, pid = reply.values
        merging, zygotes = bool(flags & _MERGING), bool(flags & _ZYGOTES)
        return LibraryInfo(VERSION, pid, address, size, generation, forks, merging, zygotes)

    def merge(self, on: bool) -> None:
        """Gives the VM's RAM to the kernel's page merging, or takes it back (which needs memory, and time)."""
        self._send(encode_merge(on))
        _, fds = self._receive(MERGED)
        _close_all(fds)

    def _send(self, packet: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], rights)
        except TimeoutError as exc:
            raise DeadlineError("The fork library does not take requests.") from exc
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise ForkError("The VM's process closed the fork connection.") from exc

    def _receive(self, kind: int) -> tuple[Reply, list[int]]:
        fds = array.array("i")
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(
                _REPLY.size + _MAX_REASON_BYTES, socket.CMSG_SPACE(4 * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError as exc:
            raise DeadlineError("The fork library did not answer in time.") from exc
        except ConnectionResetError as exc:
            raise ForkError("The VM's process closed the fork connection.") from exc
        for level, what, data in ancillary:
            if level == socket.SOL_SOCKET and what == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        try:
            return _accept(packet, kind), list(fds)
        except ForkError:
            _close_all(list(fds))
            raise


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), max(1, int(seconds % 1 * 1e6)))


def _accept(packet: bytes, kind: int) -> Reply:
    if not packet:
        raise ForkError("The VM's process closed the fork connection.")
    reply = decode_reply(packet)
    if reply.error:
        raise ForkError(f"The VM could not be forked: {reply.reason}.", errno=reply.error)
    if reply.kind != kind:
        raise ForkError(f"The fork library gave answer {reply.kind} where {kind} was due.")
    return reply


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
