"""Disks in and out of the store: import of files from anywhere, export, built disks adopted, disks grown.

A file from anywhere is an enemy. qcow2 and VMDK headers may name other files, which QEMU would open with the daemon's
rights and hand to a guest: so its first bytes are judged here, QEMU then looks at it under limits and with the format
named, and what arrives in the store was written by qemu-img from scratch.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ramet.errors import (
    CapacityError,
    ConflictError,
    DamagedError,
    NotFoundError,
    PrivilegeError,
    UnsupportedError,
    UsageError,
)
from ramet.model.units import format_bytes, new_id
from ramet.storage import qcow2, qemu_img
from ramet.storage.flatten import finish
from ramet.storage.layers import Layer, LayerStore, full_disk
from ramet.storage.runner import Progress, in_thread

ExportFormat = Literal["qcow2", "raw", "vmdk"]

_SECTOR = 512
_HASH_CHUNK = 1 << 20
_HASH_SHARE = 20.0
"""Percent of an import's progress that the checksum is."""
_SPARE_BYTES = 64 << 20
# What QEMU's probe takes for a VMDK descriptor: comments and blank lines, then a version. It may name any file.
_VMDK_TEXT = re.compile(rb"(?:#[^\n]*\n|[ \t]*\r?\n)*version=")


@dataclass(frozen=True, slots=True)
class ImportedDisk:
    layer_id: str
    size_bytes: int
    """Of the disk a guest will see."""
    sha256: str
    """Of the file that was imported, hex."""
    format: str


async def import_file(
    store: LayerStore, path: Path, progress: Progress | None = None, *, layer_id: str | None = None
) -> ImportedDisk:
    """Make a parentless layer of a qcow2, raw or (single-file) VMDK file, which stays as it is.

    Raises NotFoundError, PrivilegeError or UsageError (no regular file) about the path; UnsupportedError for backing
    files, external data, encryption and other formats; DamagedError; CapacityError; ConflictError when the file
    changed meanwhile. Nothing is left on failure or cancellation.
    """
    with _source(path) as fd, _naming(path):
        before = _fingerprint(fd)
        form = await _judge(fd)
        node = qemu_img.alone_node(form, f"/dev/fd/{fd}")
        needed = await qemu_img.measure_bytes(node, pass_fds=[fd]) + _SPARE_BYTES
        if store.free_bytes() < needed:
            raise full_disk(store, needed)
        digest = await _sha256(fd, progress)
        with store.temporary() as temporary:
            report = qemu_img.PercentParser(progress, _HASH_SHARE).feed
            await qemu_img.convert(node, temporary, "qcow2", report=report, pass_fds=[fd])
            if _fingerprint(fd) != before:
                raise ConflictError(f"{path} was changed while it was being imported.")
            layer = await finish(store, temporary, layer_id)
    return ImportedDisk(layer.id, layer.size_bytes, digest, form)


async def export(
    store: LayerStore,
    layer_id: str,
    path: Path,
    file_format: ExportFormat = "qcow2",
    progress: Progress | None = None,
    *,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write the disk whose topmost layer is `layer_id` to a new file, whole, belonging to `owner` when given.

    Nobody may be writing to the layer: an immutable one, or of a VM that is off (else BusyError). The file appears
    under its name when it is complete. Raises ConflictError when it exists, NotFoundError without its directory,
    CapacityError before it starts where that can be foreseen. Nothing is left on failure or cancellation.
    """
    _check_target(path)
    chain = store.chain(layer_id)
    node = qemu_img.chain_node(store, chain)
    await _check_room_for(path, node)
    temporary = path.with_name(f".{path.name[:200]}.{new_id()}.part")
    try:
        with store.hold(layer_id):
            await qemu_img.convert(node, temporary, file_format, report=qemu_img.PercentParser(progress).feed)
        await in_thread(_reveal, temporary, path, owner, undo=lambda _: path.unlink())
    finally:
        temporary.unlink(missing_ok=True)


async def adopt_disk(
    store: LayerStore, file: Path, progress: Progress | None = None, *, layer_id: str | None = None
) -> Layer:
    """Move a raw or qcow2 disk that Ramet built itself into the store, as an immutable layer; `file` is gone then.

    On failure `file` stays, and nothing else. Raises UsageError for a qcow2 with a backing file.
    """
    form = "qcow2" if _first_bytes(file, 4) == qcow2.MAGIC else "raw"
    if form == "qcow2" and qcow2.read_header(file).backing_name is not None:
        raise UsageError(f"{file} has a backing file; a disk to adopt stands alone.")
    with store.temporary() as temporary:
        if form == "raw" or not _moved(file, temporary):
            report = qemu_img.PercentParser(progress).feed
            await qemu_img.convert(qemu_img.alone_node(form, file), temporary, "qcow2", report=report)
        layer = await finish(store, temporary, layer_id)
    file.unlink(missing_ok=True)
    return layer


async def grow(store: LayerStore, layer_id: str, size_bytes: int) -> Layer:
    """Make the disk of a VM that is off larger. The layer must be its writable one: nothing stands on it.

    Raises ConflictError for a layer that others stand on, UsageError for a size that is no larger, BusyError when a
    VM has it open.
    """
    layer = store.layer(layer_id)
    children = await asyncio.to_thread(store.children, layer_id)
    if children:
        raise ConflictError(f"Layer {layer_id} is shared, so it cannot grow.")
    if size_bytes <= layer.size_bytes or size_bytes % _SECTOR or size_bytes > qcow2.MAX_SIZE_BYTES:
        raise UsageError(
            f"A disk of {format_bytes(layer.size_bytes)} cannot become one of {format_bytes(size_bytes)}.",
            hint=f"Disks only grow, in whole sectors, up to {format_bytes(qcow2.MAX_SIZE_BYTES)}.",
        )
    await qemu_img.resize(store.path(layer_id), size_bytes)
    await in_thread(store.sync, layer_id)
    return store.layer(layer_id)


async def _judge(fd: int) -> str:
    """The format of a file from anywhere, once it is clear that it stands for itself alone."""
    head = os.pread(fd, 1 << 16, 0)
    form = _format_by_first_bytes(head)
    if form == "qcow2":
        _judge_qcow2(fd)
    probe: qemu_img.Node | Path = (
        {"driver": form, "file": qemu_img.file_node(f"/dev/fd/{fd}")} if form else Path(f"/dev/fd/{fd}")
    )
    found = await qemu_img.info(probe, pass_fds=[fd])
    if found.format not in ("qcow2", "vmdk", "raw") or (form is None and found.format != "raw"):
        raise UnsupportedError(
            f"It is a {found.format} file.", hint="Convert it to qcow2 first, with qemu-img convert."
        )
    if found.backing_name is not None or found.data_file is not None or found.encrypted:
        raise UnsupportedError("It refers to another file, or is encrypted.", hint=_ALONE)
    if not 0 < found.size_bytes <= qcow2.MAX_SIZE_BYTES:
        raise UnsupportedError(f"Its disk would have {format_bytes(found.size_bytes)}.")
    return found.format


_ALONE = "Make one plain file of it first, with qemu-img convert."


def _format_by_first_bytes(head: bytes) -> Literal["qcow2", "vmdk"] | None:
    """None: raw, or something that is safe to let QEMU probe."""
    if head.startswith(qcow2.MAGIC):
        return "qcow2"
    if head.startswith(b"KDMV"):
        # Without a capacity QEMU would follow the embedded descriptor, and so any file it names.
        if len(head) < 20 or struct.unpack_from("<Q", head, 12)[0] == 0:
            raise UnsupportedError("It is a VMDK whose contents are in other files.", hint=_ALONE)
        return "vmdk"
    if head.startswith(b"COWD") or _VMDK_TEXT.match(head):
        raise UnsupportedError("It is a VMDK whose contents are in other files.", hint=_ALONE)
    if not head:
        raise UsageError("It is empty.")
    return None


def _judge_qcow2(fd: int) -> None:
    header = qcow2.read_header(fd)
    if header.backing_name is not None:
        raise UnsupportedError(f"It has a backing file, {header.backing_name[:80]!r}.", hint=_ALONE)
    if header.snapshots:
        raise UnsupportedError(f"It has {header.snapshots} internal snapshots.", hint=_ALONE)


@contextmanager
def _source(path: Path) -> Iterator[int]:
    """The file, opened once: everything that follows looks at the same one, whatever the name means by then."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}.") from None
    except PermissionError:
        raise PrivilegeError(f"The daemon may not read {path}.") from None
    except OSError as exc:
        raise UsageError(f"{path} cannot be opened: {exc.strerror}.") from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"{path} is no regular file.")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the path the caller gave in front of refusals that only know 'it', or a descriptor."""
    try:
        yield
    except (DamagedError, UnsupportedError, UsageError) as exc:
        message = re.sub(r"(?:/dev/fd/|descriptor )\d+", str(path), exc.message)
        text = message if str(path) in message else f"{path} cannot be imported. {message}"
        raise type(exc)(text, hint=exc.hint, **exc.fields) from exc


def _fingerprint(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


async def _sha256(fd: int, progress: Progress | None) -> str:
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def tell(share: float) -> None:
        if progress is not None:
            loop.call_soon_threadsafe(progress, _HASH_SHARE * share)

    def work() -> str:
        digest, offset, size, told = hashlib.sha256(), 0, os.fstat(fd).st_size or 1, 0
        while not stop.is_set() and (chunk := os.pread(fd, _HASH_CHUNK, offset)):
            digest.update(chunk)
            offset += len(chunk)
            if (percent := 100 * offset // size) > told:
                told = percent
                tell(min(offset / size, 1.0))
        return digest.hexdigest()

    running = asyncio.ensure_future(in_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await running
        raise


def _check_target(path: Path) -> None:
    if not path.is_absolute():
        raise UsageError(f"{path} is not an absolute path.")
    if not path.parent.is_dir():
        raise NotFoundError(f"There is no directory {path.parent}.")
    if os.path.lexists(path):
        raise ConflictError(f"{path} exists already.", hint="Choose another name, or remove it first.")


async def _check_room_for(path: Path, node: qemu_img.Node) -> None:
    status = os.statvfs(path.parent)
    free, needed = status.f_bavail * status.f_frsize, await qemu_img.measure_bytes(node)
    if free < needed:
        raise CapacityError(
            f"{path.parent} has {format_bytes(free)} free; {format_bytes(needed)} may be needed.",
            hint="Make room there, or export to another file system.",
            free_bytes=free,
            needed_bytes=needed,
        )


def _reveal(temporary: Path, path: Path, owner: tuple[int, int] | None) -> None:
    """Sync the file, then give it its name, never over one that is there. A guest's disk is its owner's alone."""
    temporary.chmod(0o600)
    if owner is not None and os.geteuid() == 0:
        os.chown(temporary, *owner)
    for place, reveal in ((temporary, True), (path.parent, False)):
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if reveal:
            _name_anew(temporary, path)


def _name_anew(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise ConflictError(f"{path} exists already.") from None
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        temporary.rename(path)  # a file system without hard links, FAT for one


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _moved(file: Path, temporary: Path) -> bool:
    """Give the file a second name inside the store; False on another file system."""
    try:
        os.link(file, temporary)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        return False
    return True
