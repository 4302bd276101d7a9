"""What clients want of network cards, serial and parallel ports, in the words of this host.

    network_of(world, device.backing, where) -> name or None
    edits_for_clone(world, machine, changes, where) -> tuple[NicChange, ...]

A device is meant by its key; a network by its reference, or else by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ramet.model.base import explain
from ramet.model.machine import USER_NETWORK, Machine, Nic, NicModel
from ramet.model.requests import NicChange, NicRequest
from ramet.vsphere.core.world import World
from ramet.vsphere.ids import SERIAL, nic_key
from ramet.vsphere.types import vim, vmodl

_MODELS: dict[str, NicModel] = {
    "VirtualVmxnet3": NicModel.VMXNET3,
    "VirtualVmxnet3Vrdma": NicModel.VMXNET3,
    "VirtualE1000": NicModel.E1000E,
    "VirtualE1000e": NicModel.E1000E,
}


def nic_model(device: Any) -> NicModel:
    """The nearest that there is: cards of other makes become the paravirtual one."""
    return _MODELS.get(type(device)._wsdlName, NicModel.VIRTIO)


@dataclass(frozen=True, slots=True)
class DeviceChanges:
    changed: tuple[NicChange, ...] = ()
    added: tuple[NicRequest, ...] = ()
    removed: tuple[str, ...] = ()
    grown: tuple[tuple[str, int], ...] = ()
    """Disk id and its new size in MiB."""
    added_disks: tuple[int, ...] = ()
    """Sizes in MiB."""
    removed_disks: tuple[str, ...] = ()


def network_of(world: World, backing: Any, where: str, now: str | None = None) -> str | None:
    """The port group that a card's backing names; None when it names none. InvalidArgument when there is none such.

    Of a reference and a name that differ, one is left over from what the client read: the one that says `now`.
    """
    if backing is None:
        return None
    if isinstance(backing, vim.vm.device.VirtualEthernetCard.NetworkBackingInfo):
        named = _known(world, backing.deviceName, f"{where}.deviceName") if backing.deviceName else None
        if backing.network is None:
            return named
        network = _network_name(world, backing.network._moId, f"{where}.network")
        return named if named is not None and network == now else network
    if isinstance(backing, vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo):
        return _network_name(world, backing.port.portgroupKey or "", f"{where}.port.portgroupKey")
    raise vmodl.fault.InvalidArgument(
        invalidProperty=where,
        msg=f"A network card cannot be on {type(backing)._wsdlName}: name a network of this host.",
    )


def _network_name(world: World, moid: str, where: str) -> str:
    mo = world.get(moid)
    if mo is None or not isinstance(mo.ref, vim.Network):
        raise vmodl.fault.InvalidArgument(invalidProperty=where, msg=f"There is no network {moid!r} on this host.")
    return str(mo.getters["name"](mo))


def _known(world: World, name: str, where: str) -> str:
    networks = world.host.floor.inventory.networks
    if name != USER_NETWORK and networks.get(name) is None:
        have = ", ".join(network.name for network in networks.all())
        raise vmodl.fault.InvalidArgument(
            invalidProperty=where, msg=f"There is no network {name!r} on this host. There are: {have or 'none'}."
        )
    return name


def migrate_connected(connectable: Any) -> bool | None:
    """Of a card in a clone. None: as the source's is."""
    if connectable is None:
        return None
    if connectable.migrateConnect in ("connect", "disconnect"):
        return bool(connectable.migrateConnect == "connect")
    if connectable.migrateConnect:
        return None  # 'unset', and whatever else a client calls the default
    return bool(connectable.startConnected)


def connected_now(connectable: Any, *, is_on: bool) -> bool | None:
    """Of a card in a reconfiguration: a VM that is on has a cable now, one that is off will have one at its start."""
    if connectable is None:
        return None
    return bool(connectable.connected if is_on else connectable.startConnected)


def manual_mac(device: Any, nic: Nic | None = None) -> str | None:
    """An address that the client chose; one that it only read here and sends back is none."""
    mac = str(device.macAddress or "").lower()
    if not mac or str(device.addressType or "").lower() != "manual" or (nic is not None and mac == nic.mac):
        return None
    return mac


def is_nic(device: Any) -> bool:
    return isinstance(device, vim.vm.device.VirtualEthernetCard)


def is_port(device: Any) -> bool:
    return isinstance(device, vim.vm.device.VirtualSerialPort | vim.vm.device.VirtualParallelPort)


def find_nic(machine: Machine, key: int, where: str, number: int) -> Nic:
    for nic in machine.nics:
        if nic_key(nic) == key:
            return nic
    have = ", ".join(str(nic_key(nic)) for nic in machine.nics) or "none"
    raise vim.fault.DeviceNotFound(
        deviceIndex=number,
        property=f"{where}[{number}].device.key",
        msg=f"{machine.name!r} has no network card with the key {key}. It has: {have}.",
    )


# -- instant clones ----------------------------------------------------------------------------------------------------


def edits_for_clone(world: World, machine: Machine, changes: Sequence[Any] | None, where: str) -> tuple[NicChange, ...]:
    """Edits of network cards. Ports can be named, too, as long as they stay what they are: a clone has its own."""
    found: dict[str, NicChange] = {}
    for number, change in enumerate(changes or ()):
        at = f"{where}[{number}]"
        if change.operation not in (None, "edit"):
            raise vmodl.fault.InvalidArgument(
                invalidProperty=f"{at}.operation",
                msg=f"An instant clone has its source's devices: they can be edited there, not {change.operation}ed.",
            )
        if is_nic(change.device):
            nic = find_nic(machine, change.device.key, where, number)
            found[nic.id] = _clone_edit(world, nic, change.device, at)
        elif is_port(change.device):
            _check_port(change.device, where, number)
        else:
            raise _disallowed(change.device, where, number)
    return tuple(found.values())


def _clone_edit(world: World, nic: Nic, device: Any, at: str) -> NicChange:
    edit: NicChange = parsed(
        NicChange,
        f"{at}.device",
        id=nic.id,
        network=network_of(world, device.backing, f"{at}.device.backing", nic.network),
        connected=migrate_connected(device.connectable),
        mac=manual_mac(device, nic),
    )
    return edit


def _check_port(device: Any, where: str, number: int) -> None:
    """Every VM has one serial port, whose console is kept in a file of its own; there are no parallel ones."""
    at = f"{where}[{number}].device"
    if isinstance(device, vim.vm.device.VirtualParallelPort) or device.key != SERIAL:
        raise vim.fault.DeviceNotFound(
            deviceIndex=number, property=f"{at}.key", msg=f"The source has no such port ({device.key})."
        )
    backing = device.backing
    ours = backing is None or isinstance(backing, vim.vm.device.VirtualSerialPort.URIBackingInfo)
    if not ours and not isinstance(backing, vim.vm.device.VirtualSerialPort.FileBackingInfo):
        raise vim.fault.InvalidDeviceBacking(
            deviceIndex=number,
            property=f"{at}.backing",
            msg="A serial port of this host is the VM's console, kept in a file of its own: it has no other backing.",
        )


def _disallowed(device: Any, where: str, number: int) -> Exception:
    kind = type(device)._wsdlName
    said = f"An instant clone has its source's {kind}: only network cards and ports can be edited."
    inner = vim.fault.DeviceUnsupportedForVmPlatform(deviceIndex=number, property=f"{where}[{number}].device", msg=said)
    fault: Exception = vim.fault.DisallowedMigrationDeviceAttached(fault=inner, msg=said)
    return fault


def parsed(model: Any, where: str, /, **fields: Any) -> Any:
    """A request of the host's; what is None is left out. InvalidArgument."""
    try:
        return model(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as exc:
        raise vmodl.fault.InvalidArgument(invalidProperty=where, msg=explain(exc)) from exc
