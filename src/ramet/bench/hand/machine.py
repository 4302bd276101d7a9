"""A QEMU that is started by hand, with the very hardware of the VM that it is compared with.

The command line is the one that Ramet's VM has, device by device, so that what differs is how a clone comes about and
not what is cloned.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ramet.bench.hand.monitor import GuestAgent, Monitor
from ramet.errors import DeadlineError, ToolError
from ramet.hypervisor.arguments.memory import RAM_ID
from ramet.hypervisor.blocknodes import DiskChain, LayerFile
from ramet.hypervisor.native import NativePaths
from ramet.hypervisor.plan import LaunchPlan, NicBackend, RunDir, build_plan
from ramet.hypervisor.version import Qemu
from ramet.model.machine import Accelerator, Machine
from ramet.model.units import MIB
from ramet.network import kernel

END_S = 30.0
_TOOL_S = 300.0


class Taps:
    """Network cards' other ends, in a network namespace of their own, which goes with the last of them."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "taps", initializer=kernel.unshare_network)
        self._count = 0

    def open(self) -> int:
        """A tap on no bridge; the caller closes its descriptor."""
        self._count += 1
        return self._thread.submit(kernel.create_tap, f"hand{self._count}", None).result()

    def close(self) -> None:
        self._thread.shutdown()


@dataclass
class Pattern:
    """What all QEMUs of a comparison have in common. Close it, or use it as a context manager: ends all of them."""

    machine: Machine
    qemu: Qemu
    accelerator: Accelerator
    native: NativePaths
    folder: Path
    """Everything made by hand is here; short, for sockets live in it."""
    bases: dict[str, Path | None]
    """Disk id -> the immutable qcow2 file under it; None for a disk that begins empty."""
    taps: Taps = field(default_factory=Taps)
    machines: list[HandMachine] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        for machine in reversed(self.machines):
            machine.end()
        self.taps.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def plan(self, name: str, chains: list[DiskChain], **options: Any) -> LaunchPlan:
        """The command line and descriptors of a QEMU; the caller closes it."""
        run_dir, log_dir = RunDir(self.folder / name), self.folder / f"{name}.log"
        run_dir.create()
        log_dir.mkdir(exist_ok=True)
        nics = [NicBackend(nic.id, None if nic.is_user_mode else self.taps.open()) for nic in self.machine.nics]
        forked = options.pop("forked", False)
        return build_plan(
            self.machine, self.qemu, self.accelerator, run_dir, log_dir, chains, nics, options.pop("native", None),
            forked=forked, seccomp=False, paused=True, **options,
        )  # fmt: skip

    def overlays(self, name: str, below: list[DiskChain] | None = None, *, make: bool = True) -> list[DiskChain]:
        """A fresh writable layer for each disk: over the bases, or over the chains of another machine.

        Without `make` the caller writes its file.
        """
        return [self._overlay(name, index, below, make) for index in range(len(self.machine.disks))]

    def _overlay(self, name: str, index: int, below: list[DiskChain] | None, make: bool) -> DiskChain:
        disk = self.machine.disks[index]
        path = self.folder / f"{name}-{disk.id}.qcow2"
        under: tuple[LayerFile, ...] = ()
        if below is not None:
            under = tuple(LayerFile(layer.id, layer.path, False) for layer in below[index].layers)
        elif (base := self.bases[disk.id]) is not None:
            under = (LayerFile(base.stem, base, False),)
        if make:
            make_overlay(path, under[0].path if under else None, disk.size_bytes)
        return DiskChain(disk, (LayerFile(path.stem, path, True), *under))

    def launch(
        self, name: str, chains: list[DiskChain], *, memory: dict[str, Any] | None = None, more: tuple[str, ...] = (),
        **options: Any,
    ) -> HandMachine:  # fmt: skip
        """Start one, paused. `memory` takes the place of its guest RAM's description."""
        plan = self.plan(name, chains, **options)
        with plan, plan.stdio() as (stdin, stdout, stderr):
            argv = [*(plan.argv if memory is None else with_memory(plan.argv, memory)), *more]
            process = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, env=plan.env, pass_fds=plan.table.fds,
                start_new_session=True, cwd="/",
            )  # fmt: skip
        process.returncode = 0  # its pidfd watches it, as it does those that are forked
        return self.born(name, process.pid, os.pidfd_open(process.pid), chains)

    def born(self, name: str, pid: int, pidfd: int, chains: list[DiskChain]) -> HandMachine:
        machine = HandMachine(self, name, pid, pidfd, chains)
        self.machines.append(machine)
        return machine

    def boot(self, name: str, **options: Any) -> HandMachine:
        """Start one and let it go."""
        machine = self.launch(name, self.overlays(name), **options)
        machine.monitor("cont")
        return machine


@dataclass
class HandMachine:
    """One QEMU that runs, ours to end."""

    pattern: Pattern
    name: str
    pid: int
    pidfd: int
    chains: list[DiskChain]
    _monitor: Monitor | None = None

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.pattern.folder / self.name)

    @property
    def monitor(self) -> Monitor:
        """Connects on first use, which waits until QEMU is up."""
        if self._monitor is None:
            self._monitor = Monitor(self.run_dir.qmp)
        return self._monitor

    @property
    def agent(self) -> GuestAgent:
        return GuestAgent(self.run_dir.agent)

    def end(self) -> None:
        """Kill it, and remove its writable layers."""
        if self.pidfd < 0:
            return
        if self._monitor is not None:
            self._monitor.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if not select.select([self.pidfd], [], [], END_S)[0]:
            raise DeadlineError(f"QEMU (process {self.pid}) did not end.")
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        self.pidfd = -1
        self.pattern.machines.remove(self)
        for chain in self.chains:
            chain.top.path.unlink(missing_ok=True)
        shutil.rmtree(self.run_dir.path, ignore_errors=True)
        shutil.rmtree(self.pattern.folder / f"{self.name}.log", ignore_errors=True)


def with_memory(argv: tuple[str, ...], memory: dict[str, Any]) -> list[str]:
    """The same command line with another description of guest RAM."""
    found = next(at for at, word in enumerate(argv) if word.startswith("{") and json.loads(word).get("id") == RAM_ID)
    return [*argv[:found], json.dumps({"id": RAM_ID, **memory}), *argv[found + 1 :]]


def file_memory(path: str, memory_mib: int, *, share: bool) -> dict[str, Any]:
    """Guest RAM as a file: its own, or, not shared, a private copy-on-write mapping of it."""
    size = memory_mib * MIB
    return {"qom-type": "memory-backend-file", "size": size, "mem-path": path, "share": share}


def plain_memory(memory_mib: int) -> dict[str, Any]:
    """Guest RAM as QEMU has it when nobody asks for anything."""
    return {"qom-type": "memory-backend-ram", "size": memory_mib * MIB}


def make_overlay(path: Path, base: Path | None, size_bytes: int) -> None:
    """An empty qcow2 file, over another one if given."""
    over = [] if base is None else ["-b", str(base), "-F", "qcow2"]
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", *over, str(path), str(size_bytes))


def run_tool(*argv: str) -> None:
    """Raises ToolError with what it said."""
    try:
        subprocess.run(argv, check=True, capture_output=True, timeout=_TOOL_S)
    except FileNotFoundError as exc:
        raise ToolError(f"There is no program {argv[0]}.") from exc
    except subprocess.CalledProcessError as exc:
        raise ToolError(f"{argv[0]} failed: {exc.stderr.decode(errors='replace').strip()[-300:]}") from exc


@contextlib.contextmanager
def memory_file() -> Iterator[int]:
    """A file in memory, for device state."""
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
