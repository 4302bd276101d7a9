"""Disks in and out: what arrives is whole and stands alone; what is refused says why; nothing is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from ramet.errors import (
    BusyError,
    CapacityError,
    ConflictError,
    DamagedError,
    NotFoundError,
    RametError,
    UnsupportedError,
    UsageError,
)
from ramet.storage import (
    ExportFormat,
    LayerStore,
    adopt_disk,
    export,
    grow,
    import_file,
    qcow2,
    set_backing_name,
)
from tests.unit.storage.storage_kit import CLUSTER, MIB, Change, contents, files, info, tool, write

NOISE = random.Random(7).randbytes(CLUSTER)
DESCRIPTOR = (
    '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 8 FLAT "{}" 0\n'
)


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "layers")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw disk of 3 MiB with data at both ends."""
    path = tmp_path / "disk.raw"
    path.write_bytes(NOISE + bytes(3 * MIB - 2 * CLUSTER) + NOISE)
    return path


def as_format(raw: Path, form: str, *options: str) -> Path:
    path = raw.with_suffix("." + form)
    tool("qemu-img", "convert", "-f", "raw", "-O", form, *options, str(raw), str(path))
    return path


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("raw", ()),
        ("qcow2", ()),
        ("qcow2", ("-c",)),
        ("qcow2", ("-o", "compat=0.10,cluster_size=4096")),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
    ],
)
async def test_import(form: str, options: tuple[str, ...], store: LayerStore, raw: Path) -> None:
    source = as_format(raw, form, *options) if form != "raw" else raw
    told: list[float] = []
    disk = await import_file(store, source, told.append, layer_id="arrived")
    assert (disk.layer_id, disk.size_bytes, disk.format) == ("arrived", 3 * MIB, form)
    assert disk.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert contents(store.path("arrived")) == raw.read_bytes()
    assert store.layer("arrived").parent is None
    assert store.layer("arrived").bytes_on_disk < MIB
    assert qcow2.read_header(store.path("arrived")).cluster_bits == 16
    assert told == sorted(told)
    assert told[-1] == 100.0
    assert files(store) == {"arrived.qcow2"}


async def test_import_of_an_odd_raw_file_is_padded(store: LayerStore, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x" * 1000)
    disk = await import_file(store, tmp_path / "odd")
    assert disk.size_bytes == 1024
    assert contents(store.path(disk.layer_id)) == b"x" * 1000 + bytes(24)


def hostile(kind: str, folder: Path, raw: Path) -> Path:
    """A file that would bring another one along, or that is not what it says."""
    path = folder / f"hostile-{kind}"
    if kind == "backing":
        qcow2_file = as_format(raw, "qcow2")
        set_backing_name(qcow2_file, "/etc/passwd", "raw")
        return qcow2_file
    if kind == "data file":
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={folder}/data", str(path), "1M")
    elif kind == "encrypted":
        tool("qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M")
        with path.open("r+b") as file:  # making a real one burns seconds on a key, and fails on a busy machine
            file.seek(32)
            file.write(struct.pack(">I", 2))
    elif kind == "snapshot":
        tool("qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M")
        tool("qemu-img", "snapshot", "-c", "one", str(path))
    elif kind == "descriptor":
        path.write_text(DESCRIPTOR.format("/etc/passwd"))
    elif kind == "descriptor after comments":
        path.write_text("#\n# x\n\n" + DESCRIPTOR.format("/etc/passwd"))
    elif kind == "descriptor in a sparse file":
        # magic, version, flags, capacity 0, …, the descriptor's sector and its length
        head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 20)
        path.write_bytes(head.ljust(512, b"\0") + DESCRIPTOR.format("/etc/passwd").encode().ljust(20 * 512, b"\0"))
    elif kind == "luks":
        path.write_bytes(b"LUKS\xba\xbe\x00\x01".ljust(MIB, b"\0"))
    elif kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        tool("qemu-img", "create", "-q", "-f", kind, str(path), "1M")
    return path


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("backing", UnsupportedError, "backing file, '/etc/passwd'"),
        ("data file", UnsupportedError, "contents in another file"),
        ("encrypted", UnsupportedError, "is encrypted"),
        ("luks", DamagedError, "QEMU cannot read it"),
        ("snapshot", UnsupportedError, "1 internal snapshots"),
        ("descriptor", UnsupportedError, "contents are in other files"),
        ("descriptor after comments", UnsupportedError, "contents are in other files"),
        ("descriptor in a sparse file", UnsupportedError, "contents are in other files"),
        ("vdi", UnsupportedError, "It is a vdi file"),
        ("vhdx", UnsupportedError, "It is a vhdx file"),
        ("empty", UsageError, "It is empty"),
        ("directory", UsageError, "no regular file"),
        ("fifo", UsageError, "no regular file"),
    ],
)
async def test_import_refuses(
    kind: str, error: type[RametError], words: str, store: LayerStore, tmp_path: Path, raw: Path
) -> None:
    path = hostile(kind, tmp_path, raw)
    with pytest.raises(error, match=words) as caught:
        await import_file(store, path)
    assert str(path) in caught.value.message
    assert "/dev/fd" not in caught.value.message
    assert files(store) == set()


async def test_import_refuses_a_vmdk_with_a_parent(store: LayerStore, tmp_path: Path, raw: Path) -> None:
    as_format(raw, "vmdk")
    child = tmp_path / "child.vmdk"
    tool("qemu-img", "create", "-q", "-f", "vmdk", "-b", str(raw.with_suffix(".vmdk")), "-F", "vmdk", str(child))
    with pytest.raises(UnsupportedError, match="refers to another file"):
        await import_file(store, child)


async def test_import_refuses_damage_and_strangers(store: LayerStore, tmp_path: Path, raw: Path) -> None:
    broken = as_format(raw, "qcow2")
    with broken.open("r+b") as file:
        file.seek(48)  # the refcount table's offset
        file.write(b"\xff" * 8)
    with pytest.raises(DamagedError, match="QEMU cannot read it") as caught:
        await import_file(store, broken)
    assert str(broken) in caught.value.message
    with pytest.raises(NotFoundError, match="no file"):
        await import_file(store, tmp_path / "missing")
    assert files(store) == set()


async def test_import_without_room(store: LayerStore, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free_bytes", lambda: MIB)
    with pytest.raises(CapacityError, match="are needed"):
        await import_file(store, raw)
    assert files(store) == set()


async def test_import_of_a_file_that_changes(store: LayerStore, raw: Path) -> None:
    def touch(percent: float) -> None:
        with raw.open("ab") as file:
            file.write(b"more")

    with pytest.raises(ConflictError, match="changed while"):
        await import_file(store, raw, touch)
    assert files(store) == set()


@pytest.mark.parametrize("at_percent", [1, 21])
async def test_cancelling_an_import_leaves_nothing(at_percent: int, store: LayerStore, tmp_path: Path) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        for _ in range(96):
            file.write(NOISE * 16)
    begun = asyncio.Event()
    task = asyncio.create_task(import_file(store, source, lambda done: begun.set() if done >= at_percent else None))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(store) == set()


@pytest.mark.parametrize("form", ["qcow2", "raw", "vmdk"])
async def test_export_takes_the_whole_chain(form: ExportFormat, store: LayerStore, tmp_path: Path) -> None:
    base = store.create_empty(4 * MIB)
    write(store.path(base.id), Change("write", 0, 2 * MIB, 1))
    top = store.create_overlay(base.id)
    write(store.path(top.id), Change("write", MIB, MIB, 2), Change("zero", 0, CLUSTER))
    told: list[float] = []
    target = tmp_path / "out"
    await export(store, top.id, target, form, told.append)
    found = info(target)
    assert found["format"] == form
    assert "backing-filename" not in found
    assert contents(target, form) == contents(store.path(top.id))
    assert target.stat().st_mode & 0o777 == 0o600
    assert told[-1] == 100.0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["layers", "out"]


async def test_export_refusals(store: LayerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = store.create_empty(4 * MIB)
    write(store.path(layer.id), Change("write", 0, MIB, 1))
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ConflictError, match="exists already"):
        await export(store, layer.id, tmp_path / "there")
    with pytest.raises(NotFoundError, match="no directory"):
        await export(store, layer.id, tmp_path / "nowhere" / "out")
    with pytest.raises(UsageError, match="absolute"):
        await export(store, layer.id, Path("out"))
    with pytest.raises(NotFoundError, match="no layer"):
        await export(store, "missing", tmp_path / "out")
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 10, 10, 10, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda _: full)
    with pytest.raises(CapacityError, match="may be needed"):
        await export(store, layer.id, tmp_path / "out")
    assert (tmp_path / "there").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["layers", "there"]


async def test_export_never_replaces_a_file_that_came_meanwhile(store: LayerStore, tmp_path: Path) -> None:
    layer = store.create_empty(4 * MIB)

    def meanwhile(_: float) -> None:
        (tmp_path / "out").write_text("mine")

    with pytest.raises(ConflictError, match="exists already"):
        await export(store, layer.id, tmp_path / "out", "raw", meanwhile)
    assert (tmp_path / "out").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["layers", "out"]


def test_disks_of_running_vms_are_busy(store: LayerStore, tmp_path: Path) -> None:
    layer = store.create_empty(4 * MIB)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(store.path(layer.id))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as vm:
        assert vm.stdin is not None
        assert vm.stdout is not None
        vm.stdin.write("write 0 512\n")
        vm.stdin.flush()
        while "ops" not in vm.stdout.readline():
            pass
        try:
            with pytest.raises(BusyError, match="running VM"):
                asyncio.run(export(store, layer.id, tmp_path / "out"))
            with pytest.raises(BusyError, match="running VM"):
                asyncio.run(grow(store, layer.id, 8 * MIB))
        finally:
            vm.communicate("quit\n", timeout=30)
    assert store.layer(layer.id).size_bytes == 4 * MIB
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_adopt(form: str, store: LayerStore, raw: Path) -> None:
    expected, file = raw.read_bytes(), raw if form == "raw" else as_format(raw, "qcow2")
    layer = await adopt_disk(store, file, layer_id="built")
    assert (layer.id, layer.parent, layer.size_bytes) == ("built", None, 3 * MIB)
    assert contents(store.path("built")) == expected
    assert not file.exists()
    assert files(store) == {"built.qcow2"}
    assert store.path("built").stat().st_mode & 0o777 == 0o600


async def test_adopt_refuses_and_keeps_the_file(store: LayerStore, raw: Path) -> None:
    child = as_format(raw, "qcow2")
    set_backing_name(child, "other.qcow2")
    with pytest.raises(UsageError, match="has a backing file"):
        await adopt_disk(store, child)
    taken = store.create_empty(MIB)
    with pytest.raises(ConflictError, match=taken.id):
        await adopt_disk(store, raw, layer_id=taken.id)
    assert child.exists()
    assert raw.exists()
    assert files(store) == {f"{taken.id}.qcow2"}


async def test_grow(store: LayerStore) -> None:
    base = store.create_empty(4 * MIB)
    write(store.path(base.id), Change("write", 0, 4 * MIB, 1))
    top = store.create_overlay(base.id)
    grown = await grow(store, top.id, 2 << 40)
    assert grown.size_bytes == 2 << 40
    tool("qemu-io", "-c", "read -P 1 0 4M", "-c", "read -P 0 4M 4M", str(store.path(top.id)))
    with pytest.raises(ConflictError, match="shared"):
        await grow(store, base.id, 8 * MIB)
    for size_bytes in (MIB, 2 << 40, (2 << 40) + 7, 1 << 60):
        with pytest.raises(UsageError, match="cannot become"):
            await grow(store, top.id, size_bytes)
