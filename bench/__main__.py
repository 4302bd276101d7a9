"""``python -m bench [--image micro] [--clones 10] [--memory 512] [--busy 256] [--json]``

Boots one guest, lets it rewrite `--busy` MiB at random, clones it live and frozen, and prints each time beside the
boot's: what a person would do instead. Needs a compiler (the memory writer is a small static program).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.guest import memory_writer, shell, write_file
from ramet.errors import RametError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.host.settings import load
from ramet.model.requests import BuildImage, CloneVm, CreateVm, DiskRequest

BOOT_TIMEOUT_S = 300.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[2] if __doc__ else None)
    parser.add_argument("--image", default="micro", choices=("micro", "debian"))
    parser.add_argument("--clones", type=int, default=10, help="of each kind")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="of the guest")
    parser.add_argument("--busy", type=int, default=256, metavar="MIB", help="rewritten at random all the time")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


async def measure(host: Host, chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds, by what was measured."""
    await finish(host, await host.build_image(BuildImage(recipe=chosen.image)))
    began = time.monotonic()
    await boot(host, chosen)
    times: dict[str, list[float]] = {"boot until the agent answers": [(time.monotonic() - began) * 1000]}
    await make_busy(host, chosen.busy)
    for n in range(chosen.clones):
        await shell(host, "source", f"echo {n} > /root/count 2>/dev/null || echo {n} > /count; sync")
        await clone(host, times, "live", f"live{n}")
    await finish(host, await host.freeze_vm("source"))
    for n in range(chosen.clones):
        await clone(host, times, "frozen", f"frozen{n}")
    return times


async def boot(host: Host, chosen: argparse.Namespace) -> None:
    request = CreateVm(
        name="source",
        image=chosen.image,
        memory_mib=chosen.memory,
        disks=(DiskRequest(size_mib=256),),
        start=True,
    )
    await finish(host, await host.create_vm(request))
    await host.wait_agent("source", BOOT_TIMEOUT_S)


async def make_busy(host: Host, busy_mib: int) -> None:
    if busy_mib:
        with tempfile.TemporaryDirectory() as directory:
            await write_file(host, "source", memory_writer(Path(directory)), "/run/writer")
        await shell(host, "source", f"cp /run/writer /bin/writer; (/bin/writer {busy_mib} >/run/ticks 2>&1 &)")
        await shell(host, "source", "until grep -q tick /run/ticks; do sleep 0.1; done")


async def clone(host: Host, times: dict[str, list[float]], kind: str, name: str) -> None:
    began = time.monotonic()
    (result,) = await finish(host, await host.clone_vm("source", CloneVm(names=(name,), bare=True)))
    await host.wait_agent(name, BOOT_TIMEOUT_S)
    answered_ms = (time.monotonic() - began) * 1000
    timings = result["timings_ms"]
    if kind == "live":
        times.setdefault("live: stun of the source", []).append(timings["stun"])
    times.setdefault(f"{kind}: request to running", []).append(timings["total"])
    times.setdefault(f"{kind}: request to the agent's answer", []).append(answered_ms)
    await finish(host, await host.remove_vm(name, force=True))


def report(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    boot_ms = times["boot until the agent answers"][0]
    return [
        {
            "what": what,
            "runs": len(values),
            "median_ms": round(statistics.median(values), 1),
            "p95_ms": round(sorted(values)[max(0, round(0.95 * len(values)) - 1)], 1),
            "ratio_to_boot": round(statistics.median(values) / boot_ms, 5),
        }
        for what, values in times.items()
    ]


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Host]:
    """A host of its own, with nothing left afterwards."""
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        async with Host.open(load({"state_dir": Path(directory)}, env={})) as host:
            try:
                yield host
            finally:
                await host.stop_all_vms()
                for vm in await host.list_vms():
                    with contextlib.suppress(RametError):
                        await finish(host, await host.remove_vm(vm.name, force=True))


async def main() -> None:
    chosen = options()
    async with stage() as host:
        rows = report(await measure(host, chosen))
    if chosen.json:
        print(json.dumps(rows, indent=2))
        return
    print_rows(rows)


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'what':44} {'runs':>4} {'median':>10} {'95 %':>10} {'of a boot':>10}")
    for row in rows:
        print(
            f"{row['what']:44} {row['runs']:>4} {row['median_ms']:>7.1f} ms {row['p95_ms']:>7.1f} ms"
            f" {row['ratio_to_boot']:>10.4f}"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main())
