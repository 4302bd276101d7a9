"""A VM's hardware, as virtual devices.

    hardware(mo) -> VirtualHardware            # of a prepared VirtualMachine
    devices(mo) -> list[VirtualDevice]

Keys are the original's: 4000 is the first network card, 2000 the first disk. A virtio card has no type of its own in
the schema, nor has a virtio disk's controller: they stand as the paravirtual kind of theirs.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramet.model.machine import Disk, Display, Nic, NicModel, Vm
from ramet.vsphere import ids
from ramet.vsphere.inventory.shape import made
from ramet.vsphere.types import remember, vim

if TYPE_CHECKING:
    from ramet.vsphere.machine.view import MachineView

dev = vim.vm.device
_CARDS = {
    NicModel.VIRTIO: dev.VirtualVmxnet3,
    NicModel.VMXNET3: dev.VirtualVmxnet3,
    NicModel.E1000E: dev.VirtualE1000e,
}
_CARD_BACKING = dev.VirtualEthernetCard.NetworkBackingInfo
_CONNECTION = dev.VirtualDevice.ConnectInfo
_DISK_BACKING = dev.VirtualDisk.FlatVer2BackingInfo
_SERIAL_BACKING = dev.VirtualSerialPort.FileBackingInfo
_DISKS_A_CONTROLLER = 15
_OWN_UNIT = 7
"""The unit of a SCSI bus that is the controller's own."""
_CDROMS_A_CONTROLLER = 2
_LAYERS = uuid.UUID("0e0f4d5c-24c8-5b35-9b5b-5d1c2f6c0a41")


def hardware(mo: MachineView) -> Any:
    machine = mo.vm.machine
    return made(
        vim.vm.VirtualHardware,
        numCPU=machine.vcpus,
        numCoresPerSocket=machine.vcpus,
        autoCoresPerSocket=True,
        memoryMB=machine.memory_mib,
        virtualICH7MPresent=False,
        virtualSMCPresent=False,
        device=devices(mo),
    )


def devices(mo: MachineView) -> list[Any]:
    vm = mo.vm
    disks = [_disk(mo, disk, index) for index, disk in enumerate(shown_disks(vm))]
    cdroms = [_cdrom(mo, path, index) for index, path in enumerate(vm.machine.cdroms)]
    cards = [_card(mo, nic, index) for index, nic in enumerate(vm.machine.nics)]
    video = [_video()] if vm.machine.display is not Display.NONE else []
    keyboard, pointing = _input(dev.VirtualKeyboard, ids.KEYBOARD, "Keyboard"), _pointing()
    serial = [_serial(mo)]
    inner = [*video, *cards, *disks, *cdroms, keyboard, pointing, *serial]
    return [*_controllers(inner, len(disks)), *inner]


def shown_disks(vm: Vm) -> list[Disk]:
    """The variables of UEFI are a file of the VM, no disk of its guest."""
    return [disk for disk in vm.machine.disks if not disk.is_efivars]


def layer_file(layer_id: str) -> str:
    return f"[{ids.DATASTORE_NAME}] layers/{layer_id}.qcow2"


@remember(4096)
def _info(label: str, summary: str | None = None) -> Any:
    """The same for all VMs; nobody changes what was made here."""
    return made(vim.Description, label=label, summary=summary or label)


# -- controllers -------------------------------------------------------------------------------------------------------


def _controllers(inner: list[Any], disks: int) -> list[Any]:
    """Each with the keys of what hangs on it."""
    buses = range(-(-disks // _DISKS_A_CONTROLLER))
    scsi = [_scsi(number) for number in buses]
    controllers = [
        made(dev.VirtualIDEController, key=ids.IDE_FIRST, busNumber=0, deviceInfo=_info("IDE 0")),
        made(dev.VirtualIDEController, key=ids.IDE_FIRST + 1, busNumber=1, deviceInfo=_info("IDE 1")),
        made(dev.VirtualPS2Controller, key=ids.PS2, busNumber=0, deviceInfo=_info("PS2 controller 0")),
        made(dev.VirtualPCIController, key=ids.PCI, busNumber=0, deviceInfo=_info("PCI controller 0")),
        made(dev.VirtualSIOController, key=ids.SIO, busNumber=0, deviceInfo=_info("SIO controller 0")),
        *scsi,
    ]
    for controller in controllers:
        controller.device.extend(one.key for one in (*scsi, *inner) if one.controllerKey == controller.key)
    return controllers


def _scsi(number: int) -> Any:
    return made(
        dev.ParaVirtualSCSIController,
        key=ids.SCSI_FIRST + number,
        controllerKey=ids.PCI,
        unitNumber=3 + number,
        busNumber=number,
        sharedBus="noSharing",
        hotAddRemove=True,
        scsiCtlrUnitNumber=_OWN_UNIT,
        deviceInfo=_info(f"SCSI controller {number}", "virtio"),
    )


# -- disks -------------------------------------------------------------------------------------------------------------


def _disk(mo: MachineView, disk: Disk, index: int) -> Any:
    unit = index % _DISKS_A_CONTROLLER
    return made(
        dev.VirtualDisk,
        key=ids.disk_key(disk),
        controllerKey=ids.SCSI_FIRST + index // _DISKS_A_CONTROLLER,
        unitNumber=unit if unit < _OWN_UNIT else unit + 1,
        deviceInfo=_info(f"Hard disk {index + 1}", f"{disk.size_bytes // 1024:,} KB"),
        backing=_backing(mo, disk),
        capacityInKB=disk.size_bytes // 1024,
        capacityInBytes=disk.size_bytes,
        shares=made(vim.SharesInfo, shares=1000, level="normal"),
        diskObjectId=f"{int(mo.vm.id, 16)}-{ids.disk_key(disk)}",
        nativeUnmanagedLinkedClone=False,
    )


def _backing(mo: MachineView, disk: Disk) -> Any:
    """The top layer, over its parents: the deltas between which clones share what they have in common."""
    chain = [layer.id for layer in mo.disks.chain(disk.layer)] or [disk.layer]
    backing = None
    for layer_id in reversed(chain):
        backing = made(
            _DISK_BACKING,
            fileName=layer_file(layer_id),
            datastore=mo.datastore,
            backingObjectId="",
            diskMode="persistent",
            split=False,
            writeThrough=False,
            thinProvisioned=True,
            eagerlyScrub=False,
            uuid=str(uuid.uuid5(_LAYERS, layer_id)),
            contentId=uuid.uuid5(_LAYERS, layer_id).hex,
            parent=backing,
            deltaDiskFormat="redoLogFormat" if backing is not None else None,
            digestEnabled=False,
            sharing="sharingNone",
        )
    return backing


def _cdrom(mo: MachineView, path: str, index: int) -> Any:
    return made(
        dev.VirtualCdrom,
        key=ids.CDROM_FIRST + index,
        controllerKey=ids.IDE_FIRST + index // _CDROMS_A_CONTROLLER,
        unitNumber=index % _CDROMS_A_CONTROLLER,
        deviceInfo=_info(f"CD/DVD drive {index + 1}", f"ISO {_datastore_path(mo, path)}"),
        backing=made(dev.VirtualCdrom.IsoBackingInfo, fileName=_datastore_path(mo, path), datastore=mo.datastore),
        connectable=_connectable(mo.vm.is_on, True),
    )


def _datastore_path(mo: MachineView, path: str) -> str:
    """Inside the state folder by the datastore; elsewhere on the host without one."""
    root = mo.world.host.settings.state_dir
    inside = Path(path).is_relative_to(root)
    return f"[{ids.DATASTORE_NAME}] {Path(path).relative_to(root)}" if inside else f"[] {path}"


# -- network cards -----------------------------------------------------------------------------------------------------


def _card(mo: MachineView, nic: Nic, index: int) -> Any:
    return made(
        _CARDS[nic.model],
        key=ids.nic_key(nic),
        controllerKey=ids.PCI,
        unitNumber=_OWN_UNIT + nic.index,
        deviceInfo=_info(f"Network adapter {index + 1}", nic.network or "no network"),
        backing=made(
            _CARD_BACKING,
            deviceName=nic.network or "",
            useAutoDetect=False,
            network=mo.world.ref(ids.network_moid(nic.network)) if nic.network else None,
            inPassthroughMode=False,
        ),
        connectable=_connectable(mo.vm.is_on and nic.connected, nic.connected),
        addressType="assigned",
        macAddress=nic.mac,
        wakeOnLanEnabled=False,
        externalId=nic.id,
        uptCompatibilityEnabled=False,
    )


def _connectable(connected: bool, at_start: bool) -> Any:
    return made(
        _CONNECTION,
        migrateConnect="unset",
        startConnected=at_start,
        allowGuestControl=False,
        connected=connected,
        status="ok" if connected else "untried",
    )


# -- the rest ----------------------------------------------------------------------------------------------------------


@remember(1)
def _video() -> Any:
    return made(
        dev.VirtualVideoCard,
        key=ids.VIDEO,
        controllerKey=ids.PCI,
        unitNumber=0,
        deviceInfo=_info("Video card"),
        videoRamSizeInKB=16384,
        numDisplays=1,
        useAutoDetect=False,
        enable3DSupport=False,
        use3dRenderer="software",
    )


@remember(4)
def _input(kind: Any, key: int, label: str) -> Any:
    return made(kind, key=key, controllerKey=ids.PS2, unitNumber=0, deviceInfo=_info(label))


@remember(1)
def _pointing() -> Any:
    backing = made(
        dev.VirtualPointingDevice.DeviceBackingInfo, deviceName="", useAutoDetect=False, hostPointingDevice="autodetect"
    )
    return made(
        dev.VirtualPointingDevice,
        key=ids.POINTING,
        controllerKey=ids.PS2,
        unitNumber=1,
        deviceInfo=_info("Pointing device", "Pointing device; PS/2"),
        backing=backing,
    )


def _serial(mo: MachineView) -> Any:
    return made(
        dev.VirtualSerialPort,
        key=ids.SERIAL,
        controllerKey=ids.SIO,
        unitNumber=0,
        deviceInfo=_info("Serial port 1", "The console; its text is kept in a file"),
        backing=made(
            _SERIAL_BACKING,
            fileName=f"{mo.folder}/console.log",
            datastore=mo.datastore,
            backingObjectId="",
        ),
        connectable=_connectable(mo.vm.is_on, True),
        yieldOnPoll=True,
    )
