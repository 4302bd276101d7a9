"""``python tools/ledger_bench.py [--processes 200] [--mappings 330] [--minutes 1]``

What the ledger of memory costs, without a guest: processes that share anonymous memory as clones do, each with as many
mappings as a QEMU has, of which some write all the time; and the daemon's own sampler over them. Prints the share of
one processor that it took, and how old the rows were.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import mmap
import os
import random
import resource
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ramet.host.memory_sampler import MemorySampler, SamplerLimits
from ramet.memory.holdings import Holding
from ramet.model.memory import MemoryKind

PAGE = mmap.PAGESIZE
LINEAGES = 4
PERIOD_S = 10.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tools/ledger_bench.py")
    parser.add_argument("--processes", type=int, default=200)
    parser.add_argument("--mappings", type=int, default=330, help="of each process; a QEMU 7.2 has so many")
    parser.add_argument("--resident", type=int, default=64, metavar="MIB", help="guest RAM that is there, of 256")
    parser.add_argument("--busy", type=int, default=20, metavar="PERCENT", help="of the processes write all the time")
    parser.add_argument("--rate", type=int, default=200, metavar="PAGES", help="that a busy one writes in a second")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--percent", type=float, default=2.0, help="of one processor that the sampler may take")
    return parser.parse_args()


def source(chosen: argparse.Namespace) -> None:
    """Makes this process one with guest RAM, and with as many mappings as a QEMU."""
    split_into(chosen.mappings - 1 - len(Path("/proc/self/maps").read_text().splitlines()))
    ram = mmap.mmap(-1, 256 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # below all others, as in a clone
    ram.madvise(mmap.MADV_DONTDUMP)
    ram.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, chosen.resident << 20, PAGE):
        ram[at] = 1
    globals()["kept"] = ram


def split_into(count: int) -> None:
    """So many more mappings: pages that may be read and pages that may be written, by turns."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    start = libc.mmap(None, ctypes.c_size_t(count * PAGE), 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for at in range(0, count, 2):
        libc.mprotect(ctypes.c_void_p(start + at * PAGE), ctypes.c_size_t(PAGE), 1)


def live(chosen: argparse.Namespace, busy: bool) -> None:
    """A child's life: pages are written, or nothing is done."""
    ram, chance = cast("mmap.mmap", globals()["kept"]), random.Random(os.getpid())
    while True:
        if not busy:
            signal.pause()
        for _ in range(chosen.rate // 10):
            ram[chance.randrange(chosen.resident << 8) * PAGE] = 2
        time.sleep(0.1)


@contextmanager
def processes(chosen: argparse.Namespace) -> Iterator[list[Holding]]:
    """Lineages, each a process with guest RAM and its forks."""
    made: list[tuple[int, int]] = []
    try:
        for lineage in range(LINEAGES):
            made += family(chosen, lineage)
        yield [holding(pid, lineage) for pid, lineage in made]
    finally:
        for pid, _ in made:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(made[0][0], 0) if made else None


def family(chosen: argparse.Namespace, lineage: int) -> list[tuple[int, int]]:
    """The founder is our child, the others are its."""
    read, write = os.pipe()
    founder = os.fork()
    if founder == 0:
        os.close(read)
        source(chosen)
        count = chosen.processes // LINEAGES - 1
        for number in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(write)
                live(chosen, busy=number < count * chosen.busy // 100)
            os.write(write, f"{pid}\n".encode())
        os.close(write)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        live(chosen, busy=False)
    os.close(write)
    with os.fdopen(read) as told:
        return [(founder, lineage), *((int(line), lineage) for line in told)]


def holding(pid: int, lineage: int) -> Holding:
    text = Path(f"/proc/{pid}/stat").read_text()
    ticks = int(text[text.rindex(")") + 2 :].split()[19])
    return Holding(str(pid), str(pid), MemoryKind.VM, f"lineage {lineage}", pid, ticks, 256 << 20)


async def measure(chosen: argparse.Namespace, held: list[Holding]) -> None:
    floor = SimpleNamespace(machines={}, rooms=SimpleNamespace(holdings=SimpleNamespace(all=lambda: held)))
    sampler = MemorySampler(cast("Any", floor), lambda one: False, SamplerLimits(PERIOD_S, chosen.percent))
    began, before = time.monotonic(), spent()
    sampler.sync()
    await sampler.measure([one.id for one in held])
    print(f"all of {len(held)} afresh (--now): {spent() - before:.2f} s of a processor")
    task = asyncio.create_task(sampler.run())
    began, before = time.monotonic(), spent()
    while time.monotonic() - began < chosen.minutes * 60:
        await asyncio.sleep(PERIOD_S)
        percent = 100 * (spent() - before) / (time.monotonic() - began)
        ages = [time.time() - row.measured_at for row in sampler.ledger.rows()]
        print(
            f"{time.monotonic() - began:4.0f} s: {percent:.2f} % of a processor, {sampler.readings} readings, "
            f"rows {statistics.median(ages):.0f} s old in the middle, {max(ages):.0f} s at most"
        )
    task.cancel()
    await asyncio.wait([task])
    await check(sampler, held, "as kept")
    await sampler.refresh()
    await check(sampler, held, "as shown")


async def check(sampler: MemorySampler, held: list[Holding], how: str) -> None:
    """How far the sums are off those that are measured afresh."""
    kept = sum(row.unique_bytes + row.common_bytes for row in sampler.ledger.rows())
    await sampler.measure([one.id for one in held])
    true = sum(row.unique_bytes + row.common_bytes for row in sampler.ledger.rows())
    print(f"unique + common {how}: {kept >> 20} MiB, afresh {true >> 20} MiB: {100 * (kept - true) / true:+.2f} %")
    await asyncio.sleep(PERIOD_S)


def spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    chosen = options()
    with processes(chosen) as held:
        time.sleep(1)
        print(f"{len(held)} processes, {len(Path(f'/proc/{held[-1].pid}/maps').read_text().splitlines())} mappings")
        asyncio.run(measure(chosen, held))


if __name__ == "__main__":
    main()
