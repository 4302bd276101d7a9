"""Who may speak to the daemon: root, the daemon's own user, and members of its group, by the socket's credentials."""

from __future__ import annotations

import grp
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any, Protocol

from ramet.errors import PrivilegeError

_SO_PEERGROUPS = 59  # of the kernel's asm-generic/socket.h; Python has no name for it
_MOST_GROUPS = 256


class _Socket(Protocol):
    def getsockopt(self, *args: Any) -> Any: ...


@dataclass(frozen=True)
class Peer:
    pid: int
    uid: int
    gid: int


@dataclass(frozen=True)
class PeerPolicy:
    """Whom to let in. `gid`: the group whose members may, or None."""

    uids: frozenset[int]
    gid: int | None = None

    @classmethod
    def of_daemon(cls, group: str) -> PeerPolicy:
        """Root, our own user, and the group where it exists and we may give it the socket."""
        return cls(frozenset({0, os.geteuid()}), find_group(group))

    def check(self, sock: _Socket) -> Peer:
        """Who is at the other end, as it was when it connected. PrivilegeError when it may not speak to us."""
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        peer = Peer(pid, uid, gid)
        if uid in self.uids or (self.gid is not None and self.gid in (gid, *_groups(sock))):
            return peer
        group = grp.getgrgid(self.gid).gr_name if self.gid is not None else None
        raise PrivilegeError(
            f"The user {uid} may not use this daemon.",
            hint=f"Become a member of the group {group!r}, or use sudo." if group else "Start a daemon of your own.",
        )


def find_group(name: str) -> int | None:
    """The group's number, when it exists and we may give files to it."""
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        return None
    return gid if os.geteuid() == 0 or gid in os.getgroups() else None


def _groups(sock: _Socket) -> tuple[int, ...]:
    """The peer's supplementary groups; none where the kernel does not tell."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"{len(data) // 4}I", data)
