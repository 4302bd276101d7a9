"""Write a small CD image: ECMA-119 with Joliet names, files in one directory. The same files give the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping

SECTOR = 2048
_SYSTEM_SECTORS = 16
# Sector numbers; each of these structures fits into one sector.
_PRIMARY, _JOLIET, _END = 16, 17, 18
_TABLES = {_PRIMARY: (19, 20), _JOLIET: (21, 22)}
_ROOTS = {_PRIMARY: 23, _JOLIET: 24}
_FIRST_FILE = 25
_NO_DATE = b"0" * 16 + b"\0"
_MAX_FILES = 16


def _both16(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)


def _both32(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)


def _record(name: bytes, sector: int, size: int, flags: int) -> bytes:
    """A directory record (ECMA-119 9.1), dated 1970-01-01."""
    length = 33 + len(name) + (len(name) + 1) % 2
    date = bytes((70, 1, 1, 0, 0, 0, 0))
    head = bytes((length, 0)) + _both32(sector) + _both32(size) + date + bytes((flags, 0, 0)) + _both16(1)
    return (head + bytes((len(name),)) + name).ljust(length, b"\0")


def _directory(which: int, entries: list[tuple[bytes, int, int]]) -> bytes:
    own = _ROOTS[which]
    records = [_record(b"\0", own, SECTOR, 2), _record(b"\1", own, SECTOR, 2)]
    records += [_record(name, sector, size, 0) for name, sector, size in sorted(entries)]
    return b"".join(records)


def _descriptor(which: int, label: str, sectors: int) -> bytes:
    """A volume descriptor (ECMA-119 8.4, 8.5); Joliet's is told by its escape sequence."""
    joliet = which == _JOLIET

    def text(value: str, width: int) -> bytes:
        return value.ljust(width // 2).encode("utf-16-be") if joliet else value.encode("ascii").ljust(width)

    def blank(width: int) -> bytes:
        return (b"\0 " * width)[:width] if joliet else b" " * width

    little, big = _TABLES[which]
    return b"".join(
        [
            bytes((2 if joliet else 1,)) + b"CD001\1\0",
            (blank(32) if joliet else b"LINUX".ljust(32)) + text(label, 32) + bytes(8),
            _both32(sectors) + (b"%/E" if joliet else b"").ljust(32, b"\0"),
            _both16(1) + _both16(1) + _both16(SECTOR) + _both32(10),
            struct.pack("<II", little, 0) + struct.pack(">II", big, 0),
            _record(b"\0", _ROOTS[which], SECTOR, 2),
            blank(128) * 4 + blank(37) * 3,
            _NO_DATE * 4 + b"\1\0",
        ]
    )


def _path_table(which: int, order: str) -> bytes:
    return struct.pack(f"{order}BBIH", 1, 0, _ROOTS[which], 1) + b"\0\0"


def _plain(name: str) -> bytes:
    return name.upper().replace("-", "_").encode("ascii") + b".;1"


def cd_image(label: str, files: Mapping[str, bytes]) -> bytes:
    """`label`: at most 16 characters; file names: letters, digits and hyphens, at most 27. ValueError otherwise."""
    if not 0 < len(label) <= 16 or len(files) > _MAX_FILES:
        raise ValueError("a label of 1 to 16 characters and at most 16 files")
    if any(not name.replace("-", "").isalnum() or not name.isascii() or len(name) > 27 for name in files):
        raise ValueError("file names of letters, digits and hyphens, at most 27")
    plain, joliet, content, sector = [], [], [], _FIRST_FILE
    for name, data in files.items():
        plain.append((_plain(name), sector, len(data)))
        joliet.append((name.encode("utf-16-be"), sector, len(data)))
        content.append(data + bytes(-len(data) % SECTOR))
        sector += len(content[-1]) // SECTOR
    head = [
        _descriptor(_PRIMARY, label, sector),
        _descriptor(_JOLIET, label, sector),
        b"\xffCD001\1",
        *(_path_table(which, order) for which in (_PRIMARY, _JOLIET) for order in "<>"),
        _directory(_PRIMARY, plain),
        _directory(_JOLIET, joliet),
    ]
    return bytes(_SYSTEM_SECTORS * SECTOR) + b"".join(part.ljust(SECTOR, b"\0") for part in head) + b"".join(content)
