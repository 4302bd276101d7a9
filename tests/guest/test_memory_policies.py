"""What the host does about memory, with real guests: pages merged and unmerged, memory given back, balloons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.machine.live import LiveMachine
from ramet.memory.ksm import Ksm
from ramet.model.machine import VmState
from ramet.model.requests import ChangeVm
from ramet.model.sharing import PageSharing, SetPageSharing
from ramet.model.units import GIB, MIB
from tests.guest.conftest import Guests

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATIENCE_S = 90.0


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await true():  # noqa: ASYNC110 - the kernel and guests tell nobody
            await asyncio.sleep(0.2)


async def resident_mib(host: Host, name: str) -> int:
    memory = (await host.show_vm(name)).memory
    assert memory is not None
    return memory.resident_bytes // MIB


async def balloon_mib(host: Host, name: str) -> int:
    balloon = (await host.show_vm(name)).balloon
    assert balloon is not None
    return balloon.actual_bytes // MIB


async def fill(guests: Guests, name: str, mib: int) -> str:
    """A file in the guest's memory; its checksum."""
    await guests.sh(name, "mkdir -p /t; grep -q ' /t ' /proc/mounts || mount -t tmpfs none /t")
    return await guests.sh(name, f"dd if=/dev/urandom of=/t/x bs=1M count={mib} 2>/dev/null; md5sum < /t/x")


@pytest_asyncio.fixture(loop_scope="session")
async def merging(host: Host) -> AsyncIterator[None]:
    """Off again afterwards, whatever the test did."""
    if Ksm().problem is not None:
        pytest.skip(f"{Ksm().problem}.")
    yield
    await finish(host, await host.sharing.set(SetPageSharing(mode=PageSharing.OFF)))


async def test_unrelated_guests_share_while_it_is_asked_for(
    host: Host, guests: Guests, source: str, merging: None
) -> None:
    before = Ksm().knobs()
    await guests.boot("other")
    sums = await fill(guests, "other", 8)
    await finish(host, await host.sharing.set(SetPageSharing(mode=PageSharing.HOST)))

    async def both_merged() -> bool:
        seen = await host.sharing.view()
        return {vm.name for vm in seen.vms if vm.merged_bytes > 4 * MIB} >= {source, "other"} and seen.saved_bytes > MIB

    await until(both_merged)
    await guests.clone("other", "other-2")  # born marked, and its merged pages are copied and right
    assert "other-2" in {vm.name for vm in (await host.sharing.view()).vms}
    await finish(host, await host.sharing.set(SetPageSharing(mode=PageSharing.OFF)))
    seen = await host.sharing.view()
    assert (seen.mode, seen.vms, Ksm().knobs()) == (PageSharing.OFF, (), before)
    for name in ("other", "other-2"):
        assert await guests.sh(name, "md5sum < /t/x") == sums
    assert "BAD" not in await guests.sh(source, "cat /run/memcheck")


async def test_memory_that_a_guest_freed_comes_back_and_forks_stay_right(host: Host, guests: Guests) -> None:
    await guests.boot("giver")
    await fill(guests, "giver", 100)
    full = await resident_mib(host, "giver")
    await guests.clone("giver", "keeper")
    kept = await guests.sh("keeper", "md5sum < /t/x")
    await guests.sh("giver", "rm /t/x")

    async def given_back() -> bool:
        return await resident_mib(host, "giver") < full - 60

    await until(given_back)
    await guests.sh("keeper", "echo 3 > /proc/sys/vm/drop_caches")
    assert await guests.sh("keeper", "md5sum < /t/x") == kept
    assert await resident_mib(host, "keeper") > full - 60


async def test_a_target_is_kept_over_a_restart_and_a_thaw(host: Host, guests: Guests) -> None:
    await guests.boot("target")
    await host.change_vm("target", ChangeVm(memory_target_mib=200))

    async def is_there() -> bool:
        return await balloon_mib(host, "target") == 200

    await until(is_there)
    await finish(host, await host.restart_vm("target", True))
    await until(is_there)
    await finish(host, await host.freeze_vm("target"))
    assert (await host.show_vm("target")).balloon is None
    await host.change_vm("target", ChangeVm(memory_target_mib=0))
    await finish(host, await host.thaw_vm("target"))

    async def has_all() -> bool:
        return await balloon_mib(host, "target") == 256

    await until(has_all)


async def test_guests_help_a_host_that_is_short_and_get_it_back(
    host: Host, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has memory; the guard is told that it has not."""
    await guests.boot("idle")
    await guests.clone("idle", "clone")
    live = _live(host, "idle")
    guard, available = host._policies.guard, 0
    monkeypatch.setattr(guard, "_available", lambda: available)
    seq = host.events.last_seq

    async def helps() -> bool:
        await guard.look()
        return await balloon_mib(host, "idle") <= 224

    await until(helps)
    assert live.squeezed_to is not None
    assert await balloon_mib(host, "idle") >= 64
    available = 16 * GIB

    async def has_all() -> bool:
        await guard.look()
        return await balloon_mib(host, "idle") == 256

    await until(has_all)
    kinds = [event.kind for event in host.events.recent(100, seq)]
    assert {"host.memory", "vm.balloon"} <= set(kinds)
    assert await guests.sh("idle", "echo well") == "well"
    assert _oom_score(_live(host, "clone")) > _oom_score(live) > 0  # what the kernel would end first


def _live(host: Host, name: str) -> LiveMachine:
    live = host.floor.find(name)
    assert live.vm.state is VmState.RUNNING
    return live


def _oom_score(live: LiveMachine) -> int:
    assert live.vm.process is not None
    return int(Path(f"/proc/{live.vm.process.pid}/oom_score_adj").read_text())
