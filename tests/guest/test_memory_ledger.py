"""The ledger of memory on real guests: its sums are what the kernel says, and what the host gets back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.memory import CloneMemory, HostMemory, MemoryKind
from ramet.model.requests import NicRequest
from ramet.model.units import MIB
from tests.guest.conftest import Guests

pytestmark = pytest.mark.asyncio(loop_scope="session")

SETTLED_S = 20.0


def rollup(pid: int, name: str = "Pss") -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))


def charged(host: Host, lineage_id: str) -> int | None:
    """What the kernel charges the lineage's control group for anonymous memory; None where it does not count that."""
    base = host.floor.rooms.cgroups.bases.get("memory")
    if base is None:
        return None
    found = dict(line.split() for line in (base[0] / f"lineage-{lineage_id}" / "memory.stat").read_text().splitlines())
    return int(found["anon" if base[1] else "total_rss"])


async def measured(host: Host, lineage_id: str) -> HostMemory:
    """All rows afresh; of this lineage alone."""
    view = await host.memory.view(now=True)
    return view.changed(rows=tuple(row for row in view.rows if row.lineage_id == lineage_id))


def pids(host: Host, view: HostMemory) -> list[int]:
    held = {one.id: one.pid for one in host.memory.sampler.ledger.holdings()}
    return [held[row.id] for row in view.rows]


async def still(host: Host, *names: str) -> None:
    """The guests stand still: a sum over processes that run is of no one moment."""
    for name in names:
        await host.floor.find(name).qmp.stop()


async def test_the_sums_are_the_kernels_and_what_the_host_gets_back(host: Host, guests: Guests) -> None:
    """A source, a live clone, and frozen clones that have written something of their own."""
    source = await guests.boot("ledger", memory_mib=128, nics=(NicRequest(network=None),))
    lineage_id = (await host.show_vm(source)).id
    (live,) = await guests.clone(source, "live")
    await finish(host, await host.freeze_vm(source))
    both = await guests.clone(source, "one", "two")
    await guests.sh("one", "dd if=/dev/zero of=/fill bs=1M count=12")
    await still(host, "live", "one", "two")

    before = await measured(host, lineage_id)
    assert {"ledger", "live", "one", "two"} <= {row.name for row in before.rows}
    assert {row.kind for row in before.rows} <= {MemoryKind.VM, MemoryKind.HOLDER, MemoryKind.ZYGOTE}
    sums = next(one for one in before.lineages if one.id == lineage_id)
    pss = sum(rollup(pid) for pid in pids(host, before))
    assert sums.unique_bytes + sums.common_bytes + sums.overhead_bytes == pytest.approx(pss, rel=0.01)
    assert sums.saved_bytes == sums.shared_bytes - sums.common_bytes
    assert sums.saved_bytes > 30 * MIB
    one = next(row for row in before.rows if row.name == "one")
    assert one.unique_bytes > 12 * MIB
    assert one.page_tables_bytes > 0

    at_first = charged(host, lineage_id)
    await guests.remove("one")
    after = await measured(host, lineage_id)
    assert "one" not in {row.name for row in after.rows}
    left = next(found for found in after.lineages if found.id == lineage_id)
    given_back = sums.spent_bytes - left.spent_bytes
    assert given_back == pytest.approx(one.unique_bytes + one.overhead_bytes + one.page_tables_bytes, rel=0.1)
    if at_first is not None:
        await as_charged(host, lineage_id, at_first - given_back)
    for result in (live, *both):
        assert result.memory is not None
        assert result.memory.before is not None


async def as_charged(host: Host, lineage_id: str, wanted: int) -> None:
    """The kernel's own books, which know nothing of processes, say the same. It writes them up with some delay."""
    async with asyncio.timeout(SETTLED_S):
        while (found := charged(host, lineage_id) or 0) != pytest.approx(wanted, abs=6 * MIB):  # noqa: ASYNC110
            await asyncio.sleep(0.25)
    assert found


async def test_what_a_clone_cost_is_in_its_task_a_moment_later(host: Host, guests: Guests) -> None:
    source = await guests.boot("counted", memory_mib=128, nics=(NicRequest(network=None),))
    await host.memory.view(now=True)
    await guests.clone(source, "copy")
    task = next(task for task in host.tasks.list() if task.kind == "clone")
    async with asyncio.timeout(SETTLED_S):
        while (memory := CloneMemory.model_validate(task.result[0]["memory"])).after is None:
            await asyncio.sleep(0.02)
            task = host.tasks.get(task.id)
    assert memory.before is not None
    assert (memory.before.processes, memory.after.processes) == (1, 2)
    assert memory.before.shared_bytes == 0
    assert memory.after.common_bytes > 10 * MIB
    assert memory.after.configured_bytes == 256 * MIB
    text = host.metrics.text().decode()
    assert 'ramet_vm_memory_unique_bytes{id="' in text
    assert 'ramet_clones_total{outcome="made",way="live"}' in text
