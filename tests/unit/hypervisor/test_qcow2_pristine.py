"""Whether a qcow2 layer was ever written to, on images that qemu-img and qemu-io made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import DamagedError
from ramet.hypervisor.qcow2_pristine import is_pristine


def image(path: Path, *options: str, size: str = "4G") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True)
    return path


def io(path: Path, *commands: str) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *arguments, path], check=True, stdout=subprocess.DEVNULL)


def pristine(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return is_pristine(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("options", [(), ("-o", "cluster_size=4k"), ("-o", "extended_l2=on"), ("-o", "compat=0.10")])
def test_a_fresh_image_is_pristine(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert pristine(image(tmp_path / "i", *options))


def test_a_fresh_overlay_is_pristine_and_reading_keeps_it_so(tmp_path: Path) -> None:
    base = image(tmp_path / "base")
    io(base, "write 0 1M")
    overlay = image(tmp_path / "overlay", "-b", str(base), "-F", "qcow2")
    io(overlay, "read 0 1M", "flush")
    assert pristine(overlay)
    assert not pristine(base)


@pytest.mark.parametrize("command", ["write 0 512", "write 4194303K 1K", "write -z 0 64k", "discard 1M 64k"])
def test_whatever_hides_the_parent_is_a_write(tmp_path: Path, command: str) -> None:
    base = image(tmp_path / "base")
    io(base, "write 0 2M")
    overlay = image(tmp_path / "overlay", "-b", str(base), "-F", "qcow2")
    io(overlay, command)
    assert not pristine(overlay)


def test_an_internal_snapshot_is_not_pristine(tmp_path: Path) -> None:
    path = image(tmp_path / "i")
    subprocess.run(["qemu-img", "snapshot", "-c", "s", path], check=True)
    assert not pristine(path)


def test_a_grown_image_is_pristine(tmp_path: Path) -> None:
    path = image(tmp_path / "i")
    subprocess.run(["qemu-img", "resize", "-q", path, "64G"], check=True)
    assert pristine(path)


FAR = b"QFI\xfb\0\0\0\x03" + b"\0" * 28 + b"\0\0\0\x01" + b"\xff" * 8 + b"\0" * 200
"""An L1 table beyond any file."""


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"\0" * 512, b"QFI\xfb\0\0\0\x09" + b"\0" * 200, FAR])
def test_what_is_no_image_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i").write_bytes(content)
    with pytest.raises(DamagedError):
        pristine(tmp_path / "i")


@given(st.binary(min_size=64, max_size=256))
def test_random_headers_are_answered_or_are_damage(content: bytes) -> None:
    fd = os.memfd_create("image")
    try:
        os.write(fd, b"QFI\xfb\0\0\0\x03" + content)
        assert is_pristine(fd) in (True, False)
    except DamagedError:
        pass
    finally:
        os.close(fd)
