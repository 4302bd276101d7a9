"""This host, as the kernel describes it: read once when the surface opens, and what changes, now and then.

facts = await asyncio.to_thread(read_host)      # HostFacts, for good
meter.sample() -> HostLoad                      # processors and memory in use; at most every two seconds anew
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from ramet.model.units import MIB
from ramet.vsphere.inventory.cpu_features import Processor, processor_of

FRESH_S = 2.0
_DMI = Path("/sys/class/dmi/id")
_NET = Path("/sys/class/net")
_HOSTS = uuid.UUID("b4c1f0f6-35a2-5c44-8a8f-6a3f0a1d2c9e")


@dataclass(frozen=True)
class HostNic:
    """A network interface with hardware behind it, or the only ones there are."""

    name: str
    mac: str
    speed_mbit: int | None
    driver: str
    pci: str


@dataclass(frozen=True)
class HostFacts:
    name: str
    uuid: str
    vendor: str
    model: str
    serial: str
    bios_version: str
    bios_vendor: str
    cpu_model: str
    cpu_vendor: str
    cpu_mhz: int
    packages: int
    cores: int
    threads: int
    memory_bytes: int
    booted_at: float
    kernel: str
    nics: tuple[HostNic, ...]
    numa_nodes: int
    cpu: Processor

    @property
    def capacity_mhz(self) -> int:
        return self.cores * self.cpu_mhz


@dataclass(frozen=True)
class HostLoad:
    cpu_mhz: int = 0
    memory_mb: int = 0


def read_host() -> HostFacts:
    """Blocking, some milliseconds."""
    cpus = _cpus(_text(Path("/proc/cpuinfo")))
    packages = len({cpu.get("physical id", "0") for cpu in cpus}) or 1
    cores = len({(cpu.get("physical id", "0"), cpu.get("core id", str(i))) for i, cpu in enumerate(cpus)}) or 1
    first = cpus[0] if cpus else {}
    machine_id = _text(Path("/etc/machine-id")) or socket.gethostname()
    return HostFacts(
        name=socket.getfqdn() if "." in socket.getfqdn() else socket.gethostname(),
        uuid=_text(_DMI / "product_uuid").lower() or str(uuid.uuid5(_HOSTS, machine_id)),
        vendor=_text(_DMI / "sys_vendor") or "unknown",
        model=_text(_DMI / "product_name") or os.uname().machine,
        serial=_text(_DMI / "product_serial"),
        bios_version=_text(_DMI / "bios_version") or "unknown",
        bios_vendor=_text(_DMI / "bios_vendor") or "unknown",
        cpu_model=first.get("model name", os.uname().machine),
        cpu_vendor={"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(first.get("vendor_id", ""), "unknown"),
        cpu_mhz=_mhz(first),
        packages=packages,
        cores=cores,
        threads=len(cpus) or 1,
        memory_bytes=_meminfo()["MemTotal"],
        booted_at=_booted_at(),
        kernel=os.uname().release,
        nics=tuple(_nics()),
        numa_nodes=len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        cpu=processor_of(first),
    )


class HostMeter:
    """What is in use now. Reads two small files of /proc, which never block."""

    def __init__(self, facts: HostFacts) -> None:
        self._facts = facts
        self._at = 0.0
        self._ticks = _cpu_ticks()
        self.load = HostLoad()

    def sample(self) -> HostLoad:
        now = time.monotonic()
        if now - self._at >= FRESH_S:
            before, self._ticks, self._at = self._ticks, _cpu_ticks(), now
            busy, whole = self._ticks[0] - before[0], self._ticks[1] - before[1]
            memory = _meminfo()
            self.load = HostLoad(
                cpu_mhz=int(self._facts.capacity_mhz * busy / whole) if whole > 0 else self.load.cpu_mhz,
                memory_mb=(memory["MemTotal"] - memory["MemAvailable"]) // MIB,
            )
        return self.load


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # some of it is for root alone
        return ""


def _cpus(text: str) -> list[dict[str, str]]:
    blocks = (block.splitlines() for block in text.split("\n\n"))
    pairs = [[line.partition(":")[::2] for line in block if ":" in line] for block in blocks]
    return [found for block in pairs if "processor" in (found := {key.strip(): value.strip() for key, value in block})]


def _mhz(cpu: dict[str, str]) -> int:
    highest = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"))
    if highest.isdigit():
        return int(highest) // 1000
    try:
        return max(1, int(float(cpu.get("cpu MHz", "1000"))))
    except ValueError:
        return 1000


def _meminfo() -> dict[str, int]:
    """Bytes."""
    found = {"MemTotal": 0, "MemAvailable": 0}
    for line in _text(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found


def _cpu_ticks() -> tuple[int, int]:
    """Busy, and all, since the boot."""
    ticks = [int(word) for word in _text(Path("/proc/stat")).splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _booted_at() -> float:
    match = re.search(r"^btime (\d+)$", _text(Path("/proc/stat")), re.MULTILINE)
    return float(match[1]) if match else time.time()


def _nics() -> list[HostNic]:
    names = sorted(path.name for path in _NET.iterdir() if path.name != "lo") if _NET.is_dir() else []
    real = [name for name in names if (_NET / name / "device").exists()]
    return [_nic(name) for name in real or names]


def _nic(name: str) -> HostNic:
    folder = _NET / name
    device = (folder / "device").resolve() if (folder / "device").exists() else None
    driver = folder / "device" / "driver"
    speed = _text(folder / "speed")
    return HostNic(
        name=name,
        mac=_text(folder / "address") or "00:00:00:00:00:00",
        speed_mbit=int(speed) if speed.isdigit() else None,
        driver=driver.resolve().name if driver.exists() else "virtual",
        pci=device.name if device is not None else "",
    )
