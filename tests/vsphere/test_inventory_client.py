"""What an unmodified pyVmomi sees of the inventory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ramet.host.service import Host
from ramet.vsphere import ids
from ramet.vsphere.core.world import World
from ramet.vsphere.types import FETCH, NEWEST, Support, vim, vmodl
from ramet.vsphere.wire import envelope
from tests.vsphere.kit import record_vm, record_vms, seen

Connect = Callable[[], Awaitable[Any]]
KINDS = (vim.Datacenter, vim.Folder, vim.ComputeResource, vim.HostSystem, vim.ResourcePool, vim.Datastore, vim.Network)


def view_of(si: Any, kind: Any) -> list[Any]:
    content = si.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        return list(view.view)
    finally:
        view.Destroy()


async def test_views_of_every_kind_have_what_there_is(host: Host, world: World, connect: Connect) -> None:
    vm = await record_vm(host, "web")
    await seen(world, vm)
    si = await connect()

    def look() -> dict[str, list[str]]:
        return {kind.__name__: [one.name for one in view_of(si, kind)] for kind in (*KINDS, vim.VirtualMachine)}

    names = await asyncio.to_thread(look)
    assert names["vim.VirtualMachine"] == ["web"]
    assert names["vim.Datacenter"] == [ids.DATACENTER_NAME]
    assert set(names["vim.Folder"]) == {"vm", "host", "datastore", "network"}
    assert names["vim.ResourcePool"] == ["Resources"]
    assert "user" in names["vim.Network"]
    assert all(names.values())


async def test_a_long_list_is_read_as_one_property(host: Host, world: World, connect: Connect) -> None:
    """By Fetch, which declares no type of what it returns."""
    vms = await record_vms(host, 50)
    for vm in vms:
        await seen(world, vm)
    si = await connect()

    def look() -> list[set[str]]:
        datacenter = si.content.rootFolder.childEntity[0]
        (compute,) = datacenter.hostFolder.childEntity
        (host,), (datastore,) = compute.host, datacenter.datastore
        lists = (datacenter.vmFolder.childEntity, compute.resourcePool.vm, host.vm, datastore.vm)
        assert isinstance(lists[1][0], vim.VirtualMachine)
        return [{one._moId for one in found} for found in lists]

    assert await asyncio.to_thread(look) == [{ids.vm_moid(vm.id) for vm in vms}] * 4


@pytest.mark.parametrize(
    "value",
    [
        vim.ManagedEntity.Array([vim.VirtualMachine(f"vm-{n}") for n in range(30)]),
        vim.option.OptionValue.Array([vim.option.OptionValue(key="k", value=n) for n in range(30)]),
        vim.vm.device.VirtualDevice.Array([vim.vm.device.VirtualCdrom(key=n) for n in range(30)]),
        Support.GetVmodlType("string[]")(map(str, range(30))),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_long_answer_is_as_one_written_at_once(value: Any) -> None:
    assert envelope.is_long(value)
    whole = envelope.response(FETCH, value, NEWEST)
    assert b'<returnval xsi:type="ArrayOf' in whole
    assert await envelope.response_of_many(FETCH, value, NEWEST) == whole


async def test_the_configuration_of_a_vm_prints(host: Host, world: World, connect: Connect) -> None:
    vm = await record_vm(host, "web", extra_config={"guestinfo.a": "b"}, vcpus=2, memory_mib=128)
    await seen(world, vm)
    si = await connect()

    def look() -> tuple[str, Any]:
        found = view_of(si, vim.VirtualMachine)[0]
        return f"{found.config}{found.summary}{found.runtime}{found.guest}{found.layoutEx}{found.storage}", found.config

    text, config = await asyncio.to_thread(look)
    assert "guestinfo.a" in text
    assert (config.hardware.numCPU, config.hardware.memoryMB, config.uuid) == (2, 128, vm.machine.uuid)
    cards = [one for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    assert [(one.key, one.macAddress) for one in cards] == [(4000, vm.machine.nics[0].mac)]
    disks: list[Any] = [one for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    assert [(one.key, one.capacityInKB) for one in disks] == [(2000, 64 << 10)]
    assert vm.machine.disks[0].layer in disks[0].backing.fileName


async def test_all_properties_of_all_entities_arrive_in_one_answer(host: Host, world: World, connect: Connect) -> None:
    await seen(world, await record_vm(host, "web"))
    si = await connect()

    def look() -> list[Any]:
        content, kinds = si.RetrieveContent(), vmodl.query.PropertyCollector
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.ManagedEntity], True)
        traversal = kinds.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        spec = kinds.FilterSpec(
            objectSet=[kinds.ObjectSpec(obj=view, skip=True, selectSet=[traversal])],
            propSet=[kinds.PropertySpec(type=vim.ManagedEntity, all=True)],
        )
        found = content.propertyCollector.RetrieveContents([spec])
        view.Destroy()
        return list(found)

    found = await asyncio.to_thread(look)
    assert all(not one.missingSet for one in found)
    by_kind = {type(one.obj): {prop.name: prop.val for prop in one.propSet} for one in found}
    assert set(KINDS) | {vim.VirtualMachine} <= set(by_kind)
    assert by_kind[vim.VirtualMachine]["summary"].config.name == "web"
    assert by_kind[vim.HostSystem]["summary"].hardware.memorySize > 0
    assert len(by_kind[vim.HostSystem]["vm"]) == 1


async def test_whoever_waits_hears_at_once_of_a_vm_that_comes(host: Host, world: World, connect: Connect) -> None:
    """By a filter on a view of the whole tree, as clients of every language wait."""
    await seen(world, await record_vm(host, "first"))
    si = await connect()
    kinds = vmodl.query.PropertyCollector
    state: dict[str, Any] = {}

    def begin() -> None:
        content = si.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        traversal = kinds.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        spec = kinds.FilterSpec(
            objectSet=[kinds.ObjectSpec(obj=view, skip=True, selectSet=[traversal])],
            propSet=[kinds.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "runtime.powerState"])],
        )
        state["collector"] = content.propertyCollector.CreatePropertyCollector()
        state["collector"].CreateFilter(spec, True)
        state["version"] = state["collector"].WaitForUpdatesEx(None, kinds.WaitOptions(maxWaitSeconds=0)).version

    def wait() -> list[tuple[str, str]]:
        options = kinds.WaitOptions(maxWaitSeconds=20)
        update = state["collector"].WaitForUpdatesEx(state["version"], options)
        state["version"] = update.version
        changes = [one for found in update.filterSet for one in found.objectSet]
        return [(str(one.kind), next((c.val for c in one.changeSet if c.name == "name"), "")) for one in changes]

    await asyncio.to_thread(begin)
    waiting = asyncio.create_task(asyncio.to_thread(wait))
    vm = await record_vm(host, "second")
    assert await waiting == [("enter", "second")]
    waiting = asyncio.create_task(asyncio.to_thread(wait))
    await host.floor.rooms.book.forget(vm.id)
    assert await waiting == [("leave", "")]
