"""What `ramet.host.doctor` judges: the facts about this host, and the looking."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import re
import resource
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ramet.errors import RametError
from ramet.hypervisor.elf import read_elf
from ramet.hypervisor.firmware import find_uefi
from ramet.hypervisor.native import library, library_problem
from ramet.network import privilege

QEMU_USER = "ramet-qemu"
"""QEMU's own system user, where the daemon is root, unless the settings name another."""

_PROBE_TIMEOUT_S = 10.0

TOOLS = {
    "qemu-img": ("qemu-utils", "images are imported and disks are exported, grown and flattened with it", True),
    "dnsmasq": ("dnsmasq-base", "port groups with --dhcp need it", False),
    "pasta": ("passt", "port groups with --nat need it", False),
    "nft": ("nftables", "isolation of port groups needs it", False),
    "mmdebstrap": ("mmdebstrap", "'ramet image build debian' needs it", False),
    "busybox": ("busybox-static", "'ramet image build micro' needs it", False),
    "ssh": ("openssh-client", "'ramet ssh' needs it", False),
}
"""Program: its Debian package, what for, and whether nothing works without it."""


@dataclass(frozen=True)
class Facts:
    """What was seen; None where it could not be looked at."""

    kernel: str = ""
    arch: str = ""
    qemu_path: str | None = None
    qemu_version: str | None = None
    qemu_static: bool = False
    library_problem: str | None = None
    preload_error: str | None = None
    kvm_present: bool = False
    kvm_opens: bool = False
    accelerator: str | None = None
    """'kvm' or 'tcg' as the probe decided; None before it ran."""
    accelerator_reason: str = ""
    guest_kernels: tuple[str, ...] = ()
    """Kernels that the probe could boot."""
    uid: int = 0
    qemu_user_name: str = QEMU_USER
    qemu_user: bool = False
    """Whether it exists."""
    capabilities: int = 0
    tun_opens: bool = False
    tun_opens_to_all: bool = False
    tools: dict[str, str | None] = field(default_factory=dict)
    uefi: str | None = None
    state_dir: str = ""
    closed_parent: str | None = None
    """The folder on the way to the state directory through which QEMU's own user may not pass."""
    disk_free_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    overcommit: int | None = None
    cgroup: str | None = None
    """'v2', 'v1' or 'hybrid'."""
    cgroup_writable: bool = False
    ksm_run: int | None = None
    max_map_count: int | None = None
    memfd_noexec: int | None = None
    open_files_max: int | None = None


def gather(
    state_dir: Path,
    *,
    qemu: str = "qemu-system-x86_64",
    qemu_user: str = QEMU_USER,
    accelerator: str | None = None,
    accelerator_reason: str = "",
) -> Facts:
    """Look at the host. Blocking; raises nothing. The accelerator's verdict is the caller's to know."""
    # A daemon started by hand or by cron may lack the folders of administrators' programs in its PATH.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    binary = shutil.which(qemu, path=path)
    total, available = _memory()
    cgroup, cgroup_writable = _cgroup()
    uefi = find_uefi()
    problem = library_problem()
    return Facts(
        kernel=platform.release(),
        arch=platform.machine(),
        qemu_path=binary,
        qemu_version=_qemu_version(binary),
        qemu_static=_is_static(binary),
        library_problem=problem,
        preload_error=None if problem else _preload_error(),
        kvm_present=Path("/dev/kvm").exists(),
        kvm_opens=_opens("/dev/kvm"),
        accelerator=accelerator,
        accelerator_reason=accelerator_reason,
        guest_kernels=_guest_kernels(),
        uid=os.geteuid(),
        qemu_user_name=qemu_user,
        qemu_user=_user_exists(qemu_user),
        capabilities=_capabilities(),
        tun_opens=_opens(str(privilege.TUN)),
        tun_opens_to_all=privilege.is_open_to_all(),
        tools={program: shutil.which(program, path=path) for program in TOOLS},
        uefi=str(uefi.code) if uefi else None,
        state_dir=str(state_dir),
        closed_parent=_closed_parent(state_dir, qemu_user),
        disk_free_bytes=_disk_free(state_dir),
        memory_available_bytes=available,
        memory_total_bytes=total,
        overcommit=_number("/proc/sys/vm/overcommit_memory"),
        cgroup=cgroup,
        cgroup_writable=cgroup_writable,
        ksm_run=_number("/sys/kernel/mm/ksm/run"),
        max_map_count=_number("/proc/sys/vm/max_map_count"),
        memfd_noexec=_number("/proc/sys/vm/memfd_noexec"),
        open_files_max=_open_files_max(),
    )


def _run(argv: list[str], **env: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            argv,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _qemu_version(binary: str | None) -> str | None:
    done = _run([binary, "--version"]) if binary else None
    match = re.search(r"version (\d+\.\d+(?:\.\d+)?)", done.stdout) if done else None
    return match[1] if match else None


def _is_static(binary: str | None) -> bool:
    if binary is None:
        return False
    with contextlib.suppress(OSError, RametError):
        return read_elf(Path(binary).resolve()).interpreter is None
    return False


def _preload_error() -> str | None:
    """ld.so reports on stderr what it cannot preload, and runs the program without it."""
    try:
        path = library().library
    except RametError as error:
        return error.message
    done = _run(["/bin/true"], LD_PRELOAD=str(path))
    if done is None:
        return "the probe did not run"
    return done.stderr.strip() or (None if done.returncode == 0 else f"exit code {done.returncode}")


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _guest_kernels() -> tuple[str, ...]:
    found = [str(path) for path in Path("/boot").glob("vmlinuz-*") if os.access(path, os.R_OK)]
    return tuple(sorted(found, reverse=True))


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _capabilities() -> int:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", _text("/proc/self/status"), re.MULTILINE)
    return int(match[1], 16) if match else 0


def _closed_parent(state_dir: Path, qemu_user: str) -> str | None:
    """Judged by permission bits for others; None as well where QEMU is not to have a user of its own."""
    if os.geteuid() != 0 or not _user_exists(qemu_user):
        return None
    for path in reversed(state_dir.parents):
        with contextlib.suppress(OSError):
            if not path.stat().st_mode & stat.S_IXOTH:
                return str(path)
    return None


def _disk_free(state_dir: Path) -> int | None:
    """Of the file system that the directory is, or will be, on."""
    for path in (state_dir, *state_dir.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(path).free
    return None


def _memory() -> tuple[int | None, int | None]:
    """Total and available bytes."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE))
    sizes = [int(found[key]) << 10 if key in found else None for key in ("MemTotal", "MemAvailable")]
    return sizes[0], sizes[1]


def _cgroup() -> tuple[str | None, bool]:
    """Which hierarchy, and whether groups can be made in it."""
    kinds = {kind: where for where, kind in re.findall(r"^\S+ (\S+) (cgroup2?) ", _text("/proc/self/mounts"), re.M)}
    if not kinds:
        return None, False
    name = "hybrid" if len(kinds) == 2 else ("v2" if "cgroup2" in kinds else "v1")
    return name, all(os.access(where, os.W_OK) for where in kinds.values())


def _open_files_max() -> int | None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
