"""Where a new VM is to be: what a RelocateSpec says of folder, pool, host and datastore.

place_of(world, location, where) -> Place            # InvalidArgument, InvalidDatastore, NotSupported
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.types import is_a, vim, vmodl, wire_name

_NOT_HERE = {
    "service": "another vCenter Server",
    "profile": "storage policies",
    "cryptoSpec": "encrypted VMs",
    "tagSpecs": "tags",
    "vmPlacementPolicies": "placement policies",
}


@dataclass(frozen=True, slots=True)
class Place:
    folder: str | None = None
    """The id of a folder of VMs; None: that of the source."""


def place_of(world: World, location: Any, where: str) -> Place:
    if location is None:
        return Place()
    for name, what in _NOT_HERE.items():
        if getattr(location, name, None):
            raise vmodl.fault.NotSupported(msg=f"{where}.{name}: this server has no {what}.")
    _the(world, location.pool, vim.ResourcePool, f"{where}.pool")
    _the(world, location.host, vim.HostSystem, f"{where}.host")
    for datastore in (location.datastore, *(disk.datastore for disk in location.disk or ())):
        check_datastore(world, datastore)
    folder = _the(world, location.folder, vim.Folder, f"{where}.folder")
    if folder is not None:
        check_vm_folder(folder, f"{where}.folder")
    return Place(folder.moid if folder else None)


def check_datastore(world: World, reference: Any) -> None:
    if reference is None:
        return
    mo = world.get(reference._moId)
    if mo is None or not is_a(mo.wire, vim.Datastore):
        raise vim.fault.InvalidDatastore(
            datastore=reference, name=reference._moId, msg=f"There is no datastore {reference._moId!r} on this host."
        )


def check_vm_folder(folder: Mo, where: str) -> None:
    """Not one of hosts, networks or datastores."""
    getter = folder.getters.get("childType")
    if getter is None or vim.VirtualMachine not in getter(folder):
        raise vmodl.fault.InvalidArgument(invalidProperty=where, msg="VMs cannot be in this folder.")


def _the(world: World, reference: Any, wire: Any, where: str) -> Mo | None:
    if reference is None:
        return None
    mo = world.get(reference._moId)
    if mo is None or not is_a(mo.wire, wire):
        raise vmodl.fault.InvalidArgument(
            invalidProperty=where, msg=f"There is no {wire_name(wire)} {reference._moId!r} on this host."
        )
    return mo
