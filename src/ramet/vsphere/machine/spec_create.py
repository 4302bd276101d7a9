"""A ConfigSpec for a VM that is to be made: from an image, with further disks and cards.

    creation_of(world, spec) -> Creation                # changes nothing

The image stands in extraConfig under `ramet.image`, or is the backing of a disk: "[ramet] images/NAME".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ramet.model.machine import Display, Firmware
from ramet.model.requests import CreateVm, DiskRequest, NicRequest
from ramet.vsphere.core.world import World
from ramet.vsphere.machine.spec_devices import connected_now, is_nic, manual_mac, network_of, nic_model, parsed
from ramet.vsphere.machine.spec_instant import check_name
from ramet.vsphere.machine.spec_options import IMAGE, options_of
from ramet.vsphere.machine.spec_reconfigure import INERT, NEVER, TAKEN, disk_mib, notes_of, set_fields
from ramet.vsphere.types import vim, vmodl

_IMAGE_FILE = re.compile(r"\[ramet\] ?images/(?P<name>[^/]+)$")
_FIRMWARES = {"bios": Firmware.BIOS, "efi": Firmware.UEFI}


@dataclass(frozen=True, slots=True)
class Creation:
    request: CreateVm
    notes: dict[str, str]


@dataclass
class _Devices:
    image: str | None = None
    nics: list[NicRequest] = field(default_factory=list)
    disks: list[DiskRequest] = field(default_factory=list)
    display: Display = Display.NONE


def creation_of(world: World, spec: Any) -> Creation:
    name = check_name(spec.name, "config.name")
    for field_name, value in set_fields(spec):
        known = field_name in TAKEN or (field_name in INERT and field_name != "uuid")
        if not known or (field_name in NEVER and value):
            raise vmodl.fault.NotSupported(msg=f"config.{field_name}: this server does not support it.")
    image, options = options_of(spec.extraConfig, "config.extraConfig").taking(IMAGE)
    devices = _devices(world, spec)
    image = image or devices.image
    if image is not None and world.host.floor.inventory.images.get(image) is None:
        have = ", ".join(one.name for one in world.host.floor.inventory.images.all())
        raise vmodl.fault.InvalidArgument(
            invalidProperty="config.extraConfig", msg=f"There is no image {image!r}. There are: {have or 'none'}."
        )
    request: CreateVm = parsed(
        CreateVm,
        "config",
        name=name,
        image=image,
        memory_mib=spec.memoryMB,
        vcpus=spec.numCPUs,
        firmware=_firmware(spec.firmware),
        nics=tuple(devices.nics),
        disks=tuple(devices.disks),
        display=devices.display,
        extra_config=options.set,
    )
    return Creation(request, notes_of(spec))


def _firmware(name: str | None) -> Firmware | None:
    if name is None:
        return None
    if name not in _FIRMWARES:
        raise vmodl.fault.InvalidArgument(invalidProperty="config.firmware", msg=f"There is no firmware {name!r}.")
    return _FIRMWARES[name]


def _devices(world: World, spec: Any) -> _Devices:
    found = _Devices()
    for number, change in enumerate(spec.deviceChange or ()):
        at = f"config.deviceChange[{number}]"
        if change.operation not in (None, "add"):
            raise vmodl.fault.InvalidArgument(
                invalidProperty=f"{at}.operation", msg="The devices of a VM that is to be made can only be added."
            )
        _add(found, world, change.device, at, number)
    return found


def _add(found: _Devices, world: World, device: Any, at: str, number: int) -> None:
    kinds = vim.vm.device
    if is_nic(device):
        found.nics.append(_nic(world, device, f"{at}.device"))
    elif isinstance(device, kinds.VirtualDisk):
        _disk(found, device, f"{at}.device", number)
    elif isinstance(device, kinds.VirtualVideoCard):
        found.display = Display.VGA
    elif isinstance(device, kinds.VirtualCdrom):
        _cdrom(device, f"{at}.device", number)
    elif not isinstance(device, kinds.VirtualController | kinds.VirtualKeyboard | kinds.VirtualPointingDevice):
        raise vim.fault.DeviceUnsupportedForVmPlatform(
            deviceIndex=number,
            property=f"{at}.device",
            msg=f"There is no {type(device)._wsdlName} on this host.",
        )


def _nic(world: World, device: Any, at: str) -> NicRequest:
    connected = connected_now(device.connectable, is_on=False)
    request: NicRequest = parsed(
        NicRequest,
        at,
        model=nic_model(device),
        mac=manual_mac(device),
        connected=True if connected is None else connected,
    )
    return request.model_copy(update={"network": network_of(world, device.backing, f"{at}.backing")})


def _disk(found: _Devices, device: Any, at: str, number: int) -> None:
    """The image's disk, where the backing names one; else a new, empty one."""
    file_name = getattr(device.backing, "fileName", None) or ""
    image = _IMAGE_FILE.match(file_name)
    if image is not None and found.image is None:
        found.image = image["name"]
        return
    if file_name.strip() not in ("", "[ramet]") or disk_mib(device) <= 0:
        raise vim.fault.InvalidDeviceBacking(
            deviceIndex=number,
            property=f"{at}.backing",
            msg=f'A disk is empty and has a capacityInKB, or is an image, "[ramet] images/NAME"; not {file_name!r}.',
        )
    found.disks.append(DiskRequest(size_mib=disk_mib(device)))


def _cdrom(device: Any, at: str, number: int) -> None:
    """An empty drive is left out: it would hold nothing."""
    file_name = getattr(device.backing, "fileName", None)
    if file_name:
        raise vim.fault.InvalidDeviceBacking(
            deviceIndex=number,
            property=f"{at}.backing",
            msg="ISO files are not on the datastore: a VM is given one of the host's files on the host, by 'ramet vm'.",
        )
