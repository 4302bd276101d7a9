"""The verdict on KVM, with programs that stand for a QEMU whose guest boots, hangs, or does not start."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from ramet.hypervisor.accelerator import CACHE_NAME, AcceleratorReport, find_kernel, probe
from ramet.hypervisor.version import Qemu
from ramet.model.machine import Accelerator
from tests.unit.hypervisor.plan_kit import QEMU, open_fds

DEVICE = Path("/dev/null")
"""Opens, as a /dev/kvm would."""

CONSOLE = """#!/bin/sh
echo $$ >> {directory}/pids
for word; do
    case $word in fd=*opaque=console-log) fd=${{word#fd=}}; fd=${{fd%%,*}};; esac
done
{script}
"""


def qemu_that(directory: Path, script: str, accelerators: tuple[str, ...] = ("tcg", "kvm")) -> Qemu:
    """A QEMU that runs `script`; its console is /proc/self/fd/$fd."""
    path = directory / "qemu"
    path.write_text(CONSOLE.format(directory=directory, script=script))
    path.chmod(0o755)
    return dataclasses.replace(QEMU, binary=path, accelerators=frozenset(accelerators))


def is_gone(directory: Path) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in (directory / "pids").read_text().split())


async def verdict(qemu: Qemu, directory: Path, timeout_s: float = 20.0) -> AcceleratorReport:
    return await probe(qemu, Path("/dev/null"), directory, device=DEVICE, timeout_s=timeout_s)


async def test_a_kernel_that_misses_its_root_is_proof(tmp_path: Path) -> None:
    qemu = qemu_that(tmp_path, "echo 'Kernel panic: VFS: Unable to mount root fs' > /proc/self/fd/$fd")
    report = await verdict(qemu, tmp_path)
    assert (report.accelerator, report.reason) == (Accelerator.KVM, "a guest runs under KVM")
    assert is_gone(tmp_path)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 1000", "said nothing for 0.3 s"),
        ("echo 'Linux version 6' > /proc/self/fd/$fd; exec sleep 1000", "got stuck"),
        ("trap '' TERM; while :; do sleep 0.01; done", "said nothing"),
    ],
    ids=["mute", "stuck", "deaf"],
)
async def test_a_kernel_that_hangs_means_emulation_and_is_ended(script: str, words: str, tmp_path: Path) -> None:
    before = open_fds()
    report = await verdict(qemu_that(tmp_path, script), tmp_path, timeout_s=0.3)
    assert report.accelerator is Accelerator.TCG
    assert words in report.reason
    assert is_gone(tmp_path)
    assert open_fds() == before


async def test_a_qemu_that_cannot_start_says_why(tmp_path: Path) -> None:
    qemu = qemu_that(tmp_path, "echo 'qemu-system-x86_64: failed to initialize kvm: Permission denied' >&2; exit 1")
    report = await verdict(qemu, tmp_path)
    assert report.accelerator is Accelerator.TCG
    assert "failed to initialize kvm: Permission denied" in report.reason


async def test_a_program_that_is_gone_is_no_kvm(tmp_path: Path) -> None:
    qemu = dataclasses.replace(qemu_that(tmp_path, ""), binary=tmp_path / "gone")
    report = await verdict(qemu, tmp_path)
    assert "could not be started" in report.reason


async def test_the_verdict_is_kept_for_this_boot_and_build(tmp_path: Path) -> None:
    qemu = qemu_that(tmp_path, "exit 1")
    first = await verdict(qemu, tmp_path)
    assert await verdict(qemu, tmp_path) == first
    assert len((tmp_path / "pids").read_text().split()) == 1
    await verdict(dataclasses.replace(qemu, build_id="another"), tmp_path)
    assert len((tmp_path / "pids").read_text().split()) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 3}'])
async def test_a_damaged_verdict_is_asked_for_again(content: str, tmp_path: Path) -> None:
    (tmp_path / CACHE_NAME).write_text(content)
    report = await verdict(qemu_that(tmp_path, "exit 1"), tmp_path)
    assert report.tried


async def test_a_directory_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = await verdict(qemu_that(tmp_path, "exit 1"), tmp_path / "file")
    assert report.accelerator is Accelerator.TCG


async def test_without_the_device_nothing_is_tried(tmp_path: Path) -> None:
    qemu = qemu_that(tmp_path, "exit 1")
    report = await probe(qemu, None, tmp_path, device=tmp_path / "kvm")
    assert "virtualization is off" in report.reason
    assert not (tmp_path / "pids").exists()
    without = await probe(qemu_that(tmp_path, "", accelerators=("tcg",)), None, tmp_path, device=DEVICE)
    assert without.reason == "this QEMU was built without KVM"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
async def test_a_device_that_may_not_be_opened_names_the_group(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    report = await probe(qemu_that(tmp_path, "exit 1"), None, tmp_path, device=device)
    assert "group kvm" in report.reason


def test_the_hosts_own_kernel_is_preferred(tmp_path: Path) -> None:
    assert find_kernel(tmp_path) is None
    (tmp_path / "vmlinuz-9.9").touch()
    assert find_kernel(tmp_path) == tmp_path / "vmlinuz-9.9"
    own = tmp_path / f"vmlinuz-{os.uname().release}"
    own.touch()
    os.utime(own, (0, 0))
    assert find_kernel(tmp_path) == own
