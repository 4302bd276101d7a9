"""``python -m bench.identity [--image debian] [--clones 4] [--json]``

How long a clone takes until it runs, until its guest has acknowledged an identity of its own, until its address is
known, and until it first answers on the network: cloned live, from a freeze, and out of a pool. One at a time; each is
removed before the next is made.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import time
from typing import Any

from bench.__main__ import BOOT_TIMEOUT_S, print_rows, report, stage
from bench.guest import shell
from ramet.errors import DeadlineError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.pool import SetPool
from ramet.model.requests import BuildImage, CloneVm, CreateVm
from ramet.model.views import CloneResult

ANSWER_TIMEOUT_S = 60.0
CLOSED_PORT = 9
"""Discard: nobody listens, and a refusal is an answer."""

Times = dict[str, list[float]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.identity", description="Times of clones' identities.")
    parser.add_argument("--image", default="debian", choices=("micro", "debian"))
    parser.add_argument("--clones", type=int, default=4, help="of each kind")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="of the guest")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


async def measure(host: Host, chosen: argparse.Namespace) -> Times:
    """Milliseconds since the request, by what was measured."""
    await finish(host, await host.build_image(BuildImage(recipe=chosen.image)))
    began = time.monotonic()
    await finish(
        host,
        await host.create_vm(CreateVm(name="source", image=chosen.image, memory_mib=chosen.memory, start=True)),
    )
    await host.wait_agent("source", BOOT_TIMEOUT_S)
    times: Times = {"boot until the agent answers": [(time.monotonic() - began) * 1000]}
    await shell(host, "source", "! command -v systemctl || timeout 90 systemctl is-system-running --wait || :")
    for number in range(chosen.clones):
        await clone(host, times, "live", f"live{number}")
    await finish(host, await host.freeze_vm("source"))
    for number in range(chosen.clones):
        await clone(host, times, "frozen", f"frozen{number}", pool=False)
    await host.set_pool("source", SetPool(size=1))
    for number in range(chosen.clones):
        await until_ready(host)
        await clone(host, times, "pooled", f"pooled{number}")
    return times


async def until_ready(host: Host) -> None:
    async with asyncio.timeout(BOOT_TIMEOUT_S):
        while [view.ready for view in await host.list_pools()] != [1]:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.05)


async def clone(host: Host, times: Times, kind: str, name: str, **more: Any) -> None:
    began = time.monotonic()
    (made,) = await finish(host, await host.clone_vm("source", CloneVm(names=(name,), **more)))
    result = CloneResult.model_validate(made)
    if result.problem or result.from_pool is not (kind == "pooled"):
        raise RuntimeError(f"{name}: {result.problem or 'the pool did not serve it as expected'}")
    timings = result.timings_ms
    for what, took_ms in (("running", timings.total), ("identity", timings.identity), ("address", timings.network)):
        times.setdefault(f"{kind}: request to {what}", []).append(took_ms)
    await first_answer(host, result.addresses["net0"])
    times.setdefault(f"{kind}: request to the first answer", []).append((time.monotonic() - began) * 1000)
    await finish(host, await host.remove_vm(name, force=True))


async def first_answer(host: Host, address: str) -> None:
    """Until the guest's TCP says anything at all."""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        while True:
            with contextlib.suppress(DeadlineError, OSError):
                try:
                    (await host._floor.rooms.networks.connect_tcp(address, CLOSED_PORT, 0.5)).close()
                except ConnectionRefusedError:
                    return
                return
            await asyncio.sleep(0.01)


async def main() -> None:
    chosen = options()
    async with stage() as host:
        rows = report(await measure(host, chosen))
    if chosen.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main())
