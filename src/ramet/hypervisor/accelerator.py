"""KVM or emulation: decided by running a guest.

A /dev/kvm that opens is not a KVM that works: there are hosts, nested ones among them, where it creates VMs and then
hangs every ordinary kernel. So a Linux kernel is booted under KVM, as QEMU's own user, on the board that VMs have,
until it misses its root file system, which is a second's work for a KVM that works. The verdict holds for this boot of
the host and this build of QEMU.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.errors import DeadlineError
from ramet.hypervisor.plan import CONSOLE_LOG, RunDir, build_plan
from ramet.hypervisor.process import QemuProcess, QemuUser, boot_id
from ramet.hypervisor.version import Qemu
from ramet.model.machine import Accelerator, KernelBoot, Machine

KVM_DEVICE = Path("/dev/kvm")
CACHE_NAME = "accelerator.json"

_CACHE_FORMAT = 2  # 1: QEMU's user may have had root's group
_MAX_CACHE_BYTES = 65536
_BOOT_TIMEOUT_S = 8.0
_KILL_TIMEOUT_S = 10.0
# The last things a kernel without a root file system says: its processors, timers, interrupts and devices are up.
_SIGNS = (b"Unable to mount root", b"Cannot open root device", b"Run /init as init process")


@dataclass(frozen=True, slots=True)
class AcceleratorReport:
    """The verdict, in words for people, and what was tried on the way to it."""

    accelerator: Accelerator
    reason: str
    tried: tuple[str, ...] = ()


async def probe(
    qemu: Qemu,
    kernel: Path | None,
    cache_dir: Path,
    *,
    user: QemuUser | None = None,
    device: Path = KVM_DEVICE,
    timeout_s: float = _BOOT_TIMEOUT_S,
) -> AcceleratorReport:
    """Which accelerator VMs get on this host. Never fails, never leaves a process; at most about `timeout_s` long.

    `kernel` is the Linux kernel to try; None looks for one in /boot. The verdict of a trial is kept in `cache_dir`.
    """
    problem = await asyncio.to_thread(_device_problem, qemu, device)
    if problem is not None:
        return AcceleratorReport(Accelerator.TCG, problem)
    key = {"format": _CACHE_FORMAT, "boot_id": boot_id(), "build_id": qemu.build_id}
    cached = _read_cache(cache_dir, key)
    if cached is not None:
        return cached
    kernel = kernel or find_kernel()
    if kernel is None:
        return AcceleratorReport(
            Accelerator.TCG,
            "KVM is there, but no Linux kernel to try it with: build an image, then ask again",
            (f"{device} opens",),
        )
    failure = await _try_guest(qemu, kernel, user, timeout_s)
    tried = (f"{device} opens", f"{kernel} under KVM: {failure or 'boots'}")
    if failure is None:
        report = AcceleratorReport(Accelerator.KVM, "a guest runs under KVM", tried)
    else:
        report = AcceleratorReport(Accelerator.TCG, f"KVM does not run a guest here: {failure}", tried)
    with suppress(OSError):
        _write_cache(cache_dir, key, report)
    return report


def find_kernel(directory: Path = Path("/boot")) -> Path | None:
    """A Linux kernel that this process can read: the host's own, else the newest."""
    own = directory / f"vmlinuz-{os.uname().release}"
    others = sorted(directory.glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in (own, *others) if os.access(path, os.R_OK)), None)


def _device_problem(qemu: Qemu, device: Path) -> str | None:
    """Why KVM is out of the question before any trial."""
    if "kvm" not in qemu.accelerators:
        return "this QEMU was built without KVM"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return f"this host has no {device}: virtualization is off in its firmware, or not passed on to it"
        if exc.errno in (errno.EACCES, errno.EPERM):
            return f"{device} may not be opened: add this user to the group kvm"
        return f"{device} does not open: {exc.strerror}"
    return None


async def _try_guest(qemu: Qemu, kernel: Path, user: QemuUser | None, timeout_s: float) -> str | None:
    """Boot a kernel until it ends, having nothing to run. Returns why it did not, None when it did."""
    with tempfile.TemporaryDirectory(prefix="ramet-probe-") as name:
        directory = Path(name)
        run_dir = RunDir(directory / "run")
        run_dir.create()
        machine = Machine(
            name="kvm-probe",
            memory_mib=256,
            kernel=KernelBoot(kernel=str(kernel), append="console=ttyS0 panic=-1"),
        )
        try:
            plan = build_plan(machine, qemu, Accelerator.KVM, run_dir, directory, (), (), None, forked=False)
            process = await QemuProcess.launch(plan, user)
        except OSError as exc:
            return f"QEMU could not be started: {exc.strerror}"
        try:
            return await _watch(process, directory / CONSOLE_LOG, timeout_s)
        finally:
            await _end(process)


async def _watch(process: QemuProcess, console: Path, timeout_s: float) -> str | None:
    with suppress(DeadlineError):
        await process.wait_exit(timeout_s)
    output = console.read_bytes() if console.exists() else b""
    if any(sign in output for sign in _SIGNS):
        return None
    if process.is_running:
        said = "said nothing" if not output else "got stuck"
        return f"a Linux kernel {said} for {timeout_s:g} s"
    return process.exit_reason()


async def _end(process: QemuProcess) -> None:
    """Gone, whatever happens to the task meanwhile."""
    process.kill()
    try:
        with suppress(DeadlineError):
            await asyncio.shield(process.wait_exit(_KILL_TIMEOUT_S))
    finally:
        process.close()


def _read_cache(cache_dir: Path, key: dict[str, Any]) -> AcceleratorReport | None:
    try:
        with (cache_dir / CACHE_NAME).open("rb") as file:
            stored = json.loads(file.read(_MAX_CACHE_BYTES))
        if stored["key"] != key:
            return None
        return AcceleratorReport(Accelerator(stored["accelerator"]), str(stored["reason"]), tuple(stored["tried"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(cache_dir: Path, key: dict[str, Any], report: AcceleratorReport) -> None:
    cache_dir.mkdir(parents=True, exist_ok=True)
    content = {
        "key": key,
        "accelerator": report.accelerator.value,
        "reason": report.reason,
        "tried": list(report.tried),
    }
    temporary = cache_dir / f".{CACHE_NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(cache_dir / CACHE_NAME)
