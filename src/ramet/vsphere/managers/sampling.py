"""What performance counters are made of, read every 20 seconds while the surface is open, for VMs that are on.

series = Series(world); await series.run()       # until cancelled
await series.sample()                    # once
series.of("vm-17") -> Samples or None      # the last hour

A look costs three small files of /proc for each VM, in one thread, and one for all taps.
"""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from ramet.errors import RametError
from ramet.model.memory import MemoryCounters, MemoryRow
from ramet.model.units import MIB
from ramet.vsphere import ids
from ramet.vsphere.core.world import World
from ramet.vsphere.inventory.host_facts import HostFacts, HostMeter
from ramet.vsphere.managers.counters import Reading, numbers

if TYPE_CHECKING:
    from ramet.machine.live import LiveMachine

log = structlog.stdlib.get_logger(__name__)

INTERVAL_S = 20
KEPT = 180
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SECTOR = 512


@dataclass
class Samples:
    """Of one VM, or of the host: Unix times, and the counters' numbers at each."""

    last: Reading | None = None
    pid: int = 0
    kept: deque[tuple[float, array[int]]] = field(default_factory=lambda: deque(maxlen=KEPT))


class Series:
    def __init__(self, world: World) -> None:
        self._world = world
        self._samples: dict[str, Samples] = {}

    def of(self, moid: str) -> Samples | None:
        return self._samples.get(moid)

    async def run(self) -> None:
        while True:
            await self.sample()
            await asyncio.sleep(INTERVAL_S)

    async def sample(self) -> None:
        """Everything once."""
        host, at = self._world.host, time.time()
        machines = [live for live in host.floor.shown() if live.vm.process is not None]
        taps = await self._traffic()
        rows = {row.id: row for row in host.memory.rows()}
        pids = [(live.vm.process.pid if live.vm.process else 0) for live in machines]
        found = await asyncio.to_thread(lambda: ([_read_process(pid) for pid in pids], _read_host()))
        self._forget({ids.vm_moid(live.id) for live in machines} | {ids.HOST})
        for live, pid, reading in zip(machines, pids, found[0], strict=True):
            self._note_machine(live, pid, _with_traffic(reading, live, taps), rows.get(live.id), at)
        self._note_host(_host_traffic(found[1], taps, machines), list(rows.values()), at)

    async def _traffic(self) -> dict[str, tuple[int, int]]:
        try:
            return await self._world.host.floor.rooms.networks.traffic()
        except (RametError, OSError) as exc:
            log.debug("the taps' counters were not read", error=str(exc))
            return {}

    def _forget(self, present: set[str]) -> None:
        for gone in self._samples.keys() - present:
            del self._samples[gone]

    def _note_machine(self, live: LiveMachine, pid: int, now: Reading, row: MemoryRow | None, at: float) -> None:
        samples = self._samples.setdefault(ids.vm_moid(live.id), Samples())
        before = samples.last if samples.pid == pid else None
        mhz = self._world.part(HostFacts).cpu_mhz
        values = numbers(before, now, row, live.vm.machine.vcpus * mhz, mhz)
        samples.last, samples.pid = now, pid
        samples.kept.append((at, values))

    def _note_host(self, now: Reading, rows: list[MemoryRow], at: float) -> None:
        facts, samples = self._world.part(HostFacts), self._samples.setdefault(ids.HOST, Samples())
        used = self._world.part(HostMeter).sample().memory_mb * MIB
        values = numbers(samples.last, now, _sums(rows), facts.capacity_mhz, facts.cpu_mhz, (facts.memory_bytes, used))
        samples.kept.append((at, values))
        samples.last = now


def _sums(rows: list[MemoryRow]) -> MemoryCounters:
    return MemoryCounters(**{name: sum(getattr(row, name) for row in rows) for name in MemoryCounters.model_fields})


def _with_traffic(reading: Reading, live: LiveMachine, taps: dict[str, tuple[int, int]]) -> Reading:
    own = [taps[name] for name in live.taps.values() if name in taps]
    return _traffic_in(reading, own)


def _host_traffic(reading: Reading, taps: dict[str, tuple[int, int]], machines: list[LiveMachine]) -> Reading:
    """What guests send and get: the host's own interfaces are not the VMs' business."""
    return _traffic_in(reading, [taps[name] for live in machines for name in live.taps.values() if name in taps])


def _traffic_in(reading: Reading, counted: list[tuple[int, int]]) -> Reading:
    return Reading(
        at=reading.at,
        cpu_s=reading.cpu_s,
        read_bytes=reading.read_bytes,
        written_bytes=reading.written_bytes,
        received_bytes=sum(received for received, _ in counted),
        sent_bytes=sum(sent for _, sent in counted),
        uptime_s=reading.uptime_s,
    )


# -- /proc, in a thread ------------------------------------------------------------------------------------------------


def _read_process(pid: int) -> Reading:
    """Of a QEMU; nothing of one that is gone."""
    at = time.monotonic()
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return Reading(at)
    read, written = _read_io(pid)
    uptime = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(words[19]) / _TICKS_PER_S)
    return Reading(
        at=at,
        cpu_s=(int(words[11]) + int(words[12])) / _TICKS_PER_S,
        read_bytes=read,
        written_bytes=written,
        uptime_s=uptime,
    )


def _read_io(pid: int) -> tuple[int | None, int | None]:
    """The kernel tells it to root and to the process's own user only."""
    try:
        lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return int(lines["read_bytes"]), int(lines["write_bytes"])
    except (OSError, ValueError, KeyError):
        return None, None


def _read_host() -> Reading:
    at = time.monotonic()
    words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    ticks = [int(word) for word in words[:8]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    read, written = _read_disks()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return Reading(at=at, cpu_s=busy / _TICKS_PER_S, read_bytes=read, written_bytes=written, uptime_s=uptime)


def _read_disks() -> tuple[int, int]:
    """All disks with hardware, or a hypervisor, behind them: what is made of others would count twice."""
    read = written = 0
    for folder in Path("/sys/block").iterdir():
        if (folder / "device").exists():
            words = (folder / "stat").read_text().split()
            read, written = read + int(words[2]) * _SECTOR, written + int(words[6]) * _SECTOR
    return read, written
