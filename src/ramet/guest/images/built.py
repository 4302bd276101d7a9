"""What a builder hands over, and how it tells of its progress."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Progress = Callable[[float, str], None]
"""Called with the percentage done and what is being done now."""

HOST_PACKAGES = ("apt", "dpkg", "e2fsprogs", "grub-common", "grub-pc-bin", "lz4", "mmdebstrap", "uidmap", "zstd")
"""Debian packages that the builders call on the host.

The micro guest needs apt, dpkg and lz4 alone (zstd where modules are packed with it); uidmap is for users other than
root, who build the Debian guest in a user namespace.
"""


@dataclass(frozen=True)
class BuiltImage:
    """Files of a finished guest, all below the destination that the builder was given.

    Either `kernel`, `initrd` and `append`, for a direct kernel boot, or `disk`, a raw image that boots by itself.
    """

    recipe: str
    memory_mib: int
    """What the guest is comfortable with."""
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    disk: Path | None = None
    disk_size_bytes: int = 0
    """The size that the guest sees; the file is sparse."""
    sha256: dict[str, str] = field(default_factory=dict)
    """File name -> digest of its content."""


def sha256_of(path: Path) -> str:
    """Blocking; reads the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ignore_progress(_percent: float, _doing: str) -> None:
    """For callers that do not care."""
