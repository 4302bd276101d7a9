"""What a spec takes to be allowed, through the one door that all protocols use."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.host.service import Host
from ramet.model.access import Role
from ramet.model.machine import VmState
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.types import vim, vmodl
from tests.vsphere.kit import record_vm, seen, until
from tests.vsphere.test_access import logged_in, with_privileges

MAKING = ("VirtualMachine.Inventory.Create", "Datastore.AllocateSpace", "Resource.AssignVMToPool")
CLONING = ("VirtualMachine.Inventory.CreateFromExisting", "Datastore.AllocateSpace", "Resource.AssignVMToPool")
dev = vim.vm.device
NEW_DISK = dev.VirtualDeviceSpec(
    operation="add", fileOperation="create", device=dev.VirtualDisk(key=-1, capacityInKB=32 * 1024)
)


def onto(network: str, key: int = 4000) -> Any:
    backing = dev.VirtualEthernetCard.NetworkBackingInfo(deviceName=network)
    return dev.VirtualDeviceSpec(operation="edit", device=dev.VirtualVmxnet3(key=key, backing=backing))


async def refused(world: World, call: Call, moid: str, method: str, **arguments: Any) -> str:
    """For want of which privilege."""
    with pytest.raises(vim.fault.NoPermission) as caught:
        await invoke(world, call, moid, method, arguments)
    return str(caught.value.privilegeId)


async def done(world: World, call: Call, moid: str, method: str, **arguments: Any) -> None:
    task = await invoke(world, call, moid, method, arguments)
    ended = await world.host.tasks.wait(ids.task_id(task._moId) or "", 30.0)
    assert ended.error is None


async def test_a_vm_is_changed_by_whoever_has_the_privilege_of_the_change(world: World, host: Host) -> None:
    vm = await seen(world, await record_vm(host, "web"))
    eve = await with_privileges(world, "VirtualMachine.Config.Annotation", "VirtualMachine.Config.EditDevice")
    config = "VirtualMachine.Config."
    for spec, missing in (
        (vim.vm.ConfigSpec(annotation="x", memoryMB=0), f"{config}Memory"),
        (vim.vm.ConfigSpec(guestId="otherLinux64Guest"), f"{config}Settings"),
        (vim.vm.ConfigSpec(deviceChange=[NEW_DISK]), f"{config}AddNewDisk"),
    ):
        assert await refused(world, eve, vm.moid, "ReconfigVM_Task", spec=spec) == missing
    await done(world, eve, vm.moid, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(annotation="x"))


async def test_a_vm_is_made_by_whoever_has_the_privileges_of_what_is_in_it(world: World) -> None:
    config = vim.vm.ConfigSpec(name="web", memoryMB=64, deviceChange=[NEW_DISK])
    arguments = {"config": config, "pool": world.ref(ids.RESOURCE_POOL)}
    eve = await with_privileges(world, *MAKING)
    found = await refused(world, eve, ids.VM_FOLDER, "CreateVM_Task", **arguments)
    assert found == "VirtualMachine.Config.AddNewDisk"
    without_pool = await with_privileges(world, *MAKING[:2], name="mal")
    with pytest.raises(vim.fault.NoPermission) as caught:
        await invoke(world, without_pool, ids.VM_FOLDER, "CreateVM_Task", arguments)
    fault: Any = caught.value
    assert (fault.privilegeId, fault.object._moId) == ("Resource.AssignVMToPool", ids.RESOURCE_POOL)
    with pytest.raises(vmodl.fault.InvalidArgument):  # what is not given needs no privilege
        await invoke(world, without_pool, ids.VM_FOLDER, "CreateVM_Task", {"config": config})
    await done(world, await logged_in(world, Role.OPERATOR, "ops"), ids.VM_FOLDER, "CreateVM_Task", **arguments)


async def test_a_copy_needs_the_privileges_of_its_kind_and_of_its_config(world: World, host: Host) -> None:
    vm = await seen(world, await record_vm(host, "golden"))
    kind = "VirtualMachine.Provisioning."
    eve = await with_privileges(world, *CLONING, f"{kind}DeployTemplate")
    spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), template=False, powerOn=False)
    arguments = {"folder": vim.Folder(ids.VM_FOLDER), "name": "copy", "spec": spec}
    assert await refused(world, eve, vm.moid, "CloneVM_Task", **arguments) == f"{kind}Clone"
    ops = await logged_in(world, Role.OPERATOR, "ops")
    await invoke(world, ops, vm.moid, "MarkAsTemplate", {})
    larger = vim.vm.CloneSpec(location=spec.location, template=False, powerOn=False)
    larger.config = vim.vm.ConfigSpec(numCPUs=2)
    shaped = {**arguments, "spec": larger}
    assert await refused(world, eve, vm.moid, "CloneVM_Task", **shaped) == "VirtualMachine.Config.CPUCount"
    await done(world, eve, vm.moid, "CloneVM_Task", **arguments)
    shaped["name"] = "other"
    await done(world, ops, vm.moid, "CloneVM_Task", **shaped)


async def test_an_instant_clone_goes_onto_networks_that_the_caller_may_assign(world: World, host: Host) -> None:
    """All are refused in the end, as the source is off: that is asked after what the caller may."""
    vm = await seen(world, await record_vm(host, "web"))
    base = ("VirtualMachine.Provisioning.Clone", "VirtualMachine.Interact.PowerOn", *CLONING)
    edit = "VirtualMachine.Config.EditDevice"
    eve, mal = await with_privileges(world, *base), await with_privileges(world, *base, edit, name="mal")
    ops = await logged_in(world, Role.OPERATOR, "ops")
    option = vim.option.OptionValue(key="guestinfo.a", value="b")

    def spec(*changes: Any, **more: Any) -> Any:
        return vim.vm.InstantCloneSpec(name="kid", location=vim.vm.RelocateSpec(deviceChange=list(changes)), **more)

    found = await refused(world, eve, vm.moid, "InstantClone_Task", spec=spec(config=[option]))
    assert found == "VirtualMachine.Config.AdvancedConfig"
    assert await refused(world, eve, vm.moid, "InstantClone_Task", spec=spec(onto("user"))) == edit
    for call, wanted in ((eve, spec()), (mal, spec(onto("user"))), (ops, spec(onto("user"), config=[option]))):
        with pytest.raises(vim.fault.InvalidPowerState):
            await invoke(world, call, vm.moid, "InstantClone_Task", {"spec": wanted})
    await vm.live.change(state=VmState.RUNNING)
    assert await refused(world, mal, vm.moid, "InstantClone_Task", spec=spec(onto("user"))) == "Network.Assign"
    for call, missing in ((mal, "Network.Assign"), (await logged_in(world, Role.READ_ONLY, "ro"), base[0])):
        task = await invoke(
            world, call, "ProvChecker", "CheckInstantClone_Task", {"vm": vm.ref, "spec": spec(onto("user"))}
        )
        await until(lambda task=task: is_over(world, task))  # type: ignore[misc]
        (checked,) = (await read_now(world.find(task._moId), "info")).result
        assert checked.error[0].privilegeId == missing
    await vm.live.change(state=VmState.OFF)


async def is_over(world: World, task: Any) -> bool:
    return (await read_now(world.find(task._moId), "info")).state not in ("queued", "running")
