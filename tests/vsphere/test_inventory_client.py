"""What an unmodified pyVmomi sees of the inventory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ramet.host.service import Host
from ramet.vsphere import ids
from ramet.vsphere.core.world import World
from ramet.vsphere.types import vim
from tests.vsphere.kit import record_vm, seen

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
