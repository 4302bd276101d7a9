"""What is done with VMs and folders that needs no guest: through the one door, on a real host."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.errors import CapacityError, ConflictError, NotFoundError
from ramet.host.service import Host
from ramet.model.host import Network
from ramet.model.machine import Nic, VmState
from ramet.model.requests import RegisterVm
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.following import Follower
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.machine.virtual_machine import VirtualMachine
from ramet.vsphere.types import vim, vmodl
from tests.vsphere.kit import record_vm, seen


class Caller:
    def __init__(self, host: Host, world: World, call: Call) -> None:
        self.host, self.world, self.call = host, world, call

    async def do(self, moid: str, method: str, **arguments: Any) -> Any:
        return await invoke(self.world, self.call, moid, method, arguments)

    async def done(self, moid: str, method: str, **arguments: Any) -> Any:
        """The task's result; its fault is raised."""
        task = await self.do(moid, method, **arguments)
        while (info := await read_now(self.world.find(task._moId), "info")).state in ("queued", "running"):
            assert await self.world.updates.wait(self.world.updates.stamp, 30.0)
        if info.state == "error":
            raise info.error
        assert info.name.info.wsdlName == method
        return info.result


@pytest.fixture
def caller(host: Host, world: World, call: Call) -> Caller:
    return Caller(host, world, call)


async def made(caller: Caller, name: str, **machine: Any) -> VirtualMachine:
    return await seen(caller.world, await record_vm(caller.host, name, **machine))


async def test_a_vm_is_reconfigured_in_one_task(caller: Caller) -> None:
    mo = await made(caller, "web", nics=(Nic(id="net0", network=None),))
    added = vim.vm.device.VirtualE1000e(
        key=-1, backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="user")
    )
    disk = vim.vm.device.VirtualDisk(key=-2, capacityInKB=32 * 1024)
    larger = vim.vm.device.VirtualDisk(key=2000, capacityInKB=128 * 1024)
    changes = [("add", added), ("add", disk), ("edit", larger)]
    spec = vim.vm.ConfigSpec(
        name="api",
        memoryMB=256,
        numCPUs=2,
        annotation="Hm.",
        guestId="debian12_64Guest",
        instanceUuid="5F0F4A1E-51A4-4F6B-9D53-000000000001",
        extraConfig=[vim.option.OptionValue(key="guestinfo.a", value="b")],
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation=what, device=device) for what, device in changes],
    )
    await caller.done(mo.moid, "ReconfigVM_Task", spec=spec)
    config = await read_now(mo, "config")
    assert (config.name, config.annotation) == ("api", "Hm.")
    assert (config.guestId, config.instanceUuid) == ("debian12_64Guest", "5f0f4a1e-51a4-4f6b-9d53-000000000001")
    assert (config.hardware.memoryMB, config.hardware.numCPU) == (256, 2)
    disks = [one for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    assert [one.capacityInKB for one in disks] == [128 * 1024, 32 * 1024]
    cards = [one for one in config.hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    assert [one.key for one in cards] == [4000, 4001]
    gone = [vim.vm.device.VirtualDeviceSpec(operation="remove", device=one) for one in (cards[1], disks[1])]
    await caller.done(mo.moid, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(deviceChange=gone))
    assert [nic.id for nic in mo.vm.machine.nics] == ["net0"]
    assert [disk.id for disk in mo.vm.machine.disks] == ["disk0"]


async def test_a_name_is_given_once(caller: Caller) -> None:
    web, api = await made(caller, "web"), await made(caller, "api")
    await caller.done(web.moid, "Rename_Task", newName="www")
    assert await read_now(web, "name") == "www"
    for method, arguments in (
        ("Rename_Task", {"newName": "api"}),
        ("ReconfigVM_Task", {"spec": vim.vm.ConfigSpec(name="api")}),
    ):
        with pytest.raises(vim.fault.DuplicateName) as refused:
            await caller.do(web.moid, method, **arguments)
        assert refused.value.object._moId == api.moid
    with pytest.raises(vim.fault.InvalidName):
        await caller.do(web.moid, "Rename_Task", newName="w w w")


async def test_a_vm_is_unregistered_and_registered_again(caller: Caller) -> None:
    mo = await made(caller, "web")
    path = await read_now(mo, "config.files.vmPathName")
    layers = set(caller.host.floor.rooms.layers.ids())
    await caller.do(mo.moid, "UnregisterVM")
    assert caller.world.get(mo.moid) is None
    assert await caller.host.list_vms() == []
    await caller.host.floor.collect_layers()
    assert set(caller.host.floor.rooms.layers.ids()) == layers, "its disks are kept"
    other = await made(caller, "web")
    where: Any = {"path": path, "asTemplate": False}
    with pytest.raises(vim.fault.DuplicateName) as taken:
        await caller.do(ids.VM_FOLDER, "RegisterVM_Task", **where)
    assert taken.value.object._moId == other.moid
    folder = await caller.do(ids.VM_FOLDER, "CreateFolder", name="team")
    again = await caller.done(folder._moId, "RegisterVM_Task", **where, name="www")
    assert again._moId == mo.moid
    back = await seen(caller.world, mo.vm)
    assert (await read_now(back, "name"), (await read_now(back, "parent"))._moId) == ("www", folder._moId)
    with pytest.raises(vim.fault.AlreadyExists):
        await caller.do(ids.VM_FOLDER, "RegisterVM_Task", **where)
    await caller.do(mo.moid, "UnregisterVM")
    await caller.done(ids.VM_FOLDER, "RegisterVM_Task", path=path, asTemplate=True)
    back = await seen(caller.world, mo.vm)
    assert (await read_now(back, "name"), await read_now(back, "config.template")) == ("www", True)


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("[ramet] vms/000000000000/web.vmx", vim.fault.NotFound),
        ("[ramet] vms", vim.fault.NotFound),
        ("[ramet] layers/x/y.vmx", vim.fault.NotFound),
        ("[other] vms/000000000000/web.vmx", vim.fault.InvalidDatastorePath),
        ("[ramet] ../vms/web.vmx", vim.fault.InvalidDatastorePath),
        ("web.vmx", vim.fault.InvalidDatastorePath),
    ],
)
async def test_what_was_not_unregistered_cannot_be_registered(caller: Caller, path: str, refused: Any) -> None:
    with pytest.raises(refused):
        await caller.do(ids.VM_FOLDER, "RegisterVM_Task", path=path, asTemplate=False)


async def test_what_was_said_of_a_vm_comes_back_with_it(caller: Caller) -> None:
    mo = await made(caller, "web")
    spec = vim.vm.ConfigSpec(annotation="Hm.", instanceUuid="5F0F4A1E-51A4-4F6B-9D53-000000000001")
    await caller.done(mo.moid, "ReconfigVM_Task", spec=spec)
    team = await caller.do(ids.VM_FOLDER, "CreateFolder", name="team")
    await caller.done(team._moId, "MoveIntoFolder_Task", list=[mo.ref])
    path = await read_now(mo, "config.files.vmPathName")
    await mo.live.change(expires_at=1.0)
    await caller.do(mo.moid, "UnregisterVM")
    assert mo.live.vm.expires_at is None, "else its first moment back would be its last"
    await caller.done(team._moId, "Destroy_Task")
    await caller.done(ids.VM_FOLDER, "RegisterVM_Task", path=path, asTemplate=False)
    back = await seen(caller.world, mo.vm)
    assert await read_now(back, "config.annotation") == "Hm."
    assert await read_now(back, "config.instanceUuid") == "5f0f4a1e-51a4-4f6b-9d53-000000000001"
    assert (await read_now(back, "parent"))._moId == ids.VM_FOLDER
    folder = await read_now(caller.world.find(ids.VM_FOLDER), "childEntity")
    assert mo.moid in [one._moId for one in folder]


async def test_a_suspended_vm_comes_back_as_no_template(caller: Caller) -> None:
    mo = await made(caller, "web")
    path = await read_now(mo, "config.files.vmPathName")
    await mo.live.change(state=VmState.SUSPENDED)
    await caller.do(mo.moid, "UnregisterVM")
    with pytest.raises(vmodl.fault.InvalidArgument):
        await caller.do(ids.VM_FOLDER, "RegisterVM_Task", path=path, asTemplate=True)
    await caller.done(ids.VM_FOLDER, "RegisterVM_Task", path=path, asTemplate=False)


async def test_what_an_unregistered_vm_holds_says_how_to_reach_it(caller: Caller) -> None:
    mo = await made(caller, "web", nics=(Nic(id="net0", network="lab"),))
    await caller.host.floor.inventory.networks.add(Network(name="lab"))
    await caller.do(mo.moid, "UnregisterVM")
    with pytest.raises(ConflictError) as held:
        await caller.host.remove_network("lab")
    assert f"ramet vm register {mo.vm.id}" in (held.value.hint or "")


async def test_what_was_said_of_vms_that_went_while_nobody_looked_is_forgotten(caller: Caller) -> None:
    mo = await made(caller, "web")
    for vm_id in ("0123456789ab", mo.vm.id):
        await caller.world.part(Places).change(vm_id, annotation="Hm.")
    await Follower(caller.world).forget_the_gone()
    assert caller.world.part(Places).noted() == [mo.vm.id]


async def test_of_several_that_were_unregistered_one_is_named_by_its_id(caller: Caller) -> None:
    first = await made(caller, "web")
    await caller.do(first.moid, "UnregisterVM")
    second = await made(caller, "web")
    await caller.do(second.moid, "UnregisterVM")
    with pytest.raises(NotFoundError, match="Several"):
        await caller.host.register_vm(RegisterVm(ref="web"))
    assert (await caller.host.register_vm(RegisterVm(ref=first.vm.id))).id == first.vm.id
    with pytest.raises(ConflictError):
        await caller.host.register_vm(RegisterVm(ref="web"))
    assert (await caller.host.register_vm(RegisterVm(ref="web", name="other"))).id == second.vm.id
    with pytest.raises(NotFoundError, match="unregistered"):
        await caller.host.register_vm(RegisterVm(ref="web"))


async def test_a_vm_that_is_on_stays_registered(caller: Caller) -> None:
    mo = await made(caller, "web")
    await mo.live.change(state=VmState.RUNNING)
    with pytest.raises(vim.fault.InvalidPowerState):
        await caller.do(mo.moid, "UnregisterVM")
    assert await read_now(mo, "name") == "web"


async def test_a_vm_that_is_off_has_its_own_refusals(caller: Caller) -> None:
    mo = await made(caller, "web")
    spec = vim.vm.InstantCloneSpec(name="kid", location=vim.vm.RelocateSpec())
    for method, arguments in (
        ("PowerOffVM_Task", {}),
        ("SuspendVM_Task", {}),
        ("ResetVM_Task", {}),
        ("ShutdownGuest", {}),
        ("RebootGuest", {}),
        ("InstantClone_Task", {"spec": spec}),
    ):
        with pytest.raises(vim.fault.InvalidPowerState) as refused:
            await caller.do(mo.moid, method, **arguments)
        assert refused.value.existingState == "poweredOff", method
    (checked,) = await caller.done("ProvChecker", "CheckInstantClone_Task", vm=mo.ref, spec=spec)
    assert isinstance(checked.error[0], vim.fault.InvalidPowerState)
    assert checked.vm == mo.ref


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("RelocateVM_Task", {"spec": vim.vm.RelocateSpec()}),
        ("MigrateVM_Task", {"priority": "defaultPriority"}),
        ("CreateSnapshot_Task", {"name": "s", "memory": True, "quiesce": False}),
        ("AcquireMksTicket", {}),
        ("AcquireTicket", {"ticketType": "mks"}),
    ],
)
async def test_what_there_is_not_says_what_there_is(caller: Caller, method: str, arguments: Any) -> None:
    mo = await made(caller, "web")
    with pytest.raises(vmodl.fault.NotSupported) as refused:
        await caller.do(mo.moid, method, **arguments)
    assert " " in refused.value.msg
    assert "not supported by this server" not in refused.value.msg


async def test_a_template_is_not_powered_on(caller: Caller) -> None:
    mo = await made(caller, "golden")
    await caller.do(mo.moid, "MarkAsTemplate")
    assert await read_now(mo, "config.template") is True
    with pytest.raises(vmodl.fault.NotSupported):
        await caller.do(mo.moid, "PowerOnVM_Task")
    pool = vim.ResourcePool(ids.RESOURCE_POOL)
    await caller.do(mo.moid, "MarkAsVirtualMachine", pool=pool)
    assert await read_now(mo, "config.template") is False
    with pytest.raises(vim.fault.InvalidState):
        await caller.do(mo.moid, "MarkAsVirtualMachine", pool=pool)


def clone_spec(**fields: Any) -> Any:
    move = fields.pop("move", None)
    location = vim.vm.RelocateSpec(diskMoveType=move, pool=vim.ResourcePool(ids.RESOURCE_POOL))
    return vim.vm.CloneSpec(**{"location": location, "template": False, "powerOn": False, **fields})


@pytest.mark.parametrize("move", [None, "createNewChildDiskBacking"])
async def test_a_template_is_cloned_full_or_linked(caller: Caller, move: str | None) -> None:
    golden = await made(caller, "golden", nics=(Nic(id="net0", network="user"),))
    await caller.do(golden.moid, "MarkAsTemplate")
    before = golden.vm.machine
    folder = await caller.do(ids.VM_FOLDER, "CreateFolder", name="copies")
    config = vim.vm.ConfigSpec(memoryMB=64, extraConfig=[vim.option.OptionValue(key="guestinfo.a", value="b")])
    arguments = {"folder": folder, "name": "copy", "spec": clone_spec(move=move, config=config)}
    vm = await caller.done(golden.moid, "CloneVM_Task", **arguments)
    copied = (await seen(caller.world, caller.host.floor.find("copy").vm)).vm
    assert vm._moId == ids.vm_moid(copied.id)
    machine = copied.machine
    assert (machine.memory_mib, machine.extra_config) == (64, {"guestinfo.a": "b"})
    assert machine.uuid != before.uuid
    assert machine.nics[0].mac != before.nics[0].mac
    layers = caller.host.floor.rooms.layers
    chain, source = ([layer.id for layer in layers.chain(one.disks[0].layer)] for one in (machine, golden.vm.machine))
    if move is None:
        assert (len(chain), source) == (1, [before.disks[0].layer])
    else:
        assert chain[1:] == source[1:] == [before.disks[0].layer]
        assert chain[0] != source[0]
    assert (await read_now(caller.world.find(vm._moId), "parent"))._moId == folder._moId
    with pytest.raises(vim.fault.DuplicateName):
        await caller.do(golden.moid, "CloneVM_Task", **arguments)
    await caller.done(golden.moid, "Destroy_Task")
    assert [layer.id for layer in layers.chain(machine.disks[0].layer)] == chain
    await caller.done(vm._moId, "Destroy_Task")
    assert layers.ids() == ()


async def test_a_copy_that_cannot_be_shaped_is_taken_back(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = await made(caller, "golden")

    async def full(*_: Any) -> None:
        raise CapacityError("The disk is full.")

    monkeypatch.setattr(Host, "change_vm", full)
    spec = clone_spec(config=vim.vm.ConfigSpec(numCPUs=2))
    with pytest.raises(vim.fault.InsufficientResourcesFault):
        await caller.done(golden.moid, "CloneVM_Task", folder=vim.Folder(ids.VM_FOLDER), name="copy", spec=spec)
    for task in caller.host.tasks.list():
        await caller.host.tasks.wait(task.id, 10.0)
    assert [live.name for live in caller.host.floor.shown()] == ["golden"]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"memory": True}, vmodl.fault.NotSupported),
        ({"snapshot": vim.vm.Snapshot("snapshot-1")}, vmodl.fault.NotSupported),
        ({"template": True, "powerOn": True}, vmodl.fault.InvalidArgument),
        ({"config": vim.vm.ConfigSpec(nestedHVEnabled=True)}, vmodl.fault.NotSupported),
    ],
)
async def test_a_copy_that_cannot_be_is_refused(caller: Caller, fields: Any, fault: Any) -> None:
    golden = await made(caller, "golden")
    with pytest.raises(fault):
        await caller.do(
            golden.moid, "CloneVM_Task", folder=vim.Folder(ids.VM_FOLDER), name="copy", spec=clone_spec(**fields)
        )


async def test_a_vm_is_made_in_a_folder_and_goes_with_it(caller: Caller) -> None:
    folder = await caller.do(ids.VM_FOLDER, "CreateFolder", name="a")
    inner = await caller.do(folder._moId, "CreateFolder", name="b")
    disk = vim.vm.device.VirtualDeviceSpec(
        operation="add", fileOperation="create", device=vim.vm.device.VirtualDisk(key=-1, capacityInKB=32 * 1024)
    )
    config = vim.vm.ConfigSpec(name="new", memoryMB=64, guestId="otherLinux64Guest", deviceChange=[disk])
    pool = vim.ResourcePool(ids.RESOURCE_POOL)
    vm = await caller.done(inner._moId, "CreateVM_Task", config=config, pool=pool)
    mo = caller.world.find(vm._moId)
    assert (await read_now(mo, "parent"))._moId == inner._moId
    assert await read_now(mo, "config.guestId") == "otherLinux64Guest"
    with pytest.raises(vim.fault.DuplicateName) as refused:
        await caller.do(inner._moId, "CreateVM_Task", config=config, pool=pool)
    assert refused.value.object._moId == vm._moId
    await caller.done(folder._moId, "MoveIntoFolder_Task", list=[vm])
    assert (await read_now(mo, "parent"))._moId == folder._moId
    await caller.done(folder._moId, "Destroy_Task")
    for moid in (vm._moId, inner._moId, folder._moId):
        assert caller.world.get(moid) is None
    assert caller.world.part(Places).folders() == []


async def test_folders_keep_their_order(caller: Caller) -> None:
    a = await caller.do(ids.VM_FOLDER, "CreateFolder", name="a")
    b = await caller.do(ids.VM_FOLDER, "CreateFolder", name="b")
    with pytest.raises(vim.fault.DuplicateName) as refused:
        await caller.do(ids.VM_FOLDER, "CreateFolder", name="a")
    assert refused.value.object._moId == a._moId
    with pytest.raises(vim.fault.DuplicateName):
        await caller.do(b._moId, "Rename_Task", newName="a")
    await caller.done(b._moId, "Rename_Task", newName="c")
    assert await read_now(caller.world.find(b._moId), "name") == "c"
    await caller.done(a._moId, "MoveIntoFolder_Task", list=[b])
    with pytest.raises(vim.fault.InvalidFolder):
        await caller.do(b._moId, "MoveIntoFolder_Task", list=[a])
    with pytest.raises(vim.fault.InvalidFolder):
        await caller.do(b._moId, "MoveIntoFolder_Task", list=[vim.Folder(ids.HOST_FOLDER)])
    with pytest.raises(vmodl.fault.NotSupported):
        await caller.do(ids.VM_FOLDER, "Destroy_Task")
    with pytest.raises(vmodl.fault.NotSupported, match="CreateVM_Task"):
        await caller.do(ids.RESOURCE_POOL, "CreateChildVM_Task", config=vim.vm.ConfigSpec(name="x"))


async def test_several_are_powered_on_and_each_says_for_itself(caller: Caller) -> None:
    golden = await made(caller, "golden")
    await caller.do(golden.moid, "MarkAsTemplate")
    result = await caller.done(ids.DATACENTER, "PowerOnMultiVM_Task", vm=[golden.ref])
    (one,) = result.notAttempted
    assert one.vm == golden.ref
    assert isinstance(one.fault, vmodl.fault.NotSupported)


async def test_a_vm_goes_and_its_reference_with_it(caller: Caller) -> None:
    mo = await made(caller, "web")
    await caller.done(mo.moid, "Destroy_Task")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await caller.do(mo.moid, "PowerOnVM_Task")
