"""Pools on real guests: clones that wait, loaded, and are somebody's a few milliseconds after they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.clone.seedling import new_record
from ramet.errors import NotFoundError
from ramet.host.pools import Taken
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.host.settings import Settings
from ramet.machine.live import LiveMachine
from ramet.model.machine import Vm, VmState
from ramet.model.pool import PoolState, PoolView, SetPool
from ramet.model.requests import NicChange, NicRequest
from ramet.model.units import MIB, new_id
from tests.guest.conftest import Guests
from tests.guest.machine_kit import furnish, state_folder

pytestmark = pytest.mark.asyncio(loop_scope="session")

WAIT_S = 90.0
FREEZE = """
(
  vmware-rpctool "instantclone.freeze" > /run/freeze.out 2>&1; echo "returned $?" >> /run/freeze.out
  echo "I am $(vmware-rpctool 'info-get guestinfo.me')" >> /run/freeze.out
) >/dev/null 2>&1 &
"""
WAIT = "until grep -q 'I am' /run/freeze.out; do sleep 0.05; done; cat /run/freeze.out"


async def until(host: Host, wanted: Callable[[PoolView], bool], source: str = "pooled") -> PoolView:
    """The pool's view when it is as wanted; it changes with tasks and looks that nobody else can wait for."""
    async with asyncio.timeout(WAIT_S):
        while True:
            view = next(view for view in await host.list_pools() if view.vm == source)
            if wanted(view):
                return view
            await asyncio.sleep(0.05)


async def full(host: Host, size: int) -> PoolView:
    return await until(host, lambda view: view.ready == size and view.state is PoolState.FULL)


def members(host: Host) -> list[LiveMachine]:
    return [live for live in host.floor.machines.values() if live.vm.is_pooled]


async def gone(host: Host) -> None:
    async with asyncio.timeout(WAIT_S):
        while members(host):  # noqa: ASYNC110 (what is hidden from users tells nobody when it goes)
            await asyncio.sleep(0.05)


def wanted(source: Vm, name: str, **config: str) -> Vm:
    machine = source.machine.changed(name=name, extra_config={f"guestinfo.{key}": text for key, text in config.items()})
    return new_record(source, machine, source.moment_id or "", "frozen", new_id())


async def take(host: Host, name: str, **config: str) -> Taken:
    source = host.floor.find("pooled")
    async with host._locks.hold(source.id, "clone", shared=True, wait_s=WAIT_S):
        taken = await host._pools.take(source, wanted(source.vm, name, **config))
    assert taken is not None
    return taken


@pytest_asyncio.fixture(loop_scope="session")
async def second(host: Host) -> AsyncIterator[Path]:
    """Another state folder, whose host tests open and close."""
    with state_folder() as path:
        yield path
        async with Host.open(await furnish_again(host, path)) as last:
            await last.stop_all_vms()


async def furnish_again(host: Host, path: Path) -> Settings:
    if not (path / "images" / "micro").exists():
        return await furnish(host, path)
    return host.settings.changed(state_dir=path)


async def freeze_pooled(host: Host, guests: Guests, checker: Path) -> None:
    """A source with memory that is checked all the time, which freezes itself."""
    await guests.boot("pooled", disk_mib=64, memory_mib=192, nics=(NicRequest(network=None),))
    await guests.push("pooled", checker, "/bin/memcheck")
    await guests.sh(
        "pooled", "mke2fs -q /dev/vda >/dev/null 2>&1; mkdir -p /d; mount /dev/vda /d; echo base > /d/f; sync"
    )
    await guests.sh(
        "pooled", "(/bin/memcheck 48 > /run/memcheck 2>&1 &) ; until grep -q tick /run/memcheck; do :; done"
    )
    seq = host.events.recent(1)[-1].seq
    await guests.sh("pooled", FREEZE)
    async for event in host.events.follow(seq):
        if event.kind == "vm.state" and event.vm_name == "pooled" and "frozen" in event.message:
            break


async def check(guests: Guests, name: str) -> None:
    """It is whole, and it is its own."""
    assert await guests.sh(name, WAIT) == f"returned 0\nI am {name}"
    await guests.sh(
        name,
        "n=$(grep -c tick /run/memcheck); until [ $(grep -c tick /run/memcheck) -gt $((n+2)) ]; do sleep 0.1; done",
    )
    assert "BAD" not in await guests.sh(name, "cat /run/memcheck")
    assert await guests.sh(name, "echo 3 > /proc/sys/vm/drop_caches; cat /d/f") == "base"
    await guests.sh(name, f"echo {name} > /d/f; sync")


async def test_a_pool_from_its_first_clone_to_its_end(host: Host, checker: Path, second: Path) -> None:
    async with Host.open(await furnish(host, second)) as one:
        guests = Guests(one)
        await freeze_pooled(one, guests, checker)
        view = await one.set_pool("pooled", SetPool(size=3))
        assert (view.size, view.ready) == (3, 0)
        view = await full(one, 3)
        assert view.refill_per_s
        assert view.cost_bytes > 3 * MIB
        assert [vm.name for vm in await one.list_vms()] == ["pooled"]
        assert [node.name for node in await one.tree()] == ["pooled"]
        with pytest.raises(NotFoundError):
            await one.show_vm(members(one)[0].id)
        assert (await one.host_view()).vms_total == 1

        taken = [await take(one, name, me=name) for name in ("k1", "k2", "k3")]
        assert len({t.live.vm.machine.uuid for t in taken} | {t.live.vm.machine.nics[0].mac for t in taken}) == 6
        for name in ("k1", "k2", "k3"):
            assert (await one.show_vm(name)).state is VmState.RUNNING
            await check(guests, name)
        assert (await full(one, 3)).taken == 3
        for name in ("k1", "k2"):
            await guests.remove(name)
        await asks_for_clones(one, guests)
        await is_kept_within_bounds(one)

    ids = {member.id for member in members(one)}
    async with Host.open(await furnish_again(host, second)) as two:
        guests = Guests(two)
        assert {m.id for m in members(two)} == ids
        await full(two, 3)
        await take(two, "k4", me="k4")
        assert ids - {m.id for m in members(two)} == {(await two.show_vm("k4")).id}
        await check(guests, "k4")
        await check_k3_lives(guests)
        assert (await full(two, 3)).taken == 6

        await finish(two, await two.thaw_vm("pooled"))
        await gone(two)
        assert await guests.sh("pooled", "echo alive") == "alive"
        assert (await until(two, lambda v: v.ready == 0)).state is PoolState.WAITING
        await finish(two, await two.freeze_vm("pooled"))
        await full(two, 3)
        await two.set_pool("pooled", SetPool(size=1))
        await until(two, lambda v: v.ready == 1)

        await finish(two, await two.remove_vm("pooled", force=True))
        await gone(two)
        assert await two.list_pools() == []
        assert await guests.sh("k4", "cat /d/f") == "k4"


async def asks_for_clones(host: Host, guests: Guests) -> None:
    """As users do; what a pool cannot serve is grown like without one."""
    await full(host, 3)
    results = await guests.clone("pooled", "p1", "p2", bare=True)
    assert [(one.ok, one.from_pool) for one in results] == [(True, True)] * 2
    mac = "52:54:00:00:aa:01"
    assert not (await guests.clone("pooled", "p3", bare=True, nics=(NicChange(id="net0", mac=mac),)))[0].from_pool
    assert (await host.show_vm("p3")).nics[0].mac == mac
    for name in ("p1", "p2", "p3"):
        assert await guests.sh(name, "cat /d/f") == "base"
        await guests.remove(name)


async def is_kept_within_bounds(host: Host) -> None:
    """By a budget, and by what the host's memory allows."""
    view = await full(host, 3)
    each_mib = view.cost_bytes // 3 // MIB
    await host.set_pool("pooled", SetPool(size=3, memory_budget_mib=2 * each_mib + each_mib // 2))
    view = await until(host, lambda v: v.ready == 2)
    assert view.state is PoolState.OVER_BUDGET
    assert view.memory_budget_mib
    assert view.cost_bytes <= view.memory_budget_mib * MIB
    shelf, available = host._pools.shelf, host._pools.shelf.available
    shelf.available = lambda: 0
    assert (await until(host, lambda v: v.ready == 0)).state is PoolState.LOW_MEMORY
    shelf.available = available
    await host.set_pool("pooled", SetPool(size=3))
    await full(host, 3)


async def check_k3_lives(guests: Guests) -> None:
    assert await guests.sh("k3", "cat /d/f") == "k3"
    assert "BAD" not in await guests.sh("k3", "cat /run/memcheck")
