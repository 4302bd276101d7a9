"""What this host has, what it lacks, and what to do about it.

Each check is a pure function of what `ramet.host.doctor_facts.gather` saw. A check is
'missing' when no VM can be made or cloned without it, 'warning' when something is weaker or slower than it could be.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ramet.host.doctor_facts import TOOLS, Facts, gather
from ramet.model.units import GIB, MIB, format_bytes
from ramet.model.views import CheckView
from ramet.network.privilege import OPEN_TUN, TUN

if TYPE_CHECKING:
    from ramet.host.settings import Settings
    from ramet.hypervisor.accelerator import AcceleratorReport
    from ramet.machine.rooms import Rooms

OLDEST_KERNEL = (5, 9)
"""The fork library needs close_range(2)."""

QEMU_TRIED = ((7, 2), (10, 99))
LONGEST_SOCKET = "run/0123456789ab/console"
SOCKET_PATH_MAX = 107
MAPS_PER_VM = 1024
"""A VM and its clones stay near 330 mappings, however often they were cloned."""

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21


async def examine(settings: Settings, rooms: Rooms, report: AcceleratorReport) -> list[CheckView]:
    """The daemon's checks: of its own QEMU, user and state, with the verdict of the accelerator's probe."""
    facts = await asyncio.to_thread(
        gather,
        settings.state_dir,
        qemu=settings.qemu_binary,
        qemu_user=settings.qemu_user,
        accelerator=report.accelerator.value,
        accelerator_reason=report.reason,
    )
    return checks(facts)


def examine_alone(state_dir: Path) -> list[CheckView]:
    """Where no daemon runs: the same checks, without the probe, which takes seconds. Blocking, less than a second."""
    return checks(gather(state_dir))


def checks(facts: Facts) -> list[CheckView]:
    """All checks, in the order in which they matter."""
    single: tuple[Callable[[Facts], CheckView], ...] = (
        check_arch,
        check_kernel,
        check_qemu,
        check_library,
        check_accelerator,
        check_guest_kernel,
        check_qemu_user,
        check_privileges,
        check_firmware,
        check_state_dir,
        check_disk,
        check_memory,
        check_overcommit,
        check_maps,
        check_memfd,
        check_open_files,
        check_cgroup,
        check_ksm,
    )
    return [*(check(facts) for check in single), *check_tools(facts)]


def _ok(name: str, found: str) -> CheckView:
    return CheckView(name=name, status="ok", found=found)


def _warning(name: str, found: str, remedy: str) -> CheckView:
    return CheckView(name=name, status="warning", found=found, remedy=remedy)


def _missing(name: str, found: str, remedy: str) -> CheckView:
    return CheckView(name=name, status="missing", found=found, remedy=remedy)


# -- the checks ----------------------------------------------------------------------------------------------------


def check_arch(facts: Facts) -> CheckView:
    if facts.arch == "x86_64":
        return _ok("architecture", facts.arch)
    return _missing("architecture", facts.arch, "The fork library is written for x86-64 so far; use such a host.")


def check_kernel(facts: Facts) -> CheckView:
    match = re.match(r"(\d+)\.(\d+)", facts.kernel)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version >= OLDEST_KERNEL:
        return _ok("kernel", facts.kernel)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return _missing("kernel", facts.kernel or "unknown", f"Linux {oldest} or newer is needed.")


def check_qemu(facts: Facts) -> CheckView:
    install = "Install it: apt install qemu-system-x86."
    if facts.qemu_path is None:
        return _missing("QEMU", "not found", install)
    found = f"{facts.qemu_version or 'unknown version'} ({facts.qemu_path})"
    if facts.qemu_static:
        return _missing("QEMU", f"{found}, a static program", f"Nothing can be preloaded into it. {install}")
    match = re.match(r"(\d+)\.(\d+)", facts.qemu_version or "")
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < QEMU_TRIED[0]:
        return _missing("QEMU", found, "QEMU 7.2 or newer is needed.")
    if version > QEMU_TRIED[1]:
        return _warning("QEMU", f"{found}, newer than any tried", "Prove it here: ramet doctor --selftest.")
    return _ok("QEMU", found)


def check_library(facts: Facts) -> CheckView:
    if facts.library_problem is not None:
        return _missing("fork library", facts.library_problem, "Install gcc and libc6-dev, and Ramet again.")
    if facts.preload_error is not None:
        return _missing("fork library", f"cannot be loaded: {facts.preload_error}", "Build Ramet on this host.")
    return _ok("fork library", "built, and it loads")


def check_accelerator(facts: Facts) -> CheckView:
    reason = f": {facts.accelerator_reason}" if facts.accelerator_reason else ""
    if facts.accelerator == "kvm":
        return _ok("accelerator", f"KVM{reason}")
    if facts.accelerator is None and facts.kvm_opens:
        return _warning(
            "accelerator", "/dev/kvm opens; not tried with a guest yet", "The daemon tries it when it must."
        )
    if facts.kvm_opens:
        remedy = "Guests are emulated in software, which is slower. Often such a host is a VM itself."
    elif facts.kvm_present:
        remedy = "Guests are emulated in software, which is slower. Add this user to the group kvm."
    else:
        remedy = "Guests are emulated in software, which is slower. Load kvm_intel or kvm_amd."
    return _warning("accelerator", f"TCG{reason}", remedy)


def check_guest_kernel(facts: Facts) -> CheckView:
    if facts.guest_kernels:
        return _ok("kernel for guests", facts.guest_kernels[0])
    return _warning(
        "kernel for guests",
        "none under /boot, or not readable",
        "The KVM probe and 'ramet image build micro' boot one. Install it: apt install linux-image-cloud-amd64.",
    )


def check_qemu_user(facts: Facts) -> CheckView:
    if facts.uid != 0:
        return _ok("QEMU user", "QEMU runs as you, as the daemon does")
    name = facts.qemu_user_name
    if facts.qemu_user:
        return _ok("QEMU user", name)
    return _warning(
        "QEMU user",
        f"there is no user {name}: QEMU runs as root",
        f"Make it: useradd --system --no-create-home --shell /usr/sbin/nologin {name}.",
    )


def check_privileges(facts: Facts) -> CheckView:
    needed = {"CAP_NET_ADMIN": _CAP_NET_ADMIN, "CAP_SYS_ADMIN": _CAP_SYS_ADMIN}
    lacking = [name for name, bit in needed.items() if not facts.capabilities >> bit & 1]
    if not facts.tun_opens:
        lacking.append("/dev/net/tun")
    if not lacking and not facts.tun_opens_to_all:
        found = f"namespaces and taps can be made; NAT cannot: {TUN} is not open to all users, and pasta runs as nobody"
        return _warning("privileges", found, OPEN_TUN)
    if not lacking:
        return _ok("privileges", "namespaces and taps can be made")
    return _warning(
        "privileges",
        f"lacking: {', '.join(lacking)}",
        "Port groups need them: run the daemon as root. Without, guests have user-mode networking (--nic user).",
    )


def check_firmware(facts: Facts) -> CheckView:
    if facts.uefi is not None:
        return _ok("UEFI firmware", facts.uefi)
    return _warning("UEFI firmware", "not found", "--firmware uefi needs it: apt install ovmf.")


def check_state_dir(facts: Facts) -> CheckView:
    longest = len(os.fsencode(f"{facts.state_dir}/{LONGEST_SOCKET}"))
    if facts.closed_parent is not None:
        return _missing(
            "state directory",
            f"{facts.state_dir} is out of reach for {facts.qemu_user_name}",
            f"Open the way to it (chmod o+x {facts.closed_parent}), or choose another: --state DIR.",
        )
    if longest <= SOCKET_PATH_MAX:
        return _ok("state directory", facts.state_dir)
    over = longest - SOCKET_PATH_MAX
    return _missing(
        "state directory",
        f"{facts.state_dir} is {over} bytes too long for the sockets in it",
        "Choose a shorter one: --state DIR.",
    )


def check_disk(facts: Facts) -> CheckView:
    if facts.disk_free_bytes is None:
        return _warning("disk space", "unknown", "The state directory's file system could not be asked.")
    found = f"{format_bytes(facts.disk_free_bytes)} free"
    if facts.disk_free_bytes < GIB:
        return _missing("disk space", found, "Make room: a guest whose disk cannot grow is paused.")
    if facts.disk_free_bytes < 8 * GIB:
        return _warning("disk space", found, "A few guests fill this; --state DIR takes another file system.")
    return _ok("disk space", found)


def check_memory(facts: Facts) -> CheckView:
    available, total = facts.memory_available_bytes, facts.memory_total_bytes
    if available is None or total is None:
        return _warning("memory", "unknown", "/proc/meminfo could not be read.")
    found = f"{format_bytes(available)} of {format_bytes(total)} available"
    if available < 512 * MIB:
        return _missing("memory", found, "Too little for any guest but the smallest; end something.")
    if available < 2 * GIB:
        return _warning("memory", found, "Enough for a few small guests.")
    return _ok("memory", found)


def check_overcommit(facts: Facts) -> CheckView:
    if facts.overcommit == 2:
        return _missing(
            "overcommit",
            "vm.overcommit_memory is 2: the kernel refuses to fork a process as large as a VM",
            "Set it to 0 or 1: sysctl vm.overcommit_memory=0.",
        )
    return _ok("overcommit", f"vm.overcommit_memory is {facts.overcommit}")


def check_maps(facts: Facts) -> CheckView:
    if facts.max_map_count is None or facts.max_map_count >= MAPS_PER_VM:
        return _ok("mappings", f"vm.max_map_count is {facts.max_map_count}")
    return _missing("mappings", f"vm.max_map_count is {facts.max_map_count}", "Set it: sysctl vm.max_map_count=65530.")


def check_memfd(facts: Facts) -> CheckView:
    if facts.memfd_noexec == 2:
        return _missing(
            "memfd",
            "vm.memfd_noexec is 2: the kernel refuses the memory files that name guest RAM",
            "Set it to 0 or 1: sysctl vm.memfd_noexec=1.",
        )
    return _ok("memfd", "memory files can be made")


def check_open_files(facts: Facts) -> CheckView:
    limit = facts.open_files_max
    if limit is None or limit >= 4096:
        return _ok("open files", f"up to {limit}" if limit is not None else "unlimited")
    return _warning("open files", f"up to {limit}", "Enough for about a hundred VMs; raise it: ulimit -Hn 65536.")


def check_cgroup(facts: Facts) -> CheckView:
    if facts.cgroup is None:
        return _warning("cgroups", "none are mounted", "VMs then have no limits of CPU and memory.")
    if not facts.cgroup_writable:
        return _warning(
            "cgroups", f"{facts.cgroup}, not writable", "VMs then have no limits; run the daemon as root or by systemd."
        )
    return _ok("cgroups", facts.cgroup)


def check_ksm(facts: Facts) -> CheckView:
    texts = {None: "not in this kernel", 0: "off", 1: "on, for memory that asks for it", 2: "off, everything unmerged"}
    return _ok("page merging (KSM)", texts.get(facts.ksm_run, str(facts.ksm_run)))


def check_tools(facts: Facts) -> Iterator[CheckView]:
    """One check for each program that is called."""
    for program, path in facts.tools.items():
        package, purpose, needed = TOOLS[program]
        if path is not None:
            yield _ok(program, path)
        else:
            judge = _missing if needed else _warning
            yield judge(program, "not found", f"{purpose[0].upper()}{purpose[1:]}. Install it: apt install {package}.")
