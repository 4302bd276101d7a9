"""The birth of a QEMU, launched or forked: its command line, its descriptors, its environment.

A plan for a fork describes the same hardware, device by device and address by address, as the plan that launched its
source; they differ only on the host's side. Otherwise the device state of the source would not load.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.errors import InternalError, UnsupportedError
from ramet.hypervisor.arguments import cdrom, channels, disks, display, firmware, memory, misc, nics, pci
from ramet.hypervisor.arguments import machine as board
from ramet.hypervisor.arguments.nics import NicBackend
from ramet.hypervisor.arguments.options import listed
from ramet.hypervisor.blocknodes import DiskChain, LayerFile, distinct_layers, file_node, writable_opaque
from ramet.hypervisor.descriptors import DescriptorTable, SocketKind
from ramet.hypervisor.native import NativePaths, environment
from ramet.hypervisor.rundir import RunDir
from ramet.hypervisor.version import Qemu
from ramet.model.machine import Accelerator, Display, Firmware, Machine
from ramet.model.units import MIB

__all__ = ["DiskChain", "LaunchPlan", "LayerFile", "NicBackend", "RunDir", "build_plan"]

CONSOLE_LOG = "console.log"
QEMU_LOG = "qemu.log"
EVENT_LOG = "events.log"

QEMU_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""One heap for all threads of QEMU: each heap keeps what was freed in it, and its threads hardly ever allocate at once.
A fixed threshold: by default libc raises it to twice the largest block it has freed."""

_NEGOTIATE = b'{"execute":"qmp_capabilities"}\n'
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that a birth needs.

    Resource handling: the plan owns the descriptors in `table` until `close`. Who uses it closes it as soon as QEMU has
    them: `process.launch` does that itself.
    """

    argv: tuple[str, ...]
    table: DescriptorTable
    env: dict[str, str]
    name: str
    """Of the process, at most 15 characters."""
    log_dir: Path

    @contextmanager
    def stdio(self) -> Iterator[tuple[int, int, int]]:
        """Descriptors for 0, 1 and 2, closed afterwards.

        0 and 1 are a monitor that only reports: its input holds one negotiation, and is a pipe that never ends; its
        output is the event log, which tells how a guest ended while no daemon was listening. 2 is QEMU's own log.
        """
        opened: list[int] = []
        try:
            opened.append(_endless_pipe(_NEGOTIATE))
            for name in (EVENT_LOG, QEMU_LOG):
                opened.append(os.open(self.log_dir / name, _APPEND | os.O_CLOEXEC, 0o600))
            yield opened[0], opened[1], opened[2]
        finally:
            for fd in opened:
                os.close(fd)

    def close(self) -> None:
        self.table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def build_plan(
    machine: Machine,
    qemu: Qemu,
    accelerator: Accelerator,
    run_dir: RunDir,
    log_dir: Path,
    chains: Sequence[DiskChain],
    nic_backends: Sequence[NicBackend],
    native: NativePaths | None,
    *,
    forked: bool,
    generation: str | None = None,
    incoming: str | None = None,
    paused: bool = False,
    seccomp: bool = True,
    owner_uid: int | None = None,
    buffer_mib: int = board.TCG_BUFFER_MIB,
) -> LaunchPlan:
    """Open what a QEMU needs and write its command line.

    `accelerator` is KVM or TCG, never AUTO. `chains`: one per disk of the machine, the writable ones opened afresh
    here, which takes their lock only in QEMU. `nic_backends`: one per NIC; taps become the plan's. `native` None makes
    a VM that cannot be forked. `generation` is its VM generation id, None for a machine without. `incoming` ("defer")
    waits for a state; `paused` stops the guest at its first instruction. `owner_uid` may ask the library for forks,
    beside root and QEMU's own user (default: this process's). `buffer_mib`: room for translated code under emulation.

    Raises UnsupportedError when this QEMU lacks a device, UsageError for a path too long, OSError as it comes. On
    failure everything opened is closed, the taps too.
    """
    table = DescriptorTable(forked=forked)
    try:
        taps = {b.nic_id: None if b.tap_fd is None else table.add(b.tap_fd) for b in nic_backends}
        check_devices(machine, qemu)
        builder = _Builder(machine, qemu, accelerator, run_dir, log_dir, tuple(chains), table, generation, buffer_mib)
        argv = builder.hardware(taps)
        if not forked and incoming is None and machine.kernel is not None:
            argv += builder.kernel()
        if not forked and seccomp and qemu.has_sandbox:
            argv += misc.sandbox()
        argv += ["-S"] if paused else []
        argv += ["-incoming", incoming] if incoming is not None else []
        env = dict(QEMU_ENVIRONMENT)
        if native is not None:
            control = table.listen(run_dir.fork, SocketKind.SEQPACKET)
            uid = os.getuid() if owner_uid is None else owner_uid
            env |= environment(native, ram_fd=builder.ram_fd, control_fd=control, owner_uid=uid)
        return LaunchPlan((str(qemu.binary), *argv), table, env, misc.process_name(machine), log_dir)
    except BaseException:
        table.close()
        raise


def check_devices(machine: Machine, qemu: Qemu) -> None:
    """Raises UnsupportedError, with the remedy, when this host's QEMU cannot be this machine."""
    drivers = [nics.DRIVERS[nic.model] for nic in machine.nics]
    if machine.display is not Display.NONE:
        drivers.append(display.DRIVERS[machine.display])
    for driver in drivers:
        if driver not in qemu.devices:
            raise UnsupportedError(f"{qemu.binary} was built without {driver}.", hint="Choose another model.")
    if any(nic.is_user_mode for nic in machine.nics) and not qemu.has_user_network:
        raise UnsupportedError(f"{qemu.binary} was built without user-mode networking.", hint="Use a port group.")
    if machine.firmware is Firmware.UEFI and not qemu.has_uefi:
        raise UnsupportedError("There is no UEFI firmware on this host.", hint="Install it: apt-get install ovmf.")
    if machine.machine_type is not None and machine.machine_type not in qemu.machine_types:
        raise UnsupportedError(
            f"QEMU {qemu.version_text} no longer has the machine type {machine.machine_type}.",
            hint="Restart the VM from power-off with a newer machine type.",
        )


@dataclass
class _Builder:
    """Opens descriptors in a fixed order while it writes the command line."""

    machine: Machine
    qemu: Qemu
    accelerator: Accelerator
    run_dir: RunDir
    log_dir: Path
    chains: tuple[DiskChain, ...]
    table: DescriptorTable
    generation: str | None = None
    buffer_mib: int = board.TCG_BUFFER_MIB
    ram_fd: int = -1
    _sets: int = 0

    def hardware(self, taps: dict[str, int | None]) -> list[str]:
        machine = self.machine
        self.ram_fd = self.table.ram_file(machine.memory_mib * MIB)
        flash, flash_argv = self._flash()
        return [
            *misc.behaviour(machine),
            *board.board(machine, self.qemu, flash=flash),
            *board.processor(machine, self.qemu, self.accelerator, self.buffer_mib),
            *memory.ram(machine, self.ram_fd),
            *misc.identity(machine),
            *misc.generation(self.qemu, self.generation),
            *board.clock(),
            *board.endings(machine),
            *firmware.boot_order(),
            *misc.migration(self.qemu),
            *flash_argv,
            *self._monitors(),
            *self._channels(),
            *pci.root_ports(machine),
            *misc.random_generator(),
            *memory.balloon(),
            *self._disks(),
            *self._cdroms(),
            *nics.arguments(machine.nics, taps),
            *display.arguments(machine, self.run_dir.vnc),
        ]

    def kernel(self) -> list[str]:
        boot = self.machine.kernel
        assert boot is not None
        initrd = self._file_for_qemu(Path(boot.initrd)) if boot.initrd else None
        return firmware.kernel(self.machine, self._file_for_qemu(Path(boot.kernel)), initrd)

    def _file_for_qemu(self, path: Path) -> str:
        """A path that QEMU can open whatever its user. Opening /proc/self/fd/N asks the file's own permissions and not
        those of the directories above, so a copy in memory is needed only of a private file."""
        if path.stat().st_mode & 0o004 or os.geteuid() != 0:
            return f"/proc/self/fd/{self.table.open(path, os.O_RDONLY)}"
        return f"/proc/self/fd/{self.table.blob(path.name, path.read_bytes())}"

    def _monitors(self) -> list[str]:
        return [
            *channels.monitor("qmp", self.table.listen(self.run_dir.qmp)),
            *channels.monitor("stun", self.table.listen(self.run_dir.stun)),
            *channels.event_log(),
        ]

    def _channels(self) -> list[str]:
        log_set, log = self._add_set({"console-log": self.table.open(self.log_dir / CONSOLE_LOG, _APPEND)})
        agent, rpc = self.table.listen(self.run_dir.agent), self.table.listen(self.run_dir.rpc)
        console = channels.console(self.table.listen(self.run_dir.console), log_set)
        return [*log, *console, *channels.guest_channels(agent, rpc)]

    def _disks(self) -> list[str]:
        devices = [chain for chain in self.chains if not chain.disk.is_efivars]
        return [*self._nodes(devices), *disks.devices(devices)]

    def _flash(self) -> tuple[dict[str, str], list[str]]:
        if self.machine.firmware is not Firmware.UEFI:
            return {}, []
        variables = next((chain for chain in self.chains if chain.disk.is_efivars), None)
        if variables is None or self.qemu.firmware_code is None:
            raise InternalError(f"{self.machine.name} boots with UEFI and has no disk for its variables.")
        code_set, argv = self._add_set({"firmware": self.table.open(self.qemu.firmware_code, os.O_RDONLY)})
        return firmware.flash(variables), [*argv, *firmware.code(code_set), *self._nodes([variables])]

    def _nodes(self, chains: Sequence[DiskChain]) -> list[str]:
        argv: list[str] = []
        sets: dict[str, int] = {}
        for layer, _ in distinct_layers(chains):
            # Both for a writable layer: it is opened read-only again when it becomes a backing file for good.
            fds = {file_node(layer.id): self.table.open(layer.path, os.O_RDONLY)}
            if layer.writable:
                fds[writable_opaque(layer.id)] = self.table.open(layer.path, os.O_RDWR)
            sets[layer.id], added = self._add_set(fds)
            argv += added
        return [*argv, *disks.nodes(chains, sets)]

    def _cdroms(self) -> list[str]:
        argv: list[str] = []
        sets = []
        for index, path in enumerate(self.machine.cdroms):
            number, added = self._add_set({f"cdrom{index}": self.table.open(Path(path), os.O_RDONLY)})
            sets.append(number)
            argv += added
        return [*argv, *cdrom.arguments(sets)]

    def _add_set(self, fds: dict[str, int]) -> tuple[int, list[str]]:
        """A descriptor set; each descriptor has a label, by which ``query-fdsets`` shows what it is."""
        self._sets += 1
        argv: list[str] = []
        for opaque, fd in fds.items():
            argv += listed("-add-fd", fd=fd, set=self._sets, opaque=opaque)
        return self._sets, argv


def _endless_pipe(content: bytes) -> int:
    """A pipe with `content` in it, open for reading and writing at once: its reader never sees an end."""
    reader, writer = os.pipe()
    try:
        both = os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(reader)
        os.close(writer)
    os.write(both, content)
    return both
