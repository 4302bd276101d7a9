"""The ways that need nothing new: booting, savevm and loadvm, and a template of memory in a file."""

from __future__ import annotations

import os
import time
from typing import Any, Self

from ramet.bench.hand.machine import HandMachine, Pattern, file_memory, plain_memory, run_tool
from ramet.errors import QemuError
from ramet.hypervisor.blocknodes import DiskChain
from ramet.hypervisor.native import create_ram
from ramet.model.units import MIB

_TAG = "bench"


def boot(pattern: Pattern, name: str, timeout_s: float) -> tuple[HandMachine, float]:
    """Start a plain QEMU; the machine, and milliseconds until its agent answered."""
    chains = pattern.overlays(name)
    began = time.monotonic()
    machine = pattern.launch(name, chains, memory=plain_memory(pattern.machine.memory_mib))
    machine.monitor("cont")
    machine.agent.wait(timeout_s)
    return machine, (time.monotonic() - began) * 1000


def save(machine: HandMachine) -> float:
    """savevm into its first disk; milliseconds, all of which the guest stands still."""
    began = time.monotonic()
    machine.monitor.hmp(f"savevm {_TAG}")
    return (time.monotonic() - began) * 1000


def load(saved: HandMachine, name: str) -> tuple[HandMachine, float]:
    """A copy of the disks, and a QEMU with -loadvm on them; milliseconds until it ran. `saved` must not write.

    An internal snapshot is in its file alone: an overlay does not show it, so the file is copied.
    """
    pattern = saved.pattern
    began = time.monotonic()
    chains = pattern.overlays(name, make=False)
    for old, new in zip(saved.chains, chains, strict=True):
        run_tool("cp", "--reflink=auto", "--sparse=auto", str(old.top.path), str(new.top.path))
    memory = plain_memory(pattern.machine.memory_mib)
    machine = pattern.launch(name, chains, memory=memory, more=("-loadvm", _TAG))
    machine.monitor("cont")
    running = (time.monotonic() - began) * 1000
    if machine.monitor("query-status")["status"] != "running":
        raise QemuError("A machine that was loaded with loadvm does not run.")
    return machine, running


class Template:
    """Memory in a file on tmpfs, device state without it, disks that are not written to any more."""

    def __init__(self, pattern: Pattern, name: str, timeout_s: float) -> None:
        """Boots the guest once, saves it, and ends it. Use it as a context manager: the file is memory."""
        self._pattern = pattern
        self._ram_fd = create_ram(pattern.machine.memory_mib * MIB)
        self._state_fd = os.memfd_create("state", os.MFD_CLOEXEC)
        try:
            self._save(name, timeout_s)
        except BaseException:
            self.close()
            raise

    def _save(self, name: str, timeout_s: float) -> None:
        machine = self._pattern.boot(name, memory=self._memory(share=True))
        machine.agent.wait(timeout_s)
        machine.monitor.ignore_shared()
        machine.monitor("stop")
        machine.monitor.save_state(self._state_fd)
        self._chains, machine.chains = machine.chains, []  # its disks stay
        machine.end()

    def _memory(self, *, share: bool) -> dict[str, Any]:
        path = f"/proc/{os.getpid()}/fd/{self._ram_fd}"
        return file_memory(path, self._pattern.machine.memory_mib, share=share)

    def close(self) -> None:
        os.close(self._ram_fd)
        os.close(self._state_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clone(self, name: str) -> tuple[HandMachine, float]:
        """A QEMU with a private mapping of the memory; milliseconds from its start until it ran."""
        chains = self._pattern.overlays(name, below=self._chains)
        began = time.monotonic()
        machine = self._pattern.launch(name, chains, memory=self._memory(share=False), incoming="defer")
        machine.monitor.ignore_shared()
        os.lseek(self._state_fd, 0, os.SEEK_SET)
        machine.monitor.load_state(self._state_fd)
        machine.monitor("cont")
        return machine, (time.monotonic() - began) * 1000


def bare_start(pattern: Pattern, name: str, chains: list[DiskChain]) -> HandMachine:
    """A QEMU of the same hardware, with nothing in it and nothing to boot, until its monitor answers."""
    memory = plain_memory(pattern.machine.memory_mib)
    machine = pattern.launch(name, chains, memory=memory, incoming="defer")
    machine.monitor("query-status")
    return machine
