"""The world is in step with the host: what comes, changes and goes is seen, and whoever waits hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

from ramet.host.service import Host
from ramet.host.store import CHANGES_KEPT, Put
from ramet.machine.live import LiveMachine
from ramet.model.host import Network
from ramet.model.machine import Machine, Nic, Vm, VmState
from ramet.vsphere import ids
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.opening import open_world
from tests.vsphere.kit import record_vm, record_vms, seen

WAIT_S = 10.0


async def touched(world: World, since: int, moid: str) -> None:
    """Return when somebody who waits would know that the object changed."""
    async with asyncio.timeout(WAIT_S):
        while moid not in world.updates.since(since).touched:
            await world.updates.wait(world.updates.stamp, 0.5)


async def test_a_new_vm_appears_where_it_belongs(host: Host, world: World) -> None:
    stamp = world.updates.stamp
    vm = await record_vm(host, "fresh")
    mo = await seen(world, vm)
    assert mo.get_name() == "fresh"
    for holder in (ids.VM_FOLDER, ids.RESOURCE_POOL, ids.HOST, ids.DATASTORE, ids.network_moid("user")):
        await touched(world, stamp, holder)
    folder = world.find(ids.VM_FOLDER)
    assert await read_now(folder, "childEntity") == [mo.ref]
    assert await read_now(world.find(ids.network_moid("user")), "vm") == [mo.ref]


async def test_a_change_is_told_with_the_value_that_it_led_to(host: Host, world: World) -> None:
    vm = await record_vm(host, "busy")
    mo = await seen(world, vm)
    stamp = world.updates.stamp
    await host.floor.machines[vm.id].change(state=VmState.SUSPENDED)
    await touched(world, stamp, mo.moid)
    assert await read_now(mo, "runtime.powerState") == "suspended"


async def test_another_port_group_is_told_to_both(host: Host, world: World) -> None:
    await host.floor.inventory.networks.add(Network(name="lab", bridge="rb-lab"))
    vm = await record_vm(host, "moving", nics=(Nic(id="net0", network="user"),))
    mo = await seen(world, vm)
    stamp = world.updates.stamp
    machine = vm.machine.changed(nics=(vm.machine.nics[0].changed(network="lab"),))
    await host.floor.machines[vm.id].change(machine=machine)
    for network in ("lab", "user"):
        await touched(world, stamp, ids.network_moid(network))
    assert [one._moId for one in await read_now(mo, "network")] == [ids.network_moid("lab")]


async def test_a_vm_that_is_removed_is_gone_with_what_was_said_of_it(host: Host, world: World) -> None:
    vm = await record_vm(host, "short")
    mo = await seen(world, vm)
    places = world.part(Places)
    await places.change(vm.id, annotation="mine")
    task = await host.remove_vm("short")
    await host.tasks.wait(task.id, WAIT_S)
    stamp = world.updates.stamp
    async with asyncio.timeout(WAIT_S):
        while world.get(mo.moid) is not None or places.note(vm.id).annotation:
            await world.updates.wait(stamp, 0.1)
    assert await host.floor.inventory.store.get(f"vsphere/vm/{vm.id}") is None


async def test_what_waits_in_a_pool_is_not_shown_until_it_is_taken(host: Host, world: World) -> None:
    source = await record_vm(host, "source")
    waiting = Vm(machine=Machine(name="pooled"), pool_of=source.id)
    await host.floor.rooms.book.save(waiting)
    host.floor.add(LiveMachine(host.floor.rooms, waiting))
    last = await record_vm(host, "last")
    await seen(world, last)  # so the one before was heard of
    assert world.get(ids.vm_moid(waiting.id)) is None
    await host.floor.machines[waiting.id].change(pool_of=None)
    assert (await seen(world, waiting)).get_name() == "pooled"


async def test_port_groups_come_and_go(host: Host, world: World) -> None:
    stamp = world.updates.stamp
    await host.floor.inventory.networks.add(Network(name="brief", bridge="rb-brief"))
    await touched(world, stamp, ids.NETWORK_FOLDER)
    names = {await read_now(world.find(one._moId), "name") for one in await read_now(world.find(ids.HOST), "network")}
    assert {"brief", "user"} <= names
    stamp = world.updates.stamp
    await host.floor.inventory.networks.remove("brief")
    await touched(world, stamp, ids.NETWORK_FOLDER)
    assert world.get(ids.network_moid("brief")) is None


async def test_a_follower_that_fell_behind_looks_at_everything(host: Host, world: World) -> None:
    """More changes in one step of the loop than the store keeps."""
    gone = await record_vm(host, "gone")
    await seen(world, gone)
    fresh = Vm(machine=Machine(name="fresh"))
    noise = [Put(f"noise/{n}", {}) for n in range(CHANGES_KEPT + 1)]
    store = host.floor.inventory.store
    await asyncio.gather(
        host.floor.rooms.book.forget(gone.id),
        host.floor.rooms.book.save(fresh),
        store.put_all(noise),
        store.put_all(noise),
    )
    host.floor.add(LiveMachine(host.floor.rooms, fresh))
    assert (await seen(world, fresh)).get_name() == "fresh"
    async with asyncio.timeout(WAIT_S):
        while world.get(ids.vm_moid(gone.id)) is not None:
            await world.updates.wait(world.updates.stamp, 0.1)


async def test_everything_is_there_when_the_world_opens(host: Host) -> None:
    vms = await record_vms(host, 300)
    async with open_world(host) as world:
        folder: Any = await read_now(world.find(ids.VM_FOLDER), "childEntity")
        assert {one._moId for one in folder} == {ids.vm_moid(vm.id) for vm in vms}
    assert host.tasks.watchers == []
