"""One QEMU from a plan, without the rest of the house, and a guest of a kernel, busybox and a shell on its console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ramet.guest.images.cpio import Cpio
from ramet.guest.images.modules import collect
from ramet.hypervisor.blocknodes import DiskChain, LayerFile
from ramet.hypervisor.fork import NativePaths
from ramet.hypervisor.plan import NicBackend, RunDir, build_plan
from ramet.hypervisor.process import QemuProcess, QemuUser
from ramet.hypervisor.qmp import QmpSession
from ramet.hypervisor.version import Qemu
from ramet.model.machine import Accelerator, Disk, KernelBoot, Machine
from tests.guest.kernel_kit import GuestKernel

WAIT_S = 60.0
BOOT_S = 120.0
MIB = 1 << 20

_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_scsi", "virtio_console", "virtio_rng", "sr_mod")
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for round in 1 2 3 4 5; do for module in /modules/*.ko; do insmod $module 2>/dev/null; done; done
stty -F /dev/ttyS0 -echo
echo ready
export PS1= PS2=
exec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'
"""


def boot_files(directory: Path, kernel: GuestKernel) -> KernelBoot:
    """A kernel, and an initrd made for it."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    archive = Cpio()
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", Path(busybox).read_bytes(), 0o755)
    archive.file("init", _INIT.encode(), 0o755)
    for name, module in collect(kernel.modules, _MODULES).items():
        archive.file(f"modules/{name}.ko", module.content)
    initrd = directory / "initrd"
    initrd.write_bytes(archive.pack())
    words = "console=ttyS0 quiet panic=-1 mitigations=off"
    return KernelBoot(kernel=str(kernel.image), initrd=str(initrd), append=words)


def make_layer(directory: Path, layer_id: str, *, base: str | None = None, size_mib: int = 64) -> LayerFile:
    """An empty qcow2 file, over another one if given; only one without a child may be written to."""
    path = directory / f"{layer_id}.qcow2"
    over = ["-b", f"{base}.qcow2", "-F", "qcow2"] if base is not None else []
    size = [] if base is not None else [f"{size_mib}M"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *over, path, *size], check=True, timeout=WAIT_S)
    return LayerFile(layer_id, path, writable=True)


def read_only(layer: LayerFile) -> LayerFile:
    return LayerFile(layer.id, layer.path, writable=False)


def disk_of(disk_id: str, *layers: LayerFile, size_bytes: int = 64 * MIB) -> DiskChain:
    """A disk of these layers, topmost first; all below the first are immutable."""
    chain = (layers[0], *map(read_only, layers[1:]))
    return DiskChain(Disk(id=disk_id, layer=layers[0].id, size_bytes=size_bytes), chain)


@dataclass
class Running:
    """A QEMU that runs, and the session with it."""

    process: QemuProcess
    qmp: QmpSession
    run_dir: RunDir
    log_dir: Path
    machine: Machine

    @property
    def console_log(self) -> str:
        return (self.log_dir / "console.log").read_text(errors="replace")

    async def console_says(self, text: str, timeout_s: float = BOOT_S) -> None:
        """Wait until the guest has written `text` to its console."""
        async with asyncio.timeout(timeout_s):
            while text not in self.console_log:
                assert self.process.is_running, self.process.exit_reason()
                await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def shell(self) -> AsyncIterator[Shell]:
        reader, writer = await asyncio.open_unix_connection(self.run_dir.console)
        try:
            shell = Shell(reader, writer)
            await shell.run(":")  # past the shell's own words
            yield shell
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.qmp.close()
        if self.process.is_running:
            await self.process.end()
        self.process.close()


class Shell:
    """The guest's shell on its serial console."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._count = 0

    async def run(self, script: str) -> str:
        """What the script prints, its last exit status being 0."""
        self._count += 1
        mark = f"end-{self._count}"
        self._writer.write(f"{script}\necho {mark}=$?\n".encode())
        await self._writer.drain()
        output = ""
        async with asyncio.timeout(WAIT_S):
            while (found := re.search(rf"{mark}=(\d+)\r?\n", output)) is None:
                data = await self._reader.read(4096)
                assert data, f"the console ended after {output!r}"
                output += data.decode(errors="replace")
        assert found[1] == "0", output
        return output[: found.start()].replace("\r", "").strip()


async def launch(
    qemu: Qemu,
    directory: Path,
    machine: Machine,
    chains: Sequence[DiskChain] = (),
    *,
    native: NativePaths | None = None,
    user: QemuUser | None = None,
    **options: Any,
) -> Running:
    """Start a QEMU whose NICs are on user-mode networks. Use the answer as a context manager: it ends QEMU."""
    run_dir = RunDir(directory / "run")
    run_dir.create(user.uid if user else None, user.gid if user else None)
    nics = [NicBackend(nic.id, None) for nic in machine.nics]
    plan = build_plan(machine, qemu, Accelerator.TCG, run_dir, directory, chains, nics, native, forked=False, **options)
    process = await QemuProcess.launch(plan, user)
    return await connect(process, run_dir, directory, machine)


async def connect(process: QemuProcess, run_dir: RunDir, directory: Path, machine: Machine) -> Running:
    """The session with a QEMU that was just born; ends it when there is none to be had."""
    try:
        qmp = await QmpSession.connect(run_dir.qmp, WAIT_S, process=process)
        await qmp.configure_migration()
    except BaseException:
        process.kill()
        await process.wait_exit(WAIT_S)
        process.close()
        raise
    return Running(process, qmp, run_dir, directory, machine)


def locked_ranges(path: Path) -> int:
    """How many byte ranges of a file are locked."""
    inode = f":{path.stat().st_ino} "
    return sum(inode in line for line in Path("/proc/locks").read_text().splitlines())


def writable_descriptors(pid: int, path: Path) -> int:
    """How many descriptors of a process can write to a file."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry) == str(path):
                flags = int(Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split("flags:")[1].split()[0], 8)
                count += flags & os.O_ACCMODE != os.O_RDONLY
    return count
