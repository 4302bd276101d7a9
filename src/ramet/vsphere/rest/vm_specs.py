"""What the automation API asks for, as the specs of the managed objects' own methods.

    instant_clone_spec(ask, source_config, spec), clone_spec(ask, spec), config_spec(ask, spec), nic_spec(ask, …)
"""

from __future__ import annotations

import copy
from typing import Any

from ramet.vsphere.core.properties import value_at
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.errors import ApiError
from ramet.vsphere.rest.vm_facts import devices, guest_id
from ramet.vsphere.rest.vm_structs import (
    BackingSpec,
    CloneSpec,
    CreateSpec,
    DiskCreate,
    EthernetCreate,
    EthernetUpdate,
    InstantCloneSpec,
    InstantPlacement,
    Placement,
    PortUpdate,
)
from ramet.vsphere.types import vim

Device = vim.vm.device
Change = vim.vm.device.VirtualDeviceSpec
_MADE = {
    "E1000": "VirtualE1000", "E1000E": "VirtualE1000e", "PCNET32": "VirtualPCNet32", "VMXNET2": "VirtualVmxnet2",
    "VMXNET": "VirtualVmxnet",
}  # fmt: skip


def instant_clone_spec(ask: Ask, config: Any, spec: InstantCloneSpec) -> Any:
    location = _location(ask, spec.placement)
    cards = devices(config, Device.VirtualEthernetCard)
    changed = {key: _changed_card(ask, cards, key, change) for key, change in (spec.nics_to_update or {}).items()}
    if spec.disconnect_all_nics:
        changed = {key: changed.get(key) or copy.copy(card) for key, card in cards.items()}
        for card in changed.values():
            card.connectable = _disconnected(card)
    ports = [*_ports(config, Device.VirtualSerialPort, spec.serial_ports_to_update)]
    ports += _ports(config, Device.VirtualParallelPort, spec.parallel_ports_to_update)
    location.deviceChange = [Change(operation="edit", device=one) for one in [*changed.values(), *ports]]
    return vim.vm.InstantCloneSpec(name=spec.name, location=location, biosUuid=spec.bios_uuid)


def _location(ask: Ask, placement: InstantPlacement | Placement | None) -> Any:
    location = vim.vm.RelocateSpec()
    if placement is not None:
        location.folder = ask.reference(vim.Folder, placement.folder)
        location.pool = ask.reference(vim.ResourcePool, placement.resource_pool)
        location.datastore = ask.reference(vim.Datastore, placement.datastore)
    if isinstance(placement, Placement):
        location.host = ask.reference(vim.HostSystem, placement.host)
    return location


def _disconnected(card: Any) -> Any:
    link = card.connectable
    return Device.VirtualDevice.ConnectInfo(
        startConnected=bool(link is not None and link.startConnected),
        allowGuestControl=bool(link is None or link.allowGuestControl),
        connected=False,
        migrateConnect="disconnect",
    )


def _changed_card(ask: Ask, cards: dict[str, Any], key: str, change: EthernetUpdate) -> Any:
    if key not in cards:
        raise ApiError("not_found", f"The virtual machine has no network card {key!r}.")
    return with_changes(ask, cards[key], change)


def with_changes(ask: Ask, card: Any, change: EthernetUpdate) -> Any:
    """A copy of the card in which is different what was asked for."""
    changed = copy.copy(card)
    if change.backing is not None:
        changed.backing = backing_of(ask, change.backing)
    if change.mac_type is not None:
        changed.addressType = change.mac_type.lower()
        changed.macAddress = change.mac_address
    elif change.mac_address is not None:
        changed.addressType, changed.macAddress = "manual", change.mac_address
    if change.wake_on_lan_enabled is not None:
        changed.wakeOnLanEnabled = change.wake_on_lan_enabled
    if change.start_connected is not None or change.allow_guest_control is not None:
        changed.connectable = copy.copy(card.connectable) or link_of(True, True)
    if change.start_connected is not None:
        changed.connectable.startConnected = change.start_connected
    if change.allow_guest_control is not None:
        changed.connectable.allowGuestControl = change.allow_guest_control
    return changed


def backing_of(ask: Ask, backing: BackingSpec) -> Any:
    if backing.type not in ("STANDARD_PORTGROUP", "DISTRIBUTED_PORTGROUP", "OPAQUE_NETWORK"):
        raise ApiError("unsupported", f"A network card cannot stand on a {backing.type}.")
    if backing.network is None:
        raise ApiError("invalid_argument", "backing.network: it must name a network.")
    network = ask.find(backing.network, vim.Network)
    return Device.VirtualEthernetCard.NetworkBackingInfo(deviceName=_name(network), network=network.ref)


def _name(network: Any) -> str:
    return str(value_at(network, "name"))


def link_of(start_connected: bool, allow_guest_control: bool) -> Any:
    return Device.VirtualDevice.ConnectInfo(
        startConnected=start_connected, allowGuestControl=allow_guest_control, connected=start_connected
    )


def _ports(config: Any, kind: Any, changes: dict[str, PortUpdate] | None) -> list[Any]:
    there, changed = devices(config, kind), []
    for key, change in (changes or {}).items():
        if key not in there:
            raise ApiError("not_found", f"The virtual machine has no port {key!r}.")
        port = copy.copy(there[key])
        if change.backing is not None:
            port.backing = _port_backing(kind, change)
        changed.append(port)
    return changed


def _port_backing(kind: Any, change: PortUpdate) -> Any:
    backing = change.backing
    if backing is None or backing.type != "FILE" or backing.file is None:
        raise ApiError("unsupported", "A port can stand on a file only.")
    return kind.FileBackingInfo(fileName=backing.file)


def clone_spec(ask: Ask, spec: CloneSpec) -> Any:
    if spec.disks_to_remove or spec.disks_to_update or spec.guest_customization_spec:
        raise ApiError("unsupported", "A clone has the disks of its source, and no customization by name.")
    return vim.vm.CloneSpec(location=_location(ask, spec.placement), powerOn=bool(spec.power_on), template=False)


def config_spec(ask: Ask, spec: CreateSpec) -> Any:
    config = vim.vm.ConfigSpec(name=spec.name or _new_name(ask), guestId=guest_id(spec.guest_OS))
    config.files = vim.vm.FileInfo(vmPathName="[ramet]")
    if spec.cpu is not None:
        config.numCPUs, config.numCoresPerSocket = spec.cpu.count, spec.cpu.cores_per_socket
    if spec.memory is not None:
        config.memoryMB = spec.memory.size_MiB
    if spec.boot is not None and spec.boot.type is not None:
        config.firmware = spec.boot.type.lower()
    cards = [new_card(ask, one, -1 - i) for i, one in enumerate(spec.nics or ())]
    disks = [_new_disk(one, -101 - i) for i, one in enumerate(spec.disks or ())]
    config.deviceChange = [*cards, *disks]
    return config


def _new_name(ask: Ask) -> str:
    return f"New Virtual Machine {len(ask.all_of(vim.VirtualMachine)) + 1}"


def new_card(ask: Ask, spec: EthernetCreate, key: int) -> Any:
    kind = getattr(vim.vm.device, _MADE.get(spec.type or "", "VirtualVmxnet3"))
    card = kind(key=key, connectable=link_of(bool(spec.start_connected), bool(spec.allow_guest_control)))
    if spec.backing is not None:
        card.backing = backing_of(ask, spec.backing)
    if spec.mac_address is not None:
        card.addressType, card.macAddress = "manual", spec.mac_address
    return Change(operation="add", device=card)


def _new_disk(spec: DiskCreate, key: int) -> Any:
    disk = Device.VirtualDisk(key=key, capacityInKB=0)
    if spec.backing is not None:
        disk.backing = _backing_file(spec.backing.vmdk_file or "")
        return Change(operation="add", device=disk)
    size = spec.new_vmdk.capacity if spec.new_vmdk is not None and spec.new_vmdk.capacity else 16 << 30
    disk.capacityInKB, disk.capacityInBytes = size >> 10, size
    disk.backing = _backing_file("")
    return Change(operation="add", fileOperation="create", device=disk)


def _backing_file(name: str) -> Any:
    return Device.VirtualDisk.FlatVer2BackingInfo(fileName=name, diskMode="persistent", thinProvisioned=True)
