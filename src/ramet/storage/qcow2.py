"""qcow2 headers: read with suspicion, and written for empty layers.

Only the first cluster and the L1 table are ever looked at: that tells a layer's size, its parent and whether anything
was written to it. Contents are QEMU's and qemu-img's business. Layout: docs/interop/qcow2.txt in QEMU's sources.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ramet.errors import DamagedError, UnsupportedError, UsageError

FileRef = int | str | os.PathLike[str]
"""An open descriptor (left open, its position untouched), or a path."""

MAGIC = b"QFI\xfb"
CLUSTER_BITS = 16
"""Of the layers written here: 64 KiB, what qemu-img chooses too."""
MAX_SIZE_BYTES = 16 << 40
"""Of layers written here; one L1 table of 256 KiB. QEMU itself would go on to 2 EiB."""

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_V3_END = _V2.size + _V3.size  # 104
_HEADER_LENGTH = 112  # with the compression type and its padding, as QEMU >= 5.1 writes it
_EXT_END = 0
_EXT_BACKING_FORMAT = 0xE2792ACA
_MAX_NAME_BYTES = 1023  # QEMU refuses longer ones
_MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE
_MAX_EXTENSIONS = 64
_COPY_BYTES = 1 << 20

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2


@dataclass(frozen=True, slots=True)
class Header:
    """What a qcow2 file says of itself, checked for consistency. Offsets and sizes in bytes."""

    version: int
    size_bytes: int
    cluster_bits: int
    backing_name: str | None
    """As it stands in the file, never resolved here: a hostile file may name anything."""
    backing_format: str | None
    l1_offset: int
    l1_entries: int
    snapshots: int
    """Internal snapshots; layers have none."""
    incompatible: int
    compatible: int
    autoclear: int
    header_length: int
    extensions: tuple[tuple[int, bytes], ...] = field(repr=False)
    _name_offset: int = field(default=0, repr=False)
    _name_bytes: int = field(default=0, repr=False)

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits

    @property
    def is_dirty(self) -> bool:
        """Its reference counts were not settled at the last close (lazy refcounts only)."""
        return bool(self.incompatible & _DIRTY)

    @property
    def has_extended_l2(self) -> bool:
        return bool(self.incompatible & _EXTENDED_L2)


def read_header(file: FileRef) -> Header:
    """Parse and check a header.

    Raises DamagedError for anything that is not a consistent qcow2 header, UnsupportedError for encryption, an
    external data file or a feature that is unknown here, OSError when it cannot be read.
    """
    with _opened(file) as fd:
        return _parse(fd, _name_of(file))


def is_pristine(file: FileRef) -> bool:
    """Whether nothing was written, discarded or zeroed since creation: every L1 entry is zero.

    QEMU allocates an L2 table, and writes its L1 entry through, before any guest write, zero-write or discard over a
    backing file is completed, so this is true to the moment for a stopped guest. (A discard without a backing file
    changes nothing a guest could read, and allocates nothing.)
    """
    with _opened(file) as fd:
        header = _parse(fd, _name_of(file))
        return header.snapshots == 0 and _l1_is_zero(fd, header, _name_of(file))


def write_empty_overlay(
    fd: int, size_bytes: int, backing_name: str | None, backing_format: str | None = "qcow2", *, sync: bool = False
) -> None:
    """Write an empty qcow2 (v3, 64 KiB clusters, 16-bit refcounts, no lazy refcounts) to an empty, open file.

    What qemu-img create does in 10 ms: three small writes, and holes. `size_bytes` is a multiple of 512, at most
    MAX_SIZE_BYTES. The descriptor stays open. Raises UsageError for a size or name that qcow2 cannot hold, OSError.
    """
    if not 0 < size_bytes <= MAX_SIZE_BYTES or size_bytes % 512:
        raise UsageError(
            f"{size_bytes} bytes is no size for a disk: a multiple of 512, up to {MAX_SIZE_BYTES >> 40} TiB."
        )
    cluster = 1 << CLUSTER_BITS
    l1_entries = _l1_entries_for(size_bytes, CLUSTER_BITS)
    l1_clusters = -(-l1_entries * 8 // cluster)
    # cluster 0: header, 1: refcount table, 2: its only block (enough for 2 GiB of file), 3…: L1 table
    name = _encoded_name(backing_name)
    extensions = _with_backing_format((), backing_format if backing_name is not None else None)
    body = _extension_bytes(extensions)
    name_offset = _HEADER_LENGTH + len(body) if name else 0
    head = _V2.pack(MAGIC, 3, name_offset, len(name), CLUSTER_BITS, size_bytes, 0, l1_entries,
                    3 * cluster, cluster, 1, 0, 0)  # fmt: skip
    head += _V3.pack(0, 0, 0, 4, _HEADER_LENGTH) + bytes(_HEADER_LENGTH - _V3_END)
    os.ftruncate(fd, (3 + l1_clusters) * cluster)
    _pwrite_all(fd, head + body + name, 0)
    _pwrite_all(fd, struct.pack(">Q", 2 * cluster), cluster)
    _pwrite_all(fd, struct.pack(">H", 1) * (3 + l1_clusters), 2 * cluster)
    if sync:
        os.fsync(fd)


def set_backing_name(file: FileRef, name: str | None, backing_format: str | None = "qcow2") -> None:
    """Change which file a layer nobody has open refers to; contents stay (like ``qemu-img rebase -u``).

    The new name is put beside the old one and synced before the header points to it: a crash leaves the one or the
    other. Raises as `read_header` does, and UsageError when the header has no room for the name.
    """
    with _opened(file, os.O_RDWR) as fd:
        header = _parse(fd, _name_of(file))
        raw = _encoded_name(name)
        extensions = _with_backing_format(header.extensions, backing_format if raw else None)
        # A v2 header's extensions start at 72; QEMU reads them there, so the format can be told in both versions.
        body = _extension_bytes(extensions)
        start = header.header_length + len(body)
        old_end = header._name_offset + header._name_bytes
        offset = start if not header._name_bytes or start + len(raw) <= header._name_offset else max(start, old_end)
        if offset + len(raw) > header.cluster_bytes:
            offset = start  # no room beside the old one
        if offset + len(raw) > header.cluster_bytes:
            raise UsageError(f"{_name_of(file)} has no room in its header for the name {name!r}.")
        if raw:
            _pwrite_all(fd, raw, offset)
            os.fdatasync(fd)
        fixed = bytearray(os.pread(fd, header.header_length, 0))
        struct.pack_into(">QI", fixed, 8, offset if raw else 0, len(raw))
        _pwrite_all(fd, bytes(fixed) + body, 0)
        os.fdatasync(fd)


def _parse(fd: int, where: str) -> Header:
    head = os.pread(fd, 1 << 12, 0)
    if len(head) < _V2.size or head[:4] != MAGIC:
        raise DamagedError(f"{where} is not a qcow2 file.")
    (_, version, name_offset, name_bytes, cluster_bits, size, crypt, l1_entries, l1_offset, _, _, snapshots, _) = (
        _V2.unpack_from(head)
    )
    _require(version in (2, 3), where, f"it has version {version}, not 2 or 3")
    _require(9 <= cluster_bits <= 21, where, f"its clusters would be of 2^{cluster_bits} bytes")
    incompatible, compatible, autoclear, length = 0, 0, 0, _V2.size
    if version == 3:
        _require(len(head) >= _V3_END, where, "it ends inside its header")
        incompatible, compatible, autoclear, refcount_order, length = _V3.unpack_from(head, _V2.size)
        _require(refcount_order <= 6, where, f"its reference counts would be of 2^{refcount_order} bits")
        _require(_V3_END <= length <= 1 << cluster_bits and length % 8 == 0, where, f"its header has {length} bytes")
    _refuse_features(incompatible, crypt, where)
    _check_tables(size, cluster_bits, l1_entries, l1_offset, where)
    cluster = os.pread(fd, 1 << cluster_bits, 0)
    name = _backing_name(cluster, name_offset, name_bytes, 1 << cluster_bits, where)
    extensions = _extensions(cluster[: name_offset or None], length, where)
    format_bytes = dict(extensions).get(_EXT_BACKING_FORMAT)
    return Header(
        version=version,
        size_bytes=size,
        cluster_bits=cluster_bits,
        backing_name=name,
        backing_format=format_bytes.decode("ascii", "replace") if format_bytes else None,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        snapshots=snapshots,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        header_length=length,
        extensions=extensions,
        _name_offset=name_offset,
        _name_bytes=name_bytes,
    )


def _refuse_features(incompatible: int, crypt: int, where: str) -> None:
    if crypt:
        raise UnsupportedError(f"{where} is encrypted.", hint="Decrypt it first with qemu-img convert.")
    if incompatible & _DATA_FILE:
        raise UnsupportedError(
            f"{where} keeps its contents in another file.", hint="Make one file of it first with qemu-img convert."
        )
    if incompatible & ~_KNOWN_INCOMPATIBLE:
        raise UnsupportedError(f"{where} uses qcow2 features that are unknown here ({incompatible:#x}).")
    _require(not incompatible & _CORRUPT, where, "QEMU has marked it as corrupt")


def _check_tables(size: int, cluster_bits: int, l1_entries: int, l1_offset: int, where: str) -> None:
    _require(size < 1 << 62, where, f"its disk would have {size} bytes")
    _require(l1_entries * 8 <= _MAX_L1_BYTES, where, f"its L1 table would have {l1_entries} entries")
    _require(l1_entries >= _l1_entries_for(size, cluster_bits), where, "its L1 table is too short for its size")
    aligned = l1_offset % (1 << cluster_bits) == 0 and l1_offset < 1 << 56
    _require(aligned and (l1_offset > 0 or l1_entries == 0), where, f"its L1 table would be at {l1_offset}")


def _backing_name(cluster: bytes, offset: int, length: int, cluster_bytes: int, where: str) -> str | None:
    if offset == 0 or length == 0:
        return None
    _require(length <= _MAX_NAME_BYTES, where, f"its backing file's name has {length} bytes")
    _require(offset >= _V2.size and offset + length <= cluster_bytes, where, "its backing file's name is misplaced")
    raw = cluster[offset : offset + length]
    _require(len(raw) == length, where, "it ends inside its header")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise DamagedError(f"{where} is damaged: its backing file's name is not text.") from None
    _require("\0" not in name, where, "its backing file's name is not text")
    return name


def _extensions(cluster: bytes, start: int, where: str) -> tuple[tuple[int, bytes], ...]:
    """Header extensions up to their end mark, or to where the backing file's name (the end of `cluster`) begins."""
    found: list[tuple[int, bytes]] = []
    while start + 8 <= len(cluster):
        kind, length = struct.unpack_from(">II", cluster, start)
        if kind == _EXT_END:
            break
        end = start + 8 + length
        _require(end <= len(cluster) and len(found) < _MAX_EXTENSIONS, where, "its header extensions do not fit in it")
        found.append((kind, cluster[start + 8 : end]))
        start = (end + 7) & ~7
    return tuple(found)


def _with_backing_format(
    extensions: tuple[tuple[int, bytes], ...], backing_format: str | None
) -> tuple[tuple[int, bytes], ...]:
    others = tuple(entry for entry in extensions if entry[0] != _EXT_BACKING_FORMAT)
    if backing_format is None:
        return others
    return ((_EXT_BACKING_FORMAT, backing_format.encode("ascii")), *others)


def _extension_bytes(extensions: tuple[tuple[int, bytes], ...]) -> bytes:
    parts = (struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in extensions)
    return b"".join(parts) + struct.pack(">II", _EXT_END, 0)


def _encoded_name(name: str | None) -> bytes:
    if name is None:
        return b""
    raw = name.encode()
    if not 0 < len(raw) <= _MAX_NAME_BYTES or b"\0" in raw:
        raise UsageError(f"A backing file's name has 1 to {_MAX_NAME_BYTES} bytes, and no NUL.")
    return raw


def _l1_entries_for(size_bytes: int, cluster_bits: int) -> int:
    covered_bits = 2 * cluster_bits - 3  # one L2 table is a cluster of 8-byte entries
    return (size_bytes + (1 << covered_bits) - 1) >> covered_bits


def _l1_is_zero(fd: int, header: Header, where: str) -> bool:
    offset, end = header.l1_offset, header.l1_offset + header.l1_entries * 8
    while offset < end:
        chunk = os.pread(fd, min(_COPY_BYTES, end - offset), offset)
        if not chunk:
            raise DamagedError(f"{where} is damaged: it ends inside its L1 table.")
        if chunk.count(0) != len(chunk):
            return False
        offset += len(chunk)
    return True


def _require(condition: bool, where: str, why: str) -> None:
    if not condition:
        raise DamagedError(f"{where} is damaged: {why}.")


def _pwrite_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _name_of(file: FileRef) -> str:
    return f"descriptor {file}" if isinstance(file, int) else os.fspath(file)


@contextmanager
def _opened(file: FileRef, flags: int = os.O_RDONLY) -> Iterator[int]:
    if isinstance(file, int):
        yield file
        return
    fd = os.open(file, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
