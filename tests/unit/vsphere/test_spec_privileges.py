"""What a spec takes to be allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ramet.model.access import Role
from ramet.model.requests import CreateVm, DiskRequest, NicChange, NicRequest
from ramet.vsphere.access.privileges import all_privileges, of_role
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.machine import spec_privileges as needed
from ramet.vsphere.machine.spec_devices import DeviceChanges
from ramet.vsphere.machine.spec_reconfigure import INERT, TAKEN
from ramet.vsphere.types import vim
from tests.vsphere.kit import TestSession

C = "VirtualMachine.Config."
dev = vim.vm.device
OPTION = vim.option.OptionValue(key="a", value="")
CLONE = ("VirtualMachine.Inventory.CreateFromExisting", "Datastore.AllocateSpace", "Resource.AssignVMToPool")


class Machines(Mo):
    wire = vim.VirtualMachine


class Allowed(TestSession):
    allowed: frozenset[str] = frozenset()

    def may(self, privilege: str) -> bool:
        return privilege in self.allowed


MO: Any = Machines(None, "vm-1")  # type: ignore[arg-type]


def call_with(*privileges: str) -> Call:
    session = Allowed()
    session.allowed = frozenset(privileges)
    return Call(session)


def all_but(*privileges: str) -> Call:
    return call_with(*(set(all_privileges()) - set(privileges)))


def needs(check: Callable[[Call], Any], *privileges: str) -> None:
    """These, each of them, and no others."""
    check(call_with(*privileges))
    for privilege in privileges:
        with pytest.raises(vim.fault.NoPermission) as caught:
            check(all_but(privilege))
        assert caught.value.privilegeId == privilege


def change(operation: str | None, device: Any) -> Any:
    return vim.vm.ConfigSpec(deviceChange=[dev.VirtualDeviceSpec(operation=operation, device=device)])


WANTED = [
    (vim.vm.ConfigSpec(name="x"), f"{C}Rename"),
    (vim.vm.ConfigSpec(annotation=""), f"{C}Annotation"),
    (vim.vm.ConfigSpec(guestId="debian11_64Guest"), f"{C}Settings"),
    (vim.vm.ConfigSpec(instanceUuid="52000000-0000-0000-0000-000000000001"), f"{C}Settings"),
    (vim.vm.ConfigSpec(tools=vim.vm.ToolsConfigInfo()), f"{C}Settings"),
    (vim.vm.ConfigSpec(nestedHVEnabled=True), f"{C}Settings"),
    (vim.vm.ConfigSpec(numCPUs=2), f"{C}CPUCount"),
    (vim.vm.ConfigSpec(memoryMB=0), f"{C}Memory"),
    (vim.vm.ConfigSpec(extraConfig=[OPTION]), f"{C}AdvancedConfig"),
    (vim.vm.ConfigSpec(cpuAllocation=vim.ResourceAllocationInfo(limit=-1)), f"{C}Resource"),
    (change("add", dev.VirtualDisk(key=-1, capacityInKB=1024)), f"{C}AddNewDisk"),
    (change("remove", dev.VirtualDisk(key=2000)), f"{C}RemoveDisk"),
    (change("edit", dev.VirtualDisk(key=2000)), f"{C}DiskExtend"),
    (change(None, dev.VirtualDisk(key=2000)), f"{C}DiskExtend"),
    (change("add", dev.VirtualVmxnet3(key=-1)), f"{C}AddRemoveDevice"),
    (change("remove", dev.VirtualVmxnet3(key=4000)), f"{C}AddRemoveDevice"),
    (change("add", dev.VirtualLsiLogicController(key=-1)), f"{C}AddRemoveDevice"),
    (change("edit", dev.VirtualCdrom(key=3000)), f"{C}EditDevice"),
]


@pytest.mark.parametrize(("spec", "privilege"), WANTED)
def test_each_field_and_device_has_its_privilege(spec: Any, privilege: str) -> None:
    needs(lambda call: needed.require_change(call, MO, spec), privilege)


def test_a_spec_of_several_things_needs_all_of_their_privileges() -> None:
    spec = vim.vm.ConfigSpec(name="x", memoryMB=64, changeVersion="1")
    needs(lambda call: needed.require_change(call, MO, spec), f"{C}Rename", f"{C}Memory")


@pytest.mark.parametrize(
    "spec", [vim.vm.ConfigSpec(), vim.vm.ConfigSpec(changeVersion="1"), change("edit", dev.VirtualVmxnet3(key=4000))]
)
def test_whoever_may_only_look_sends_no_spec_at_all(spec: Any) -> None:
    with pytest.raises(vim.fault.NoPermission):
        needed.require_change(call_with(*(of_role(Role.READ_ONLY) or ())), MO, spec)
    needed.require_change(call_with(f"{C}Annotation"), MO, spec)


def test_a_stranger_is_asked_who_they_are() -> None:
    with pytest.raises(vim.fault.NotAuthenticated):
        needed.require_change(Call(None), MO, vim.vm.ConfigSpec())


@pytest.mark.parametrize(
    ("devices", "privileges"),
    [
        (DeviceChanges(), []),
        (DeviceChanges(added=(NicRequest(network="green"),)), ["Network.Assign"]),
        (DeviceChanges(added=(NicRequest(network=None),)), []),
        (DeviceChanges(changed=(NicChange(id="net0", network="green"),)), [f"{C}EditDevice", "Network.Assign"]),
        (DeviceChanges(changed=(NicChange(id="net0", mac="52:54:00:00:00:01"),)), [f"{C}EditDevice"]),
        (DeviceChanges(changed=(NicChange(id="net0", connected=False),)), ["VirtualMachine.Interact.DeviceConnection"]),
    ],
)
def test_what_becomes_of_a_card_decides(devices: DeviceChanges, privileges: list[str]) -> None:
    needs(lambda call: needed.require_cards(call, MO, devices), *privileges)


def test_an_instant_clone_needs_what_the_reference_says_and_more_for_what_is_to_be_different() -> None:
    bare = vim.vm.InstantCloneSpec(name="kid", location=vim.vm.RelocateSpec())
    always = (*CLONE, "VirtualMachine.Interact.PowerOn")
    needs(lambda call: needed.require_instant_clone(call, MO, bare), *always)
    card = dev.VirtualDeviceSpec(operation="edit", device=dev.VirtualVmxnet3(key=4000))
    spec = vim.vm.InstantCloneSpec(name="kid", location=vim.vm.RelocateSpec(deviceChange=[card]), config=[OPTION])
    needs(
        lambda call: needed.require_instant_clone(call, MO, spec), *always, f"{C}AdvancedConfig", f"{C}EditDevice"
    )


@pytest.mark.parametrize(
    ("of_template", "to_template", "kind"),
    [
        (False, False, "Clone"),
        (False, True, "CreateTemplateFromVM"),
        (True, False, "DeployTemplate"),
        (True, True, "CloneTemplate"),
    ],
)
def test_a_clone_needs_the_privilege_of_its_kind(of_template: bool, to_template: bool, kind: str) -> None:
    spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), template=to_template, powerOn=False)
    pool = CLONE[:2] if to_template else CLONE
    needs(
        lambda call: needed.require_clone(call, MO, spec, of_template=of_template),
        f"VirtualMachine.Provisioning.{kind}", *pool,
    )  # fmt: skip


def test_a_clone_that_is_to_be_different_needs_what_a_change_would() -> None:
    config = vim.vm.ConfigSpec(name="ignored", numCPUs=2, extraConfig=[OPTION])
    disks = change("add", dev.VirtualDisk(key=-1, capacityInKB=1024)).deviceChange
    location = vim.vm.RelocateSpec(deviceChange=disks)
    spec = vim.vm.CloneSpec(location=location, template=False, powerOn=True, config=config)
    needs(
        lambda call: needed.require_clone(call, MO, spec, of_template=False),
        "VirtualMachine.Provisioning.Clone", *CLONE, "VirtualMachine.Interact.PowerOn",
        f"{C}CPUCount", f"{C}AdvancedConfig", f"{C}AddNewDisk",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "privileges"),
    [
        ({"nics": ()}, []),
        ({"nics": (NicRequest(network=None),)}, []),
        ({"nics": (NicRequest(network="green"),)}, ["Network.Assign"]),
        ({"nics": (), "image": "debian"}, [f"{C}AddExistingDisk"]),
        ({"nics": (), "disks": (DiskRequest(size_mib=1),)}, [f"{C}AddNewDisk"]),
        ({"nics": (), "extra_config": {"a": "b"}}, [f"{C}AdvancedConfig"]),
    ],
)
def test_a_vm_that_is_made_needs_room_and_what_is_in_it(fields: Any, privileges: list[str]) -> None:
    request = CreateVm(name="web", **fields)
    needs(lambda call: needed.require_creation(call, MO, request), "Datastore.AllocateSpace", *privileges)


def test_what_is_named_is_there_and_an_operator_has_all_of_it() -> None:
    assert set(needed.OF_FIELDS) | needed.FREE <= TAKEN | INERT
    named = {
        *needed.CHANGING, *CLONE, *needed._CLONING.values(), needed.NETWORK, needed.POWER_ON, f"{C}AddExistingDisk",
    }  # fmt: skip
    assert named <= set(all_privileges())
    assert named <= (of_role(Role.OPERATOR) or frozenset())
