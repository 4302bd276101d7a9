"""The little that is needed of an ELF file: its dynamic loader and its build id."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import UnsupportedError

_PT_INTERP = 3
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ElfFile:
    """What an ELF program says about itself."""

    interpreter: str | None
    """Its dynamic loader; None for a static program, into which nothing can be preloaded."""
    build_id: str | None


def read_elf(path: Path) -> ElfFile:
    """Read a 64-bit little-endian ELF program. Raises UnsupportedError for any other file, OSError as it comes."""
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            raise UnsupportedError(
                f"{path} is not a 64-bit program.", hint="Name the QEMU binary itself, not a script."
            )
        offset, entry_size, count = _program_headers(header)
        file.seek(offset)
        table = file.read(min(entry_size * count, _MAX_HEADER_BYTES))
        interpreter = build_id = None
        for kind, start, size in _segments(table, entry_size):
            if kind not in (_PT_INTERP, _PT_NOTE) or size > _MAX_HEADER_BYTES:
                continue
            file.seek(start)
            content = file.read(size)
            if kind == _PT_INTERP:
                interpreter = content.split(b"\0")[0].decode(errors="replace")
            else:
                build_id = build_id or _build_id(content)
    return ElfFile(interpreter, build_id)


def file_sha256(path: Path) -> str:
    """For programs that were built without a build id."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _program_headers(header: bytes) -> tuple[int, int, int]:
    (offset,) = struct.unpack_from("<Q", header, 32)
    entry_size, count = struct.unpack_from("<HH", header, 54)
    return offset, max(entry_size, 56), count


def _segments(table: bytes, entry_size: int) -> list[tuple[int, int, int]]:
    found = []
    for at in range(0, len(table) - 55, entry_size):
        kind, _flags, offset, _vaddr, _paddr, size = struct.unpack_from("<IIQQQQ", table, at)
        found.append((kind, offset, size))
    return found


def _build_id(notes: bytes) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, content_size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        content_at = name_at + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[content_at : content_at + content_size].hex()
        at = content_at + (content_size + 3 & ~3)
    return None
