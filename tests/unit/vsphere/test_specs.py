"""What clients send, in the words of the host: instant clones, reconfigurations, new VMs, customizations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ramet.model.host import Image, Network
from ramet.model.machine import Disk, Display, Firmware, Machine, Nic, NicModel, Vm, VmState
from ramet.model.requests import ChangeVm, CloneVm, DiskRequest, NicChange, NicRequest
from ramet.model.units import MIB
from ramet.vsphere import ids
from ramet.vsphere.core.objects import Mo, prop
from ramet.vsphere.guest.customization_spec import values_of
from ramet.vsphere.machine.spec_create import creation_of
from ramet.vsphere.machine.spec_instant import order_of
from ramet.vsphere.machine.spec_options import Options, options_of
from ramet.vsphere.machine.spec_reconfigure import wish_of
from ramet.vsphere.types import vim, vmodl

NETWORKS = ("default", "green")
dev = vim.vm.device


class Named(Mo):
    """An object with a name, and for folders what may be in them."""

    name = "green"
    kinds: tuple[Any, ...] = (vim.Folder, vim.VirtualMachine)

    @prop("name")
    def get_name(self) -> str:
        return self.name

    @prop("childType")
    def get_child_type(self) -> Any:
        return self.kinds


def thing(wire: Any, moid: str, **fields: Any) -> Mo:
    made: Mo = type("Made", (Named,), {"wire": wire, **fields})(world=None, moid=moid)
    return made


THINGS = {
    mo.moid: mo
    for mo in (
        thing(vim.Network, ids.network_moid("green")),
        thing(vim.Folder, "group-v77"),
        thing(vim.Folder, ids.HOST_FOLDER, kinds=(vim.Folder, vim.ComputeResource)),
        thing(vim.ResourcePool, ids.RESOURCE_POOL),
        thing(vim.HostSystem, ids.HOST),
        thing(vim.Datastore, ids.DATASTORE),
    )
}


class FakeWorld:
    """Two networks, one image, one of each of the fixed objects."""

    def __init__(self) -> None:
        networks = {name: Network(name=name) for name in NETWORKS}
        images = {"micro": Image(name="micro", recipe="micro")}
        inventory = SimpleNamespace(networks=_Table(networks), images=_Table(images))
        self.host = SimpleNamespace(floor=SimpleNamespace(inventory=inventory))

    def get(self, moid: str) -> Mo | None:
        return THINGS.get(moid)


class _Table(dict[str, Any]):
    def all(self) -> list[Any]:
        return list(self.values())


@pytest.fixture
def world() -> Any:
    return FakeWorld()


MACHINE = Machine(
    name="web",
    memory_mib=512,
    nics=(Nic(id="net0", network="default"), Nic(id="net1", network=None, connected=False)),
    disks=(Disk(id="disk0", layer="l", size_bytes=64 * MIB),),
    extra_config={"guestinfo.role": "web"},
)


def live() -> Any:
    return SimpleNamespace(vm=Vm(machine=MACHINE, state=VmState.RUNNING), name="web")


def connect_info(migrate: str | None = None, start: bool = True, now: bool = True) -> Any:
    return dev.VirtualDevice.ConnectInfo(
        migrateConnect=migrate, startConnected=start, connected=now, allowGuestControl=False
    )


def card(key: int = 4000, *, network: str | None = None, kind: Any = dev.VirtualVmxnet3, **fields: Any) -> Any:
    backing = dev.VirtualEthernetCard.NetworkBackingInfo(deviceName=network) if network is not None else None
    return kind(key=key, **{"backing": backing, **fields})


def change(device: Any, operation: str | None = "edit", **more: Any) -> Any:
    return dev.VirtualDeviceSpec(operation=operation, device=device, **more)


def instant(*changes: Any, config: dict[str, Any] | None = None, uuid: str | None = None, **location: Any) -> Any:
    options = [vim.option.OptionValue(key=key, value=value) for key, value in (config or {}).items()]
    where = vim.vm.RelocateSpec(deviceChange=list(changes), **location)
    return vim.vm.InstantCloneSpec(name="kid", location=where, config=options, biosUuid=uuid)


def cloned(world: Any, *changes: Any, **more: Any) -> CloneVm:
    return order_of(world, live(), instant(*changes, **more)).request


# -- instant clones ----------------------------------------------------------------------------------------------------


def test_an_instant_clone_is_bare_and_comes_up_as_its_source_is(world: Any) -> None:
    request = cloned(world)
    assert (request.names, request.bare, request.connect, request.nics) == (("kid",), True, True, ())


@pytest.mark.parametrize(
    ("value", "bare"),
    [("auto", False), ("bare", True)],
)
def test_a_key_of_its_config_gives_it_an_identity(world: Any, value: str, bare: bool) -> None:
    request = cloned(world, config={"ramet.identity": value, "guestinfo.a": "b"})
    assert (request.bare, request.connect, request.extra_config) == (bare, bare, {"guestinfo.a": "b"})


def test_another_identity_is_refused(world: Any) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument, match="'auto' or 'bare'"):
        cloned(world, config={"ramet.identity": "maybe"})


def test_config_of_any_type_becomes_text_and_what_is_empty_is_left_out(world: Any) -> None:
    config = {"guestinfo.ip": "10.0.0.1", "Guestinfo.N": 3, "guestinfo.on": True, "guestinfo.no": None}
    request = cloned(world, config={**config, "guestinfo.role": ""})
    assert request.extra_config == {
        "guestinfo.ip": "10.0.0.1",
        "guestinfo.n": "3",
        "guestinfo.on": "TRUE",
        "guestinfo.role": "",
    }


@pytest.mark.parametrize(
    ("connectable", "connected"),
    [
        (None, None),
        (connect_info("connect", start=False), True),
        (connect_info("disconnect"), False),
        (connect_info("unset", start=False), None),
        (connect_info("useDefault"), None),
        (connect_info(None, start=False), False),
        (connect_info(None, start=True), True),
    ],
)
def test_a_card_is_connected_as_the_spec_says(world: Any, connectable: Any, connected: bool | None) -> None:
    (edit,) = cloned(world, change(card(network="green", connectable=connectable))).nics
    assert edit == NicChange(id="net0", network="green", connected=connected)


def test_a_network_is_meant_by_reference_or_name(world: Any) -> None:
    backing = dev.VirtualEthernetCard.NetworkBackingInfo(deviceName="", network=vim.Network(ids.network_moid("green")))
    (edit,) = cloned(world, change(card(4001, backing=backing), None)).nics
    assert edit == NicChange(id="net1", network="green")


@pytest.mark.parametrize(
    "backing",
    [
        dev.VirtualEthernetCard.NetworkBackingInfo(deviceName="nowhere"),
        dev.VirtualEthernetCard.NetworkBackingInfo(deviceName="", network=vim.Network("network-1")),
        dev.VirtualEthernetCard.NetworkBackingInfo(deviceName="", network=vim.Network(ids.DATASTORE)),
    ],
)
def test_an_unknown_network_is_an_invalid_argument(world: Any, backing: Any) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument, match="no network"):
        cloned(world, change(card(backing=backing)))


def test_a_mac_address_that_was_only_read_is_no_wish(world: Any) -> None:
    mac = MACHINE.nics[0].mac
    (edit,) = cloned(world, change(card(macAddress=mac, addressType="manual"))).nics
    assert edit == NicChange(id="net0")
    (edit,) = cloned(world, change(card(macAddress="52:54:00:00:00:01", addressType="assigned"))).nics
    assert edit == NicChange(id="net0")
    (edit,) = cloned(world, change(card(macAddress="52:54:00:00:00:01", addressType="Manual"))).nics
    assert edit == NicChange(id="net0", mac="52:54:00:00:00:01")


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (instant(change(card(4007))), vim.fault.DeviceNotFound),
        (instant(change(card(), "add")), vmodl.fault.InvalidArgument),
        (instant(change(card(), "remove")), vmodl.fault.InvalidArgument),
        (instant(change(dev.VirtualDisk(key=2000, capacityInKB=1))), vim.fault.DisallowedMigrationDeviceAttached),
        (instant(change(dev.VirtualParallelPort(key=10000))), vim.fault.DeviceNotFound),
        (instant(folder=vim.Folder("group-v1")), vmodl.fault.InvalidArgument),
        (instant(folder=vim.Folder(ids.HOST_FOLDER)), vmodl.fault.InvalidArgument),
        (instant(pool=vim.ResourcePool("resgroup-1")), vmodl.fault.InvalidArgument),
        (instant(host=vim.HostSystem("host-1")), vmodl.fault.InvalidArgument),
        (instant(datastore=vim.Datastore("datastore-1")), vim.fault.InvalidDatastore),
        (instant(service=vim.ServiceLocator(instanceUuid="x", url="y")), vmodl.fault.NotSupported),
        (instant(uuid="no uuid"), vmodl.fault.InvalidArgument),
        (instant(config={"with space": "x"}), vmodl.fault.InvalidArgument),
        (instant(config={"sched.mem.pshare.salt": "s"}), vmodl.fault.NotSupported),
    ],
)
def test_what_cannot_be_is_refused_with_its_own_fault_and_a_sentence(world: Any, spec: Any, fault: Any) -> None:
    with pytest.raises(fault) as refused:
        order_of(world, live(), spec)
    assert refused.value.msg.endswith((".", "'."))


def test_a_serial_port_may_be_named_and_stays_what_it_is(world: Any) -> None:
    port = dev.VirtualSerialPort(key=9000, yieldOnPoll=True)
    assert cloned(world, change(port)).nics == ()
    port.backing = dev.VirtualSerialPort.DeviceBackingInfo(deviceName="/dev/ttyS0")
    with pytest.raises(vim.fault.InvalidDeviceBacking):
        cloned(world, change(port))


def test_a_place_of_this_host_is_taken(world: Any) -> None:
    spec = instant(
        folder=vim.Folder("group-v77"),
        pool=vim.ResourcePool(ids.RESOURCE_POOL),
        host=vim.HostSystem(ids.HOST),
        datastore=vim.Datastore(ids.DATASTORE),
        uuid="5F0F4A1E-51A4-4F6B-9D53-000000000001",
    )
    order = order_of(world, live(), spec)
    assert order.place.folder == "group-v77"
    assert order.request.uuid == "5f0f4a1e-51a4-4f6b-9d53-000000000001"


@pytest.mark.parametrize("name", ["a b", "-x", "x" * 64, "ü"])
def test_a_name_that_no_vm_can_have_is_invalid(world: Any, name: str) -> None:
    spec = instant()
    spec.name = name
    with pytest.raises(vim.fault.InvalidName):
        order_of(world, live(), spec)


# -- options -----------------------------------------------------------------------------------------------------------


def test_an_empty_value_takes_a_key_away_and_the_last_word_counts() -> None:
    option = vim.option.OptionValue
    values = [
        option(key="A", value="1"),
        option(key="b", value=""),
        option(key="a", value="2"),
        option(key="B", value=7),
    ]
    assert options_of(values, "x") == Options({"a": "2", "b": "7"})
    assert options_of([*values, option(key="a", value=None)], "x") == Options({"b": "7"}, ("a",))


# -- reconfigurations --------------------------------------------------------------------------------------------------


def wish(world: Any, *, is_on: bool = True, **fields: Any) -> Any:
    return wish_of(world, MACHINE, vim.vm.ConfigSpec(**fields), is_on=is_on)


def test_what_a_spec_repeats_is_no_wish(world: Any) -> None:
    same = wish(
        world, name="web", memoryMB=512, numCPUs=1, cpuHotAddEnabled=False, firmware="bios", uuid=MACHINE.uuid,
        extraConfig=[vim.option.OptionValue(key="guestinfo.role", value="web")],
        deviceChange=[change(card(network="default", connectable=connect_info()))],
    )  # fmt: skip
    assert same.change is None
    assert same.devices.changed == ()


def test_changes_of_a_vm_are_those_of_the_host(world: Any) -> None:
    options = [vim.option.OptionValue(key="guestinfo.role", value=""), vim.option.OptionValue(key="x", value="y")]
    made = wish(world, name="api", memoryMB=1024, numCPUs=2, extraConfig=options, annotation="Hm.")
    assert made.change == ChangeVm(
        name="api", memory_mib=1024, vcpus=2, set_config={"x": "y"}, unset_config=("guestinfo.role",)
    )
    assert made.notes == {"annotation": "Hm."}


@pytest.mark.parametrize(("is_on", "connected"), [(True, False), (False, True)])
def test_a_cable_is_now_or_at_the_start(world: Any, is_on: bool, connected: bool) -> None:
    info = connect_info(start=True, now=False)
    made = wish(world, is_on=is_on, deviceChange=[change(card(4001, network="green", connectable=info))])
    assert made.devices.changed == (NicChange(id="net1", network="green", connected=True if connected else None),)


def test_cards_and_disks_come_and_go(world: Any) -> None:
    new = card(-1, network="green", kind=dev.VirtualE1000e)
    disk = dev.VirtualDisk(key=-2, capacityInKB=1025)
    larger = dev.VirtualDisk(key=2000, capacityInKB=128 * 1024)
    made = wish(
        world,
        deviceChange=[
            change(new, "add"),
            change(card(4001), "remove"),
            change(dev.ParaVirtualSCSIController(key=-3, busNumber=1, sharedBus="noSharing"), "add"),
            change(disk, "add", fileOperation="create"),
            change(larger),
            change(dev.VirtualDisk(key=2000, capacityInKB=1), "remove"),
        ],
    ).devices
    assert made.added == (NicRequest(network="green", model=NicModel.E1000E),)
    assert made.removed == ("net1",)
    assert (made.added_disks, made.grown, made.removed_disks) == ((2,), (("disk0", 128),), ("disk0",))


@pytest.mark.parametrize(
    ("fields", "fault", "named"),
    [
        ({"nestedHVEnabled": True}, vmodl.fault.NotSupported, "spec.nestedHVEnabled"),
        ({"firmware": "efi"}, vmodl.fault.NotSupported, "spec.firmware"),
        ({"uuid": "5f0f4a1e-51a4-4f6b-9d53-000000000001"}, vmodl.fault.NotSupported, "spec.uuid"),
        ({"cpuAllocation": vim.ResourceAllocationInfo(limit=500)}, vmodl.fault.NotSupported, "cpuAllocation.limit"),
        ({"cpuHotAddEnabled": True}, vmodl.fault.NotSupported, "spec.cpuHotAddEnabled"),
        ({"instanceUuid": "x"}, vmodl.fault.InvalidArgument, "not a UUID"),
        ({"memoryMB": 1}, vmodl.fault.InvalidArgument, "memory_mib"),
        ({"deviceChange": [change(dev.VirtualTPM(key=1), "add")]}, vim.fault.DeviceUnsupportedForVmPlatform, "TPM"),
        (
            {"deviceChange": [change(dev.VirtualDisk(key=2000, capacityInKB=1024))]},
            vim.fault.InvalidDeviceSpec,
            "small",
        ),
        ({"deviceChange": [change(dev.VirtualDisk(key=2009, capacityInKB=1024))]}, vim.fault.DeviceNotFound, "2009"),
    ],
)
def test_a_refusal_names_the_field(world: Any, fields: Any, fault: Any, named: str) -> None:
    with pytest.raises(fault) as refused:
        wish(world, **fields)
    assert named in refused.value.msg


# -- new VMs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["cpuHotAddEnabled", "nestedHVEnabled"])
def test_a_new_vm_has_no_field_that_this_host_has_not(world: Any, field: str) -> None:
    with pytest.raises(vmodl.fault.NotSupported, match=field):
        creation(world, **{field: True})


ISO = dev.VirtualCdrom.IsoBackingInfo(fileName="[x] a.iso")


def creation(world: Any, **fields: Any) -> Any:
    return creation_of(world, vim.vm.ConfigSpec(**{"name": "new", **fields}))


def test_a_vm_is_made_of_an_image_its_disks_and_cards(world: Any) -> None:
    file = dev.VirtualDisk.FlatVer2BackingInfo(fileName="[ramet] images/micro", diskMode="persistent")
    image = dev.VirtualDisk(key=-1, backing=file)
    made = creation(
        world,
        memoryMB=256,
        numCPUs=2,
        firmware="efi",
        annotation="Hm.",
        extraConfig=[vim.option.OptionValue(key="guestinfo.a", value="b")],
        deviceChange=[
            change(dev.VirtualLsiLogicController(key=1000, busNumber=0, sharedBus="noSharing"), "add"),
            change(image, "add"),
            change(dev.VirtualDisk(key=-2, capacityInKB=2048), "add", fileOperation="create"),
            change(card(-3, network="green"), "add"),
            change(dev.VirtualVideoCard(key=500), "add"),
        ],
    )
    request = made.request
    assert (request.name, request.image, request.memory_mib, request.vcpus) == ("new", "micro", 256, 2)
    assert (request.firmware, request.display) == (Firmware.UEFI, Display.VGA)
    assert request.disks == (DiskRequest(size_mib=2),)
    assert request.nics == (NicRequest(network="green", model=NicModel.VMXNET3),)
    assert (request.extra_config, made.notes) == ({"guestinfo.a": "b"}, {"annotation": "Hm."})


def test_the_image_may_be_named_in_extra_config(world: Any) -> None:
    option = vim.option.OptionValue
    assert creation(world, extraConfig=[option(key="ramet.image", value="micro")]).request.image == "micro"
    with pytest.raises(vmodl.fault.InvalidArgument, match="There are: micro"):
        creation(world, extraConfig=[option(key="ramet.image", value="macro")])


@pytest.mark.parametrize(
    ("device", "fault"),
    [
        (dev.VirtualDisk(key=-1), vim.fault.InvalidDeviceBacking),
        (dev.VirtualTPM(key=-1), vim.fault.DeviceUnsupportedForVmPlatform),
        (
            dev.VirtualCdrom(key=-1, backing=dev.VirtualCdrom.IsoBackingInfo(fileName="[x] a.iso")),
            vim.fault.InvalidDeviceBacking,
        ),
    ],
)
def test_a_device_that_there_is_not_is_refused(world: Any, device: Any, fault: Any) -> None:
    with pytest.raises(fault):
        creation(world, deviceChange=[change(device, "add")])


# -- customizations ----------------------------------------------------------------------------------------------------

kinds = vim.vm.customization


def customization(*adapters: Any, name: Any = None, **prep: Any) -> Any:
    return kinds.Specification(
        identity=kinds.LinuxPrep(hostName=name or kinds.FixedName(name="Web-1"), domain="example.org", **prep),
        globalIPSettings=kinds.GlobalIPSettings(dnsServerList=["10.0.0.1"]),
        nicSettingMap=list(adapters),
    )


def adapter(address: str | None, mask: str = "255.255.0.0", mac: str | None = None, **more: Any) -> Any:
    ip = kinds.FixedIp(ipAddress=address) if address else kinds.DhcpIpGenerator()
    return kinds.AdapterMapping(macAddress=mac, adapter=kinds.IPSettings(ip=ip, subnetMask=mask, **more))


def test_a_customization_becomes_the_values_of_an_identity() -> None:
    first = adapter("10.1.0.5", gateway=["10.1.0.1"], dnsServerList=["10.0.0.2"])
    values, zone = values_of(MACHINE, customization(first, adapter(None), timeZone="Europe/Berlin"))
    assert (values.hostname, values.domain, values.dns) == ("web-1", "example.org", ("10.0.0.1", "10.0.0.2"))
    assert {nic: (one.address, one.gateway) for nic, one in values.nics.items()} == {
        "net0": ("10.1.0.5/16", "10.1.0.1"),
        "net1": ("dhcp", None),
    }
    assert zone == "Europe/Berlin"


def test_a_mac_address_says_which_card() -> None:
    values, _ = values_of(MACHINE, customization(adapter("10.1.0.5", mac=MACHINE.nics[1].mac.upper())))
    assert list(values.nics) == ["net1"]


def test_a_name_may_be_that_of_the_vm_or_begin_with_something() -> None:
    values, _ = values_of(MACHINE, customization(name=kinds.VirtualMachineNameGenerator()))
    assert values.hostname is None
    values, _ = values_of(MACHINE, customization(name=kinds.PrefixNameGenerator(base="db")))
    assert values.hostname == f"db-{MACHINE.uuid[:8]}"


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (customization(adapter(None), adapter(None), adapter(None)), vim.fault.NicSettingMismatch),
        (customization(adapter("10.1.0.5", mac="52:54:00:00:00:09")), vmodl.fault.InvalidArgument),
        (customization(adapter("no address")), vmodl.fault.InvalidArgument),
        (customization(name=kinds.FixedName(name="a b")), vmodl.fault.InvalidArgument),
        (customization(name=kinds.UnknownNameGenerator()), vmodl.fault.NotSupported),
        (customization(scriptText="#!/bin/sh"), vmodl.fault.NotSupported),
        (
            kinds.Specification(identity=kinds.CloudinitPrep(metadata="x"), globalIPSettings=kinds.GlobalIPSettings()),
            vim.fault.UncustomizableGuest,
        ),
    ],
)
def test_a_customization_that_cannot_be_is_refused(spec: Any, fault: Any) -> None:
    with pytest.raises(fault):
        values_of(MACHINE, spec)


def test_every_fault_of_instant_clone_can_be_made() -> None:
    """The schema's own list, so that none of them is missing from what is tested here and in `test_refusals`."""
    info = next(one for one in vim.VirtualMachine._GetMethodList() if one.wsdlName == "InstantClone_Task")
    assert {name.rpartition(".")[2] for name in info.faults} == {
        "TaskInProgress",
        "InvalidState",
        "InvalidDatastore",
        "InsufficientResourcesFault",
        "DisallowedMigrationDeviceAttached",
        "FileFault",
    }
