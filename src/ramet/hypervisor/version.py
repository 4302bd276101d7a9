"""The QEMU on this host, and everything that differs between its versions 7.2 to 10.

What was learnt from running the binary (its devices, machine types, migration properties) is preferred over its
version number, because distributions build with options of their own. Code elsewhere asks a named property here and
never compares versions.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ramet.errors import DeadlineError, UnsupportedError
from ramet.hypervisor.elf import file_sha256, read_elf
from ramet.hypervisor.firmware import find_uefi

OLDEST = (7, 2, 0)
DEFAULT_BINARY = "qemu-system-x86_64"

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,resourcecontrol=deny"
"""No ``spawn=deny``: it would kill the fork that makes a clone."""

_INSTALL = "Install it: apt-get install qemu-system-x86."
_VERSION = re.compile(r"version (\d+)\.(\d+)(?:\.(\d+))?")
_MACHINE_TYPE = re.compile(r"^(pc-q35-\d+\.\d+)\s", re.MULTILINE)
_DEVICE = re.compile(r'^name "([^"]+)"', re.MULTILINE)
_PROPERTY = re.compile(r"^ {2}([a-z0-9-]+)=", re.MULTILINE)
_VENDOR = re.compile(r"^vendor_id\s*:\s*(\S+)", re.MULTILINE)
_ASK_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Qemu:
    """A QEMU binary that was asked what it can do."""

    binary: Path
    version: tuple[int, int, int]
    build_id: str
    """Changes whenever the program does: a fork must meet the program that the source runs."""
    machine_types: tuple[str, ...]
    """Versioned q35 types, newest first."""
    devices: frozenset[str]
    is_dynamic: bool
    interpreter: str | None = None
    """The dynamic loader, which a fork enters anew."""
    accelerators: frozenset[str] = frozenset({"tcg"})
    netdevs: frozenset[str] = frozenset()
    migration_properties: frozenset[str] = field(default=frozenset(), repr=False)
    has_sandbox: bool = True
    host_vendor: str = ""
    """Of the host's processor, as /proc/cpuinfo spells it."""
    firmware_code: Path | None = None
    firmware_vars: Path | None = None

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def default_machine_type(self) -> str:
        """The newest versioned type; a VM keeps the one that it was first started with."""
        return self.machine_types[0]

    @property
    def has_uefi(self) -> bool:
        return self.firmware_code is not None and self.firmware_vars is not None

    @property
    def has_user_network(self) -> bool:
        """False where it was built without libslirp, which stopped being bundled with 7.2."""
        return "user" in self.netdevs

    # -- quirks: one property each, named after what it decides ----------------------------------------------------

    @property
    def incoming_failure_is_survived(self) -> bool:
        """``migrate-incoming`` takes ``exit-on-error`` from 9.1; before, a refused state ends the process."""
        return self.version >= (9, 1, 0)

    @property
    def kvm_cpu(self) -> str:
        """The host's own processor. Before 10.1 QEMU passes on an Intel register, ARCH_CAPABILITIES, on AMD too, where
        a nested KVM may refuse it."""
        if self.host_vendor == "AuthenticAMD" and self.version < (10, 1, 0):
            return "host,migratable=on,arch-capabilities=off"
        return "host,migratable=on"

    @property
    def fdset_removal_waits_for_running(self) -> bool:
        """Until 9.1 ``remove-fd`` closed nothing while the guest was stopped (it asked runstate_is_running)."""
        return self.version < (9, 1, 0)

    @property
    def migration_globals(self) -> tuple[str, ...]:
        """``-global migration.…`` settings, under the names that this version has for them.

        No announcement: a clone that announced itself on its first run would do so with its source's address. No
        bandwidth limit: at the default of 128 MiB/s, VGA memory would be paced inside the stun. Migration events, so
        that nobody has to poll. The capability x-ignore-shared has no such property; it is set over QMP.
        """
        wanted = (("announce-rounds", "0"), ("max-bandwidth", str(1 << 40)), ("events", "on"))
        named = ((self._migration_property(name), value) for name, value in wanted)
        return tuple(f"migration.{name}={value}" for name, value in named if name is not None)

    def _migration_property(self, name: str) -> str | None:
        return next((known for known in (name, f"x-{name}") if known in self.migration_properties), None)


async def find_qemu(binary: str | None = None) -> Qemu:
    """Find QEMU (a name looked up in PATH, or a path) and ask it what it can do; takes some tenths of a second.

    Raises UnsupportedError, with the remedy, when there is none, it is older than 7.2, static, or has no q35 machine.
    """
    path = _locate(binary or DEFAULT_BINARY)
    elf = await asyncio.to_thread(read_elf, path)
    if elf.interpreter is None:
        raise UnsupportedError(
            f"{path} is a static program, so the library that forks VMs cannot be loaded into it.",
            hint="Install your distribution's dynamic QEMU: apt-get install qemu-system-x86.",
        )
    build_id = elf.build_id
    if build_id is None:
        build_id = await asyncio.to_thread(file_sha256, path)
    version = _parse_version(path, await _ask(path, "--version"))
    has_sandbox, machines = await _ask_machines(path)
    devices, accelerators, netdevs, migration = await asyncio.gather(
        *(_ask(path, *question) for question in _QUESTIONS)
    )
    uefi = find_uefi()
    return Qemu(
        binary=path,
        version=version,
        build_id=build_id,
        machine_types=_machine_types(path, machines),
        devices=frozenset(_DEVICE.findall(devices)),
        is_dynamic=True,
        interpreter=elf.interpreter,
        accelerators=frozenset(accelerators.split()) & {"tcg", "kvm"},
        netdevs=frozenset(netdevs.split()),
        migration_properties=frozenset(_PROPERTY.findall(migration)),
        has_sandbox=has_sandbox,
        host_vendor=_host_vendor(),
        firmware_code=uefi.code if uefi else None,
        firmware_vars=uefi.variables if uefi else None,
    )


_QUESTIONS = (
    ("-machine", "none", "-device", "help"),
    ("-accel", "help"),
    ("-machine", "none", "-netdev", "help"),
    ("-machine", "none", "-device", "migration,help"),
)


def _locate(binary: str) -> Path:
    found = shutil.which(binary)
    if found is None:
        raise UnsupportedError(f"There is no {binary} on this host.", hint=_INSTALL)
    return Path(found).resolve()


def _host_vendor() -> str:
    with suppress(OSError):
        match = _VENDOR.search(Path("/proc/cpuinfo").read_text())
        if match is not None:
            return match[1]
    return ""


def _parse_version(path: Path, text: str) -> tuple[int, int, int]:
    match = _VERSION.search(text)
    if match is None:
        raise UnsupportedError(f"{path} does not say which version of QEMU it is.", hint=_INSTALL)
    version = (int(match[1]), int(match[2]), int(match[3] or 0))
    if version < OLDEST:
        raise UnsupportedError(
            f"{path} is QEMU {'.'.join(map(str, version))}, which is too old.", hint="QEMU 7.2 or newer is needed."
        )
    return version


def _machine_types(path: Path, text: str) -> tuple[str, ...]:
    types = set(_MACHINE_TYPE.findall(text))
    if not types:
        raise UnsupportedError(f"{path} has no q35 machine.", hint=_INSTALL)
    return tuple(sorted(types, key=_machine_version, reverse=True))


def _machine_version(machine_type: str) -> tuple[int, ...]:
    return tuple(int(part) for part in machine_type.removeprefix("pc-q35-").split("."))


async def _ask_machines(path: Path) -> tuple[bool, str]:
    """Whether it was built with its seccomp filter, and its machines: one run says both, two where it has none."""
    with suppress(UnsupportedError):
        return True, await _ask(path, "-sandbox", SANDBOX, "-machine", "help")
    return False, await _ask(path, "-machine", "help")


async def _ask(path: Path, *arguments: str) -> str:
    """Standard output of a short run of QEMU. The child is reaped, and killed when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        path,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            out, err = await process.communicate()
    except TimeoutError as exc:
        raise DeadlineError(f"{path} did not answer within {_ASK_TIMEOUT_S:.0f} s.") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise UnsupportedError(f"{path} {' '.join(arguments)} failed: {err.decode(errors='replace').strip()[:300]}")
    return out.decode(errors="replace")
