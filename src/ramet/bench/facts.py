"""The machine that a bench runs on, in the few words that numbers need beside them."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """As the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def available_bytes() -> int:
    """What the kernel could give to new programs."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def load() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def kernel() -> str:
    return platform.release()
