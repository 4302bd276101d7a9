"""The pure parts of the image builders, and their runner of children."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import os
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import DeadlineError, ToolError, UsageError
from ramet.guest.guestfiles import guest_file
from ramet.guest.images import bootdisk, debian, modules
from ramet.guest.images.bzimage import direct_kernel
from ramet.guest.images.children import run
from ramet.guest.images.cpio import Cpio

PVH_KERNEL = b"\x7fELF" + bytes(60) + struct.pack("<III4sQ", 4, 8, 18, b"Xen", 0x1000) + b"code" * 100


def bzimage(payload: bytes) -> bytes:
    image = bytearray(1024 + 16)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload) + 4)
    return bytes(image) + payload + struct.pack("<I", len(PVH_KERNEL))


@pytest.mark.parametrize("compress", [gzip.compress, lambda data: lzma.compress(data, check=lzma.CHECK_CRC32)])
def test_the_kernel_is_taken_out_of_a_bzimage(compress: object) -> None:
    assert callable(compress)
    assert direct_kernel(bzimage(compress(PVH_KERNEL))) == PVH_KERNEL


@pytest.mark.parametrize("image", [b"", bytes(2000), bzimage(b"unknown"), bzimage(gzip.compress(b"\x7fELF no note"))])
def test_what_qemu_could_not_enter_is_left_as_it_is(image: bytes) -> None:
    assert direct_kernel(image) is None


def test_an_archive_unpacks_to_what_was_put_in(tmp_path: Path) -> None:
    archive = Cpio()
    archive.file("usr/bin/tool", b"#!/bin/sh\n", 0o755)
    archive.symlink("bin", "usr/bin")
    archive.directory("empty", 0o700)
    assert "usr" in archive
    assert archive.pack() == archive.pack()
    if not Path("/usr/bin/cpio").exists():
        pytest.skip("no cpio here")
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive.pack(), cwd=tmp_path, check=True, timeout=10)
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "empty").is_dir()


def make_module(path: Path, depends: str, *aliases: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    strings = ["license=GPL", f"depends={depends}", *(f"alias={alias}" for alias in aliases), "name=x"]
    path.write_bytes(b"\x7fELF\0" + b"".join(text.encode() + b"\0" for text in strings))


def test_modules_come_with_what_they_need(tmp_path: Path) -> None:
    make_module(tmp_path / "net/card.ko", "bus-core,ring", "pci:v1*")
    make_module(tmp_path / "bus/bus_core.ko", "ring")
    make_module(tmp_path / "bus/ring.ko", "")
    make_module(tmp_path / "other.ko", "")
    found = modules.collect(tmp_path, ["card", "not_there"])
    assert set(found) == {"card", "bus_core", "ring"}
    assert modules.alias_index(found) == "alias pci:v1* card\n"
    lines = dict(line.split(":") for line in modules.dependency_index(found).splitlines())
    # The loader goes from the last to the first: what all need stands last.
    assert lines["card.ko"].split() == ["bus_core.ko", "ring.ko"]
    assert lines["ring.ko"] == ""


def test_compressed_modules_are_unpacked_and_missing_ones_named(tmp_path: Path) -> None:
    make_module(tmp_path / "a.ko", "b")
    (tmp_path / "b.ko.xz").write_bytes(lzma.compress(b"\0depends=\0"))
    assert modules.collect(tmp_path, ["a"])["b"].content == b"\0depends=\0"
    (tmp_path / "b.ko.xz").unlink()
    with pytest.raises(ToolError, match="b"):
        modules.collect(tmp_path, ["a"])


def test_sources_of_debian_only_and_each_once() -> None:
    listing = (
        "Debian|http://mirror/debian/|stable|main|bookworm\n"
        "Debian|http://mirror/debian/|stable|contrib|bookworm\n"
        "Debian|http://mirror/debian/|stable|main|bookworm\n"
        "Debian|http://mirror/security/|bookworm-security|main|bookworm-security\n"
        "Elsewhere|http://other/|x|main|x\n"
    )
    sources = debian.parse_sources(listing)
    assert sources.codename == "bookworm"
    assert sources.lines == (
        "deb http://mirror/debian/ stable main contrib",
        "deb http://mirror/security/ bookworm-security main",
    )
    with pytest.raises(ToolError, match="no Debian or Ubuntu"):
        debian.parse_sources("Elsewhere|http://other/|x|main|x\n")


@pytest.mark.parametrize("wrong", [{"size_mib": 100}, {"packages": ["--evil"]}, {"packages": ["a,b"]}, {"kernel": "x"}])
async def test_wrong_requests_are_refused_before_anything_is_made(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        await debian.build_debian(tmp_path / "image", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "image").exists()


def test_the_overlay_has_parents_before_children_and_belongs_to_root(tmp_path: Path) -> None:
    debian._write_overlay(tmp_path / "overlay.tar", "the-uuid")
    with tarfile.open(tmp_path / "overlay.tar") as archive:
        members = archive.getmembers()
        config = archive.extractfile("boot/grub/grub.cfg")
        assert config is not None
        assert b"root=UUID=the-uuid " in config.read()
    seen: set[str] = set()
    for member in members:
        assert (member.uid, member.gid) == (0, 0)
        assert str(Path(member.name).parent) in {".", *seen}
        seen.add(member.name)


def test_the_partition_covers_all_but_the_first_mib(tmp_path: Path) -> None:
    table = bootdisk._partition_table(1 << 30)
    assert len(table) == 512 - 440
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(440) + table)
    os.truncate(disk, 1 << 30)
    shown = subprocess.run(["/usr/sbin/sfdisk", "--dump", disk], capture_output=True, text=True, check=True, timeout=10)
    assert "start=        2048, size=     2095104, type=83, bootable" in shown.stdout


def test_guest_files_are_found_and_are_scripts() -> None:
    for name in ("vmware-rpctool", "vmtoolsd", "install-tools", "micro/start", "debian/setup"):
        assert guest_file(name).startswith(b"#!/bin/sh\n"), name


async def test_a_child_gives_its_output_and_its_error_lines_while_it_runs(tmp_path: Path) -> None:
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        (tmp_path / "heard").touch()

    script = 'echo one >&2; until [ -e "$0/heard" ]; do sleep 0.01; done; echo out'
    assert await run(["sh", "-c", script, tmp_path], timeout_s=10, on_error_line=heard) == "out\n"
    assert lines == ["one"]


async def test_a_failing_child_says_why() -> None:
    with pytest.raises(ToolError, match=r"sh failed \(3\): no way"):
        await run(["sh", "-c", "echo no way >&2; exit 3"], timeout_s=10)


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(ToolError, match="not installed"):
        await run(["no-such-program-here"], timeout_s=10)


async def test_a_child_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = 'sleep 1000 & echo $! >"$0"; wait'
    with pytest.raises(DeadlineError):
        await run(["sh", "-c", script, tmp_path / "pid"], timeout_s=0.3)
    await gone(int((tmp_path / "pid").read_text()))


async def test_a_cancelled_child_is_ended_with_its_children(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    script = 'sleep 1000 & echo $! >"$0/pid"; echo >"$0/ready"; wait'
    task = asyncio.create_task(run(["sh", "-c", script, tmp_path], timeout_s=60))
    await asyncio.to_thread((tmp_path / "ready").read_text)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int((tmp_path / "pid").read_text()))


async def test_a_child_that_is_cancelled_while_it_starts_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is busy it may have children of its own before asyncio is done with starting it."""
    os.mkfifo(tmp_path / "ready")
    start, started, go_on = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()

    async def slow(*argv: str, **more: Any) -> asyncio.subprocess.Process:
        child = await start(*argv, **more)
        started.set()
        await go_on.wait()
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    script = 'sleep 1000 & echo $! >"$0/pid"; echo >"$0/ready"; wait'
    task = asyncio.create_task(run(["sh", "-c", script, tmp_path], timeout_s=60))
    await started.wait()
    await asyncio.to_thread((tmp_path / "ready").read_text)
    task.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int((tmp_path / "pid").read_text()))


async def gone(pid: int) -> None:
    """It was signalled before; whoever reaps it may need a moment."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    await asyncio.wait_for(ended.wait(), 5)
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
