"""A ConfigSpec for a VM that exists: what of it this host can do, and a refusal that names the first that it cannot.

    wish_of(world, machine, spec, is_on) -> Wish         # changes nothing

What a spec repeats as it is already is no wish: clients send back what they have read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from ramet.model.machine import Disk, Machine
from ramet.model.requests import ChangeVm, NicChange, NicRequest
from ramet.model.units import MIB
from ramet.vsphere.core.world import World
from ramet.vsphere.ids import disk_key
from ramet.vsphere.machine.spec_devices import (
    DeviceChanges,
    connected_now,
    find_nic,
    is_nic,
    manual_mac,
    network_of,
    nic_model,
    parsed,
)
from ramet.vsphere.machine.spec_options import Options, options_of
from ramet.vsphere.types import vim, vmodl

TAKEN = frozenset(
    {
        "name",
        "annotation",
        "guestId",
        "instanceUuid",
        "numCPUs",
        "memoryMB",
        "deviceChange",
        "extraConfig",
        "cpuAllocation",
    }
)
"""Fields that are carried out."""
INERT = frozenset(
    {
        "changeVersion",
        "version",
        "createDate",
        "alternateGuestName",
        "files",
        "tools",
        "flags",
        "consolePreferences",
        "powerOpInfo",
        "numCoresPerSocket",
        "memoryHotAddEnabled",
        "cpuHotAddEnabled",
        "cpuHotRemoveEnabled",
        "swapPlacement",
        "maxMksConnections",
        "changeTrackingEnabled",
        "firmware",
        "uuid",
        "locationId",
        "vAssertsEnabled",
        "messageBusTunnelEnabled",
    }
)
"""Fields that may stand in a spec when they say what is so already; see `_check_inert`."""

NEVER = frozenset(
    {"memoryHotAddEnabled", "cpuHotAddEnabled", "cpuHotRemoveEnabled", "changeTrackingEnabled", "vAssertsEnabled"}
)
"""Of those: what can only be off."""


@dataclass(frozen=True, slots=True)
class Wish:
    change: ChangeVm | None
    devices: DeviceChanges
    options: Options
    notes: dict[str, str]
    """What this surface itself remembers: annotation, guest_id, instance_uuid."""


def wish_of(world: World, machine: Machine, spec: Any, *, is_on: bool) -> Wish:
    """InvalidArgument and its kin say which field is wrong; NotSupported which this host has not."""
    _check_fields(machine, spec)
    options = options_of(spec.extraConfig, "spec.extraConfig")
    present = {key: value for key, value in options.set.items() if machine.extra_config.get(key) != value}
    gone = tuple(key for key in options.unset if key in machine.extra_config)
    fields = {
        "name": spec.name if spec.name and spec.name != machine.name else None,
        "memory_mib": _other(spec.memoryMB, machine.memory_mib),
        "vcpus": _other(spec.numCPUs, machine.vcpus),
        "cpu_limit_percent": _cpu_limit(machine, spec),
    }
    wanted = {name: value for name, value in fields.items() if value is not None}
    change = parsed(ChangeVm, "spec", **wanted, set_config=present, unset_config=gone)
    return Wish(
        change if wanted or present or gone else None,
        device_changes(world, machine, spec.deviceChange, "spec.deviceChange", is_on=is_on),
        options,
        notes_of(spec),
    )


def notes_of(spec: Any) -> dict[str, str]:
    """InvalidArgument for an instance UUID that is none."""
    said = {"annotation": spec.annotation, "guest_id": spec.guestId}
    if spec.instanceUuid:
        try:
            said["instance_uuid"] = str(UUID(spec.instanceUuid))
        except ValueError as exc:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="spec.instanceUuid", msg=f"{spec.instanceUuid!r} is not a UUID."
            ) from exc
    return {name: text for name, text in said.items() if text is not None}


def _other(value: int | None, now: int) -> int | None:
    return value if value is not None and value != now else None


def _cpu_limit(machine: Machine, spec: Any) -> int | None:
    """No MHz are told apart here: 'unlimited' lifts a limit, and any other is refused."""
    allocation = spec.cpuAllocation
    if allocation is None or allocation.limit is None:
        return None
    if allocation.limit != -1:
        raise _unsupported("spec.cpuAllocation.limit", "a limit in MHz; 'ramet vm set' sets one in percent")
    return 0 if machine.cpu_limit_percent is not None else None


def _check_fields(machine: Machine, spec: Any) -> None:
    for name, value in set_fields(spec):
        if name in TAKEN:
            continue
        if name not in INERT:
            raise _unsupported(f"spec.{name}", name)
        _check_inert(machine, name, value)


def _check_inert(machine: Machine, name: str, value: Any) -> None:
    """Of those that would change something if they were another."""
    now = {
        "uuid": machine.uuid,
        "firmware": "efi" if machine.firmware.value == "uefi" else "bios",
    }.get(name)
    if now is not None and str(value).lower() != now:
        raise _unsupported(f"spec.{name}", f"another {name} than {now} for a VM that exists")
    if name in NEVER and value:
        raise _unsupported(f"spec.{name}", name)


def set_fields(data: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a data object that say something."""
    for info in data._GetPropertyList():
        value = getattr(data, info.name)
        if value is not None and value != [] and info.name not in ("dynamicType", "dynamicProperty"):
            yield info.name, value


def _unsupported(field: str, what: str) -> Exception:
    fault: Exception = vmodl.fault.NotSupported(msg=f"{field}: this server does not support {what}.")
    return fault


# -- devices -----------------------------------------------------------------------------------------------------------


def device_changes(
    world: World, machine: Machine, changes: Sequence[Any] | None, where: str, *, is_on: bool
) -> DeviceChanges:
    found = DeviceChanges()
    for number, change in enumerate(changes or ()):
        device = change.device
        if is_nic(device):
            found = _nic_change(found, world, machine, change, where, number, is_on)
        elif isinstance(device, vim.vm.device.VirtualDisk):
            found = _disk_change(found, machine, change, where, number)
        elif not isinstance(device, vim.vm.device.VirtualController) or change.operation != "add":
            _check_same(change, where, number)  # a controller that is added is there already: disks bring their own
    return found


def _check_same(change: Any, where: str, number: int) -> None:
    raise vim.fault.DeviceUnsupportedForVmPlatform(
        deviceIndex=number,
        property=f"{where}[{number}].device",
        msg=f"{type(change.device)._wsdlName} cannot be {change.operation or 'change'}ed on this host: network cards "
        "and disks can.",
    )


def _nic_change(
    found: DeviceChanges, world: World, machine: Machine, change: Any, where: str, number: int, is_on: bool
) -> DeviceChanges:
    device, at = change.device, f"{where}[{number}].device"
    connected = connected_now(device.connectable, is_on=is_on)
    if change.operation == "add":
        network = network_of(world, device.backing, f"{at}.backing")
        return replace(found, added=(*found.added, _new_nic(device, network, connected, at)))
    nic = find_nic(machine, device.key, where, number)
    if change.operation == "remove":
        return replace(found, removed=(*found.removed, nic.id))
    network = network_of(world, device.backing, f"{at}.backing", nic.network)
    edit: NicChange = parsed(
        NicChange,
        at,
        id=nic.id,
        network=network if network != nic.network else None,
        connected=connected if connected != nic.connected else None,
        mac=manual_mac(device, nic),
    )
    if edit == NicChange(id=nic.id):
        return found
    return replace(found, changed=(*found.changed, edit))


def _new_nic(device: Any, network: str | None, connected: bool | None, at: str) -> NicRequest:
    fields: dict[str, Any] = {"model": nic_model(device), "connected": True if connected is None else connected}
    request: NicRequest = parsed(NicRequest, at, **fields, mac=manual_mac(device))
    return request.model_copy(update={"network": network})


def _disk_change(found: DeviceChanges, machine: Machine, change: Any, where: str, number: int) -> DeviceChanges:
    at = f"{where}[{number}].device"
    size_mib = disk_mib(change.device)
    if change.operation == "add":
        if size_mib <= 0 or change.fileOperation not in ("create", None):
            raise _bad_backing(number, at, "A disk that is added is a new, empty one: give its capacityInKB.")
        return replace(found, added_disks=(*found.added_disks, size_mib))
    disk = find_disk(machine, change.device.key, where, number)
    if change.operation == "remove":
        return replace(found, removed_disks=(*found.removed_disks, disk.id))
    if size_mib * MIB > disk.size_bytes:
        return replace(found, grown=(*found.grown, (disk.id, size_mib)))
    if 0 < size_mib < disk.size_bytes // MIB:
        raise _bad_backing(number, f"{at}.capacityInKB", "A disk is never made smaller.")
    return found


def _bad_backing(number: int, where: str, said: str) -> Exception:
    fault: Exception = vim.fault.InvalidDeviceSpec(deviceIndex=number, property=where, msg=said)
    return fault


def disk_mib(device: Any) -> int:
    """Rounded up, as a disk is never smaller than what was asked for."""
    size = device.capacityInBytes or (device.capacityInKB or 0) * 1024
    return -(-int(size) // MIB)


def find_disk(machine: Machine, key: int, where: str, number: int) -> Disk:
    for disk in machine.disks:
        if not disk.is_efivars and disk_key(disk) == key:
            return disk
    raise vim.fault.DeviceNotFound(
        deviceIndex=number,
        property=f"{where}[{number}].device.key",
        msg=f"{machine.name!r} has no disk with the key {key}.",
    )
