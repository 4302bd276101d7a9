"""Structures of com.vmware.vcenter.VM and of what is below it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ramet.vsphere.rest.structs import Map, Struct

_VM, _HARDWARE = "com.vmware.vcenter.VM", "com.vmware.vcenter.vm.hardware"
PowerState = Literal["POWERED_OFF", "POWERED_ON", "SUSPENDED"]
MacType = Literal["MANUAL", "GENERATED", "ASSIGNED"]


class FilterSpec(Struct):
    vapi = f"{_VM}.filter_spec"
    vms: list[str] | None = None
    names: list[str] | None = None
    folders: list[str] | None = None
    datacenters: list[str] | None = None
    hosts: list[str] | None = None
    clusters: list[str] | None = None
    resource_pools: list[str] | None = None
    power_states: list[PowerState] | None = None


class Summary(Struct):
    vapi = f"{_VM}.summary"
    vm: str
    name: str
    power_state: str
    cpu_count: int | None = None
    memory_size_MiB: int | None = None  # noqa: N815


class Identity(Struct):
    vapi = "com.vmware.vcenter.vm.identity.info"
    name: str
    bios_uuid: str
    instance_uuid: str


class Hardware(Struct):
    vapi = f"{_HARDWARE}.info"
    version: str
    upgrade_policy: str
    upgrade_version: str | None = None
    upgrade_status: str


class Boot(Struct):
    vapi = f"{_HARDWARE}.boot.info"
    type: str
    efi_legacy_boot: bool | None = None
    network_protocol: str | None = None
    delay: int
    retry: bool
    retry_delay: int
    enter_setup_mode: bool


class BootDevice(Struct):
    vapi = f"{_HARDWARE}.boot.device.entry"
    type: str
    nic: str | None = None
    disks: list[str] | None = None


class Cpu(Struct):
    vapi = f"{_HARDWARE}.cpu.info"
    count: int
    cores_per_socket: int
    hot_add_enabled: bool
    hot_remove_enabled: bool


class Memory(Struct):
    vapi = f"{_HARDWARE}.memory.info"
    size_MiB: int  # noqa: N815
    hot_add_enabled: bool
    hot_add_increment_size_MiB: int | None = None  # noqa: N815
    hot_add_limit_MiB: int | None = None  # noqa: N815


class ScsiAddress(Struct):
    vapi = f"{_HARDWARE}.scsi_address_info"
    bus: int
    unit: int


class DiskBacking(Struct):
    vapi = f"{_HARDWARE}.disk.backing_info"
    type: str
    vmdk_file: str | None = None


class DiskInfo(Struct):
    vapi = f"{_HARDWARE}.disk.info"
    label: str
    type: str
    scsi: ScsiAddress | None = None
    backing: DiskBacking
    capacity: int | None = None


class DiskSummary(Struct):
    vapi = f"{_HARDWARE}.disk.summary"
    disk: str


class Backing(Struct):
    vapi = f"{_HARDWARE}.ethernet.backing_info"
    type: str
    network: str | None = None
    network_name: str | None = None


class EthernetInfo(Struct):
    vapi = f"{_HARDWARE}.ethernet.info"
    label: str
    type: str
    upt_compatibility_enabled: bool | None = None
    mac_type: str
    mac_address: str | None = None
    pci_slot_number: int | None = None
    wake_on_lan_enabled: bool
    backing: Backing
    state: str
    start_connected: bool
    allow_guest_control: bool


class EthernetSummary(Struct):
    vapi = f"{_HARDWARE}.ethernet.summary"
    nic: str


class ScsiAdapter(Struct):
    vapi = f"{_HARDWARE}.adapter.scsi.info"
    label: str
    type: str
    scsi: ScsiAddress
    pci_slot_number: int | None = None
    sharing: str


class VmInfo(Struct):
    vapi = f"{_VM}.info"
    guest_OS: str  # noqa: N815
    name: str
    identity: Identity | None = None
    power_state: str
    instant_clone_frozen: bool | None = None
    hardware: Hardware
    boot: Boot
    boot_devices: list[BootDevice]
    cpu: Cpu
    memory: Memory
    disks: dict[str, DiskInfo]
    nics: dict[str, EthernetInfo]
    cdroms: dict[str, Struct]
    floppies: dict[str, Struct]
    parallel_ports: dict[str, Struct]
    serial_ports: dict[str, Struct]
    sata_adapters: dict[str, Struct]
    scsi_adapters: dict[str, ScsiAdapter]
    nvme_adapters: dict[str, Struct] | None = None


class PowerInfo(Struct):
    vapi = "com.vmware.vcenter.vm.power.info"
    state: str
    clean_power_off: bool | None = None


class BackingSpec(Struct):
    vapi = f"{_HARDWARE}.ethernet.backing_spec"
    type: Literal["STANDARD_PORTGROUP", "HOST_DEVICE", "DISTRIBUTED_PORTGROUP", "OPAQUE_NETWORK"]
    network: str | None = None
    distributed_port: str | None = None


class EthernetUpdate(Struct):
    vapi = f"{_HARDWARE}.ethernet.update_spec"
    upt_compatibility_enabled: bool | None = None
    upt_v2_compatibility_enabled: bool | None = None
    mac_type: MacType | None = None
    mac_address: str | None = None
    wake_on_lan_enabled: bool | None = None
    backing: BackingSpec | None = None
    start_connected: bool | None = None
    allow_guest_control: bool | None = None


class EthernetCreate(EthernetUpdate):
    vapi = f"{_HARDWARE}.ethernet.create_spec"
    type: Literal["E1000", "E1000E", "PCNET32", "VMXNET", "VMXNET2", "VMXNET3"] | None = None
    pci_slot_number: int | None = None


class Placement(Struct):
    vapi = f"{_VM}.placement_spec"
    folder: str | None = None
    resource_pool: str | None = None
    host: str | None = None
    cluster: str | None = None
    datastore: str | None = None


class InstantPlacement(Struct):
    vapi = f"{_VM}.instant_clone_placement_spec"
    folder: str | None = None
    resource_pool: str | None = None
    datastore: str | None = None


class PortBackingSpec(Struct):
    vapi = f"{_HARDWARE}.serial.backing_spec"
    type: str
    file: str | None = None
    host_device: str | None = None
    pipe: str | None = None
    no_rx_loss: bool | None = None
    network_location: str | None = None
    proxy: str | None = None


class PortUpdate(Struct):
    """Of a serial or a parallel port."""

    vapi = f"{_HARDWARE}.serial.update_spec"
    yield_on_poll: bool | None = None
    backing: PortBackingSpec | None = None
    start_connected: bool | None = None
    allow_guest_control: bool | None = None


class InstantCloneSpec(Struct):
    vapi = f"{_VM}.instant_clone_spec"
    source: str
    name: str
    placement: InstantPlacement | None = None
    nics_to_update: Map[EthernetUpdate] | None = None
    disconnect_all_nics: bool | None = None
    parallel_ports_to_update: Map[PortUpdate] | None = None
    serial_ports_to_update: Map[PortUpdate] | None = None
    bios_uuid: str | None = None


class CustomizationName(Struct):
    vapi = f"{_VM}.guest_customization_spec"
    name: str | None = None


class CloneSpec(Struct):
    vapi = f"{_VM}.clone_spec"
    source: str
    name: str
    placement: Placement | None = None
    disks_to_remove: list[str] | None = None
    disks_to_update: Map[dict[str, str]] | None = None
    power_on: bool | None = None
    guest_customization_spec: CustomizationName | None = None


class CpuUpdate(Struct):
    vapi = f"{_HARDWARE}.cpu.update_spec"
    count: int | None = Field(default=None, ge=1)
    cores_per_socket: int | None = Field(default=None, ge=1)
    hot_add_enabled: bool | None = None
    hot_remove_enabled: bool | None = None


class MemoryUpdate(Struct):
    vapi = f"{_HARDWARE}.memory.update_spec"
    size_MiB: int | None = Field(default=None, ge=1)  # noqa: N815
    hot_add_enabled: bool | None = None


class BootCreate(Struct):
    vapi = f"{_HARDWARE}.boot.create_spec"
    type: Literal["BIOS", "EFI"] | None = None
    efi_legacy_boot: bool | None = None
    network_protocol: str | None = None
    delay: int | None = None
    retry: bool | None = None
    retry_delay: int | None = None
    enter_setup_mode: bool | None = None


class VmdkCreate(Struct):
    vapi = f"{_HARDWARE}.disk.vmdk_create_spec"
    name: str | None = None
    capacity: int | None = Field(default=None, ge=1)


class DiskBackingSpec(Struct):
    vapi = f"{_HARDWARE}.disk.backing_spec"
    type: Literal["VMDK_FILE"]
    vmdk_file: str | None = None


class DiskCreate(Struct):
    vapi = f"{_HARDWARE}.disk.create_spec"
    type: Literal["IDE", "SCSI", "SATA", "NVME"] | None = None
    ide: dict[str, bool] | None = None
    scsi: dict[str, int] | None = None
    sata: dict[str, int] | None = None
    nvme: dict[str, int] | None = None
    backing: DiskBackingSpec | None = None
    new_vmdk: VmdkCreate | None = None


class CreateSpec(Struct):
    vapi = f"{_VM}.create_spec"
    guest_OS: str  # noqa: N815
    name: str | None = None
    placement: Placement | None = None
    hardware_version: str | None = None
    boot: BootCreate | None = None
    boot_devices: list[dict[str, str]] | None = None
    cpu: CpuUpdate | None = None
    memory: MemoryUpdate | None = None
    disks: list[DiskCreate] | None = None
    nics: list[EthernetCreate] | None = None
    cdroms: list[dict[str, object]] | None = None
    floppies: list[dict[str, object]] | None = None
    parallel_ports: list[dict[str, object]] | None = None
    serial_ports: list[dict[str, object]] | None = None
    sata_adapters: list[dict[str, object]] | None = None
    scsi_adapters: list[dict[str, object]] | None = None
    nvme_adapters: list[dict[str, object]] | None = None
    storage_policy: dict[str, str] | None = None
