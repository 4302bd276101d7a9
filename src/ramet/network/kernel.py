"""The few system calls that Python 3.11 does not wrap: namespaces, bind mounts, taps.

Everything here is synchronous, raises OSError, and acts on the calling thread only (a network namespace
belongs to a thread, not to a process).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 2

TUNSETIFF = 0x400454CA
TUNSETOWNER = 0x400454CC
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFNAME_BYTES = 15
"""IFNAMSIZ is 16 with the terminating zero."""

VNET_HEADER_BYTES = 10
"""struct virtio_net_hdr without the buffer count; what QEMU sets itself before the guest negotiates."""

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x00000017


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare_network() -> None:
    """Put the calling thread into a fresh network namespace. Needs CAP_SYS_ADMIN."""
    _checked(_libc().unshare(CLONE_NEWNET), "unshare")


def enter_network(path: Path) -> None:
    """Put the calling thread into the network namespace at `path`. Needs CAP_SYS_ADMIN."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc().setns(fd, CLONE_NEWNET), f"setns {path}")
    finally:
        os.close(fd)


def bind_mount(source: Path, target: Path) -> None:
    result = _libc().mount(os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(MS_BIND), None)
    _checked(result, f"mount {target}")


def unmount(target: Path) -> None:
    """Lazily, so that a namespace somebody still uses does not keep its name."""
    _checked(_libc().umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def create_tap(name: str, owner_uid: int | None) -> int:
    """A non-persistent tap in the thread's namespace; it lives as long as its descriptor is open somewhere.

    Returns the close-on-exec descriptor, which the caller closes. A name in use raises EBUSY.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(fd, TUNSETIFF, request)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
        if owner_uid is not None:
            fcntl.ioctl(fd, TUNSETOWNER, owner_uid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def compute_checksums(interface: str) -> None:
    """Turn transmit checksum offload of `interface` off.

    What the namespace itself sends (DHCP, DNS) then carries whole checksums: DHCP clients that read raw
    packets and know nothing of offloading would drop it otherwise.
    """
    value = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock.fileno(), SIOCETHTOOL, request)


def effective_capabilities() -> int:
    """Bit mask of the calling thread's effective capabilities."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
