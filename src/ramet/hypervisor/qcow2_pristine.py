"""Was anything ever written to a qcow2 layer? Asked in the middle of a stun, so it reads two small pieces of a file.

A cluster of guest data needs an entry in the L1 table, and so do a discard and zeroes. QEMU writes that entry through
when it allocates the table below, and `stop` has flushed everything by then, so the file tells the truth.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from ramet.errors import DamagedError

_HEADER: Final = struct.Struct(">4sI QII Q II Q Q II Q")  # QEMU's docs/interop/qcow2.txt
_MAX_L1_BYTES: Final = 32 << 20


def is_pristine(fd: int) -> bool:
    """True when no entry of the L1 table is set, and no snapshot is kept inside. Raises DamagedError, OSError."""
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        raise DamagedError("A layer is too short to be a qcow2 file.")
    magic, version, _, _, _, _, _, l1_entries, l1_offset, _, _, snapshots, _ = _HEADER.unpack(header)
    l1_bytes = l1_entries * 8
    if magic != b"QFI\xfb" or version not in (2, 3) or l1_bytes > _MAX_L1_BYTES or l1_offset >> 62:
        raise DamagedError("A layer is not a usable qcow2 file.")
    table = os.pread(fd, l1_bytes, l1_offset)
    # A table that the file is too short for reads as zeroes: QEMU leaves a hole at the end of a fresh image.
    return snapshots == 0 and not any(table)
