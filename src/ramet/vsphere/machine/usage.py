"""What VMs use of the host: memory by its ledger, processors by the kernel's clock of their process.

usage.sample(vm)                 # somebody reads it; quick
usage.memory(vm_id) -> MemoryRow or None
usage.cpu_mhz(vm_id) -> int
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ramet.model.machine import Vm
from ramet.model.memory import MemoryRow

if TYPE_CHECKING:
    from ramet.host.service import Host

FRESH_S = 2.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage:
    def __init__(self, host: Host, mhz: int) -> None:
        self._host = host
        self._mhz = mhz
        self._rows: dict[str, MemoryRow] = {}
        self._rows_at = -FRESH_S
        self._cpu: dict[str, tuple[int, float, int, int]] = {}
        """VM id -> pid, when its clock was read, the ticks it showed, MHz since the time before."""

    def sample(self, vm: Vm) -> None:
        now = time.monotonic()
        if now - self._rows_at >= FRESH_S:
            self._rows, self._rows_at = {row.id: row for row in self._host.memory.rows()}, now
            for gone in self._cpu.keys() - self._host.floor.machines.keys():
                del self._cpu[gone]
        if vm.process is None:
            self._cpu.pop(vm.id, None)
            return
        pid, at, ticks, mhz = self._cpu.get(vm.id, (0, 0.0, 0, 0))
        if pid != vm.process.pid or now - at >= FRESH_S:
            read = _ticks(vm.process.pid)
            if pid == vm.process.pid:
                mhz = int((read - ticks) / _TICKS_PER_S / (now - at) * self._mhz)
            self._cpu[vm.id] = (vm.process.pid, now, read, max(0, mhz))

    def memory(self, vm_id: str) -> MemoryRow | None:
        return self._rows.get(vm_id)

    def cpu_mhz(self, vm_id: str) -> int:
        return self._cpu.get(vm_id, (0, 0.0, 0, 0))[3]


def _ticks(pid: int) -> int:
    """User and system time of a process; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(words[11]) + int(words[12])
