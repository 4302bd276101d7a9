"""The descriptors that a QEMU is born with. QEMU is handed these instead of paths it could not, and need not, open."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.errors import UsageError

MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path has 108 bytes, one of them the final zero."""

_FIRST_FORKED = 3
_LISTEN_BACKLOG = 8


class SocketKind(Enum):
    STREAM = socket.SOCK_STREAM
    SEQPACKET = socket.SOCK_SEQPACKET


class DescriptorTable:
    """Every descriptor of one birth, and the numbers under which the newborn will see them.

    A launched QEMU inherits the real numbers; a forked one gets them by SCM_RIGHTS as 3, 4, 5… in the order in which
    they were added (0, 1 and 2 travel apart). The table owns what it was given: `close` it, or use it as a context
    manager, as soon as QEMU has its own copies, because a duplicate here of a disk's descriptor would hold its lock,
    and one of a listening socket would keep connections waiting on a dead QEMU.
    """

    def __init__(self, *, forked: bool) -> None:
        self.forked = forked
        self._fds: list[int] = []

    @property
    def fds(self) -> tuple[int, ...]:
        """In the order of their numbers for a fork; what to pass on for a launch."""
        return tuple(self._fds)

    def add(self, fd: int) -> int:
        """Take ownership of `fd`; returns the number that QEMU will know it by."""
        self._fds.append(fd)
        return _FIRST_FORKED + len(self._fds) - 1 if self.forked else fd

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open a file afresh (locks belong to the open file) and add it. Raises OSError."""
        return self.add(os.open(path, flags | os.O_CLOEXEC, mode))

    def listen(self, path: Path, kind: SocketKind = SocketKind.STREAM) -> int:
        """Bind a listening Unix socket at `path`, mode 0600, in place of whatever a former process left there.

        Raises UsageError when the path is too long for a socket, OSError as it comes.
        """
        check_socket_path(path)
        with suppress(FileNotFoundError):
            path.unlink()
        with socket.socket(socket.AF_UNIX, kind.value) as listener:
            # Nobody can connect before listen(), so the mode is right by the time it matters.
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(_LISTEN_BACKLOG)
            return self.add(listener.detach())

    def ram_file(self, size_bytes: int) -> int:
        """A sparse file in memory that stands for guest RAM; nothing names it, so nothing has to be removed.

        It is on tmpfs, as QEMU 8.1 asks of shared RAM that postcopy is to fill, and open to every user (0777), so
        that an unprivileged QEMU can open it by /proc/self/fd.
        """
        fd = os.memfd_create("guest-ram")
        number = self.add(fd)
        os.ftruncate(fd, size_bytes)
        return number

    def blob(self, name: str, content: bytes) -> int:
        """A readable file in memory, for a file that QEMU's own user may not open."""
        fd = os.memfd_create(name)
        number = self.add(fd)
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
        return number

    def close(self) -> None:
        """Close every descriptor; a second call does nothing."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_socket_path(path: Path) -> None:
    """Raises UsageError when `path` does not fit into a socket address."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise UsageError(
            f"{path} is too long for a socket: {len(os.fsencode(path))} bytes, and Linux takes "
            f"{MAX_SOCKET_PATH_BYTES}.",
            hint="Choose a shorter state directory with --state.",
        )
