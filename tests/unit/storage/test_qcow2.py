"""Headers: what we write QEMU accepts, and what anybody writes we survive."""

from __future__ import annotations

import os
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import DamagedError, UnsupportedError, UsageError
from ramet.storage import is_pristine, qcow2, read_header, set_backing_name, write_empty_overlay
from tests.unit.storage.storage_kit import MIB, Change, info, tool, write

SIZES = st.one_of(
    st.integers(2 * 1024, 16 * 1024 * 1024 * 2).map(lambda sectors: sectors * 512),
    st.integers(1, 16 << 20).map(lambda mib: mib * MIB),
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300).filter(
    lambda name: len(name.encode()) <= 1023
)


def make(path: Path, size_bytes: int = 4 * MIB, backing: str | None = None) -> Path:
    with path.open("w+b") as file:
        write_empty_overlay(file.fileno(), size_bytes, backing)
    return path


def poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@settings(max_examples=25, deadline=None)
@given(size_bytes=SIZES, name=st.none() | NAMES)
def test_empty_overlay_reads_back(size_bytes: int, name: str | None) -> None:
    with TemporaryFile() as file:
        write_empty_overlay(file.fileno(), size_bytes, name)
        header = read_header(file.fileno())
        assert (header.size_bytes, header.backing_name) == (size_bytes, name)
        assert header.backing_format == ("qcow2" if name else None)
        assert is_pristine(file.fileno())
        assert os.fstat(file.fileno()).st_blocks * 512 <= 64 << 10


@settings(max_examples=15, deadline=None)
@given(size_bytes=SIZES, name=st.none() | st.from_regex(r"[a-z0-9][a-z0-9 é,=_-]{0,80}\.qcow2", fullmatch=True))
def test_qemu_agrees_with_an_empty_overlay(
    size_bytes: int, name: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = make(tmp_path_factory.mktemp("overlay") / "top.qcow2", size_bytes, name)
    found = info(path)
    assert found["virtual-size"] == size_bytes
    assert found.get("backing-filename") == name
    assert found.get("backing-filename-format") == ("qcow2" if name else None)
    specific = found["format-specific"]["data"]
    assert (specific["compat"], specific["lazy-refcounts"], specific["extended-l2"]) == ("1.1", False, False)
    if name:
        make(path.parent / name, size_bytes)
    assert "No errors were found" in tool("qemu-img", "check", "-f", "qcow2", str(path))


def test_qemu_writes_into_an_empty_overlay(tmp_path: Path) -> None:
    path = make(tmp_path / "top.qcow2", 3 << 40)
    far = Change("write", (3 << 40) - MIB, MIB, 7)
    write(path, far)
    assert "No errors were found" in tool("qemu-img", "check", str(path))
    tool("qemu-io", "-c", f"read -P 7 {far.offset} {far.length}", str(path))


@pytest.mark.parametrize("size_bytes", [0, -512, 513, qcow2.MAX_SIZE_BYTES + 512])
def test_sizes_that_cannot_be(size_bytes: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no size for a disk"):
        make(tmp_path / "x", size_bytes)


@pytest.mark.parametrize("name", ["", "a\0b", "a" * 1024])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name"):
        make(tmp_path / "x", MIB, name)


@pytest.mark.parametrize("kind", ["write", "zero", "discard"])
def test_any_change_ends_pristineness(kind: str, tmp_path: Path) -> None:
    make(tmp_path / "base.qcow2")
    top = make(tmp_path / "top.qcow2", backing="base.qcow2")
    assert is_pristine(top)
    write(top, Change(kind, MIB, 1 << 16, 1))  # type: ignore[arg-type]
    assert not is_pristine(top)


def test_reading_does_not_end_pristineness(tmp_path: Path) -> None:
    make(tmp_path / "base.qcow2")
    write(tmp_path / "base.qcow2", Change("write", 0, MIB, 1))
    top = make(tmp_path / "top.qcow2", backing="base.qcow2")
    tool("qemu-io", "-c", "read -P 1 0 1M", "-c", "flush", str(top))
    assert is_pristine(top)


def test_pristine_is_seen_beside_a_writing_qemu(tmp_path: Path) -> None:
    """QEMU writes the L1 entry through before the guest's write is answered, not when it flushes or closes."""
    path = make(tmp_path / "top.qcow2")
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("write -z 1M 64k\n")
        process.stdin.flush()
        while "ops" not in process.stdout.readline():
            pass
        seen = is_pristine(path)
        process.stdin.write("quit\n")
        process.stdin.close()
        process.wait(30)
    assert not seen


def test_internal_snapshots_are_reported(tmp_path: Path) -> None:
    path = make(tmp_path / "x.qcow2")
    tool("qemu-img", "snapshot", "-c", "one", str(path))
    assert read_header(path).snapshots == 1
    assert not is_pristine(path)


@pytest.mark.parametrize("options", ["compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on"])
def test_what_qemu_img_makes_is_understood(options: str, tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "64M")
    assert read_header(path).size_bytes == 64 * MIB
    assert is_pristine(path)
    write(path, Change("write", 0, 512, 1))
    assert not is_pristine(path)


def test_encryption_and_data_files_are_refused(tmp_path: Path) -> None:
    data, secret = tmp_path / "data.qcow2", tmp_path / "secret.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/raw", str(data), "1M")
    with pytest.raises(UnsupportedError, match="contents in another file"):
        read_header(data)
    poke(make(secret), 32, struct.pack(">I", 2))
    with pytest.raises(UnsupportedError, match="encrypted"):
        read_header(secret)


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (0, b"QFI\x00", "not a qcow2 file"),
        (4, struct.pack(">I", 4), "version 4"),
        (16, struct.pack(">I", 1024), "name has 1024 bytes"),
        (8, struct.pack(">Q", 65530), "misplaced"),
        (8, struct.pack(">Q", 1 << 63), "misplaced"),
        (20, struct.pack(">I", 22), "clusters would be"),
        (20, struct.pack(">I", 8), "clusters would be"),
        (24, struct.pack(">Q", 1 << 63), "disk would have"),
        (24, struct.pack(">Q", 1 << 50), "L1 table is too short"),
        (36, struct.pack(">I", 1 << 31), "L1 table would have"),
        (40, struct.pack(">Q", 1), "L1 table would be at"),
        (72, struct.pack(">Q", 2), "corrupt"),
        (96, struct.pack(">I", 7), "reference counts"),
        (100, struct.pack(">I", 72), "header has 72"),
        (100, struct.pack(">I", 1 << 20), "header has"),
        (116, struct.pack(">I", 1 << 30), "extensions do not fit"),
    ],
)
def test_damaged_fields(offset: int, data: bytes, why: str, tmp_path: Path) -> None:
    path = make(tmp_path / "x.qcow2", backing="base.qcow2")
    poke(path, offset, data)
    with pytest.raises(DamagedError, match=why) as caught:
        read_header(path)
    assert str(path) in caught.value.message


def test_unknown_features_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "x.qcow2")
    poke(path, 72, struct.pack(">Q", 1 << 40))
    with pytest.raises(UnsupportedError, match="unknown here"):
        read_header(path)


def test_truncated_files(tmp_path: Path) -> None:
    path = make(tmp_path / "x.qcow2", backing="base.qcow2")
    whole = path.read_bytes()
    for length in (0, 3, 71, 100, 110):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read_header(path)
    path.write_bytes(whole[: 3 << 16])
    with pytest.raises(DamagedError, match="inside its L1 table"):
        is_pristine(path)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_headers_are_read_or_refused(data: st.DataObject) -> None:
    """Whatever stands there: a Header, or one of two errors, without reading much or taking long."""
    with TemporaryFile() as file:
        write_empty_overlay(file.fileno(), 1 << 40, "base.qcow2")
        for _ in range(data.draw(st.integers(1, 4))):
            os.pwrite(file.fileno(), data.draw(st.binary(min_size=1, max_size=8)), data.draw(st.integers(0, 180)))
        if data.draw(st.booleans()):
            os.ftruncate(file.fileno(), data.draw(st.integers(0, 300_000)))
        with suppress(DamagedError, UnsupportedError):
            header = read_header(file.fileno())
            assert header.l1_entries * 8 <= 32 << 20
            is_pristine(file.fileno())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused_or_read(noise: bytes) -> None:
    with TemporaryFile() as file:
        os.pwrite(file.fileno(), b"QFI\xfb" + noise, 0)
        with suppress(DamagedError, UnsupportedError):
            read_header(file.fileno())


def test_set_backing_name_keeps_everything_else(tmp_path: Path) -> None:
    for name, fill in (("a", 1), ("b" * 60, 2)):
        make(tmp_path / name)
        write(tmp_path / name, Change("write", MIB, MIB, fill))
    top = make(tmp_path / "top.qcow2", backing="a")
    write(top, Change("write", 0, MIB, 9))
    for name, fill in (("b" * 60, 2), ("a", 1), ("b" * 60, 2), ("a", 1)):
        set_backing_name(top, name)
        assert info(top)["backing-filename"] == name
        tool("qemu-io", "-r", "-c", "read -P 9 0 1M", "-c", f"read -P {fill} 1M 1M", str(top))
    assert "No errors were found" in tool("qemu-img", "check", str(top))


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_set_backing_name_on_files_of_qemu_img(compat: str, tmp_path: Path) -> None:
    make(tmp_path / "base.qcow2", 64 * MIB)
    top = tmp_path / "top.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", str(top), "64M")
    set_backing_name(top, "base.qcow2")
    found = info(top)
    assert (found["backing-filename"], found["backing-filename-format"]) == ("base.qcow2", "qcow2")
    set_backing_name(top, None)
    assert "backing-filename" not in info(top)
    assert read_header(top).backing_format is None
    assert "No errors were found" in tool("qemu-img", "check", str(top))


def test_set_backing_name_without_room(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", str(path), "1M")
    with pytest.raises(UsageError, match="no room"):
        set_backing_name(path, "n" * 500)
    assert read_header(path).backing_name is None
