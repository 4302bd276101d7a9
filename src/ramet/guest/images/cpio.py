"""Write an initramfs: the "newc" cpio format, every file owned by root, whoever builds it.

The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass
class Cpio:
    """Collects entries; `pack` gives the archive. The same entries give the same bytes. Parents come by themselves."""

    _entries: dict[str, tuple[int, bytes, int]] = field(default_factory=dict)

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._put(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._put(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device: the kernel opens /dev/console before anything is mounted."""
        self._put(path, stat.S_IFCHR | mode, b"", major << 16 | minor)

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._entries

    def _put(self, path: str, mode: int, content: bytes, device: int = 0) -> None:
        path = path.strip("/")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.directory(parent)
        self._entries[path] = (mode, content, device)

    def pack(self) -> bytes:
        parts: list[bytes] = []
        # In the order of insertion: a directory precedes what is in it.
        for inode, (path, (mode, content, device)) in enumerate(self._entries.items(), start=1):
            parts.append(_entry(inode, path, mode, content, device))
        parts.append(_entry(0, "TRAILER!!!", 0, b"", 0))
        return b"".join(parts)


def _entry(inode: int, path: str, mode: int, content: bytes, device: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, device >> 16, device & 0xFFFF, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
