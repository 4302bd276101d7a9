"""A virtual machine's properties in the words of the automation API.

    await vm_info(ask, mo) -> VmInfo
    cpu_of(config), memory_of(config), disks_of(config), nics_of(config), guest_os("debian12_64Guest") -> "DEBIAN_12_64"
"""

from __future__ import annotations

import re
from typing import Any

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.vm_structs import (
    Backing,
    Boot,
    BootDevice,
    Cpu,
    DiskBacking,
    DiskInfo,
    EthernetInfo,
    Hardware,
    Identity,
    Memory,
    ScsiAdapter,
    ScsiAddress,
    VmInfo,
)
from ramet.vsphere.types import vim

POWER = {"poweredOn": "POWERED_ON", "poweredOff": "POWERED_OFF", "suspended": "SUSPENDED"}
_MAC_TYPES = {"manual": "MANUAL", "generated": "GENERATED", "assigned": "ASSIGNED"}
_CARDS = {
    "VirtualVmxnet3": "VMXNET3", "VirtualVmxnet2": "VMXNET2", "VirtualE1000": "E1000", "VirtualE1000e": "E1000E",
    "VirtualPCNet32": "PCNET32",
}  # fmt: skip
_CONTROLLERS = {
    "ParaVirtualSCSIController": "PVSCSI", "VirtualLsiLogicController": "LSILOGIC",
    "VirtualLsiLogicSASController": "LSILOGICSAS", "VirtualBusLogicController": "BUSLOGIC",
}  # fmt: skip
_WINDOWS = {
    "WINDOWS_2019SRV_64": "WINDOWS_SERVER_2019", "WINDOWS_2019SRV_NEXT_64": "WINDOWS_SERVER_2021",
    "WINDOWS_11_64": "WINDOWS_11_64", "OTHER_GUEST_64": "OTHER_64", "OTHER_GUEST": "OTHER",
}  # fmt: skip


async def vm_info(ask: Ask, mo: Mo) -> VmInfo:
    found = await ask.read(mo, "name", "config", "runtime.powerState", "runtime.instantCloneFrozen")
    config = found["config"]
    disks, nics = disks_of(config), nics_of(config)
    return VmInfo(
        guest_OS=guest_os(config.guestId),
        name=found["name"],
        identity=Identity(name=found["name"], bios_uuid=config.uuid or "", instance_uuid=config.instanceUuid or ""),
        power_state=POWER[str(found["runtime.powerState"])],
        instant_clone_frozen=found.get("runtime.instantCloneFrozen", False),
        hardware=hardware_of(config),
        boot=_boot(config),
        boot_devices=[BootDevice(type="DISK", disks=list(disks))] if disks else [],
        cpu=cpu_of(config),
        memory=memory_of(config),
        disks=disks,
        nics=nics,
        cdroms={},
        floppies={},
        parallel_ports={},
        serial_ports={},
        sata_adapters={},
        scsi_adapters=_controllers(config),
        nvme_adapters={},
    )


def hardware_of(config: Any) -> Hardware:
    version = re.sub(r"\D", "", config.version or "") or "21"
    return Hardware(version=f"VMX_{int(version):02}", upgrade_policy="NEVER", upgrade_status="NONE")


def cpu_of(config: Any) -> Cpu:
    return Cpu(
        count=config.hardware.numCPU,
        cores_per_socket=config.hardware.numCoresPerSocket or 1,
        hot_add_enabled=bool(config.cpuHotAddEnabled),
        hot_remove_enabled=bool(config.cpuHotRemoveEnabled),
    )


def memory_of(config: Any) -> Memory:
    return Memory(size_MiB=config.hardware.memoryMB, hot_add_enabled=bool(config.memoryHotAddEnabled))


def _boot(config: Any) -> Boot:
    options = config.bootOptions
    is_efi = config.firmware == "efi"
    return Boot(
        type="EFI" if is_efi else "BIOS",
        efi_legacy_boot=False if is_efi else None,
        network_protocol="IPV4" if is_efi else None,
        delay=getattr(options, "bootDelay", None) or 0,
        retry=bool(getattr(options, "bootRetryEnabled", None)),
        retry_delay=getattr(options, "bootRetryDelay", None) or 10000,
        enter_setup_mode=bool(getattr(options, "enterBIOSSetup", None)),
    )


def devices(config: Any, kind: Any) -> dict[str, Any]:
    """By their keys, as text: so the automation API names them."""
    return {str(one.key): one for one in config.hardware.device if isinstance(one, kind)}


def disks_of(config: Any) -> dict[str, DiskInfo]:
    buses = {one.key: one.busNumber for one in devices(config, vim.vm.device.VirtualController).values()}
    return {key: _disk(one, buses) for key, one in devices(config, vim.vm.device.VirtualDisk).items()}


def _disk(device: Any, buses: dict[int, int]) -> DiskInfo:
    return DiskInfo(
        label=_label(device),
        type="SCSI",
        scsi=ScsiAddress(bus=buses.get(device.controllerKey, 0), unit=device.unitNumber or 0),
        backing=DiskBacking(type="VMDK_FILE", vmdk_file=getattr(device.backing, "fileName", None)),
        capacity=device.capacityInBytes or (device.capacityInKB or 0) * 1024,
    )


def nics_of(config: Any) -> dict[str, EthernetInfo]:
    return {key: _nic(one) for key, one in devices(config, vim.vm.device.VirtualEthernetCard).items()}


def _nic(device: Any) -> EthernetInfo:
    link, kind = device.connectable, _CARDS.get(type(device)._wsdlName, "VMXNET3")
    return EthernetInfo(
        label=_label(device),
        type=kind,
        upt_compatibility_enabled=False if kind == "VMXNET3" else None,  # clients refuse a card of this make without
        mac_type=_MAC_TYPES.get(str(device.addressType), "MANUAL"),
        mac_address=device.macAddress,
        wake_on_lan_enabled=bool(device.wakeOnLanEnabled),
        backing=_backing(device.backing),
        state="CONNECTED" if link is not None and link.connected else "NOT_CONNECTED",
        start_connected=bool(link is not None and link.startConnected),
        allow_guest_control=bool(link is not None and link.allowGuestControl),
    )


def _backing(backing: Any) -> Backing:
    network = getattr(backing, "network", None)
    return Backing(
        type="STANDARD_PORTGROUP",
        network=None if network is None else network._moId,
        network_name=getattr(backing, "deviceName", None),
    )


def _controllers(config: Any) -> dict[str, ScsiAdapter]:
    found = devices(config, vim.vm.device.VirtualSCSIController)
    return {
        key: ScsiAdapter(
            label=_label(one),
            type=_CONTROLLERS.get(type(one)._wsdlName, "PVSCSI"),
            scsi=ScsiAddress(bus=one.busNumber, unit=one.scsiCtlrUnitNumber or 7),
            sharing="NONE",
        )
        for key, one in found.items()
    }


def _label(device: Any) -> str:
    return str(device.deviceInfo.label) if device.deviceInfo is not None else f"Device {device.key}"


def guest_os(guest_id: str | None) -> str:
    """'debian12_64Guest' -> 'DEBIAN_12_64'."""
    text = re.sub(r"Guest$", "", guest_id or "otherGuest64")
    text = re.sub(r"(?<=[a-z])(?=\d)|(?<=[a-z0-9])(?=[A-Z])", "_", text).upper().replace("3_X", "3X")
    text = re.sub(r"(\d)_X_", r"\1X_", text)
    return _WINDOWS.get(text, text)


def guest_id(guest_os: str) -> str:
    """'DEBIAN_12_64' -> 'debian12_64Guest': the id of the schema that is written so, or one for any other system."""
    wanted = guest_os.upper()
    known = (str(value) for value in vim.vm.GuestOsDescriptor.GuestOsIdentifier.values)
    return next((one for one in known if globals()["guest_os"](one) == wanted), "otherGuest64")
