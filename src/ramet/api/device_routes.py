"""Routes of a VM's disks and network cards."""

from __future__ import annotations

from fastapi import APIRouter

from ramet.api.edge import HostDep
from ramet.model.base import Model
from ramet.model.host import Task
from ramet.model.requests import AddDisk, ExportDisk, GrowDisk, NicChange, NicRequest
from ramet.model.units import Mac, Name
from ramet.model.views import VmView

router = APIRouter(prefix="/v1/vms/{ref}", tags=["devices"])


class NicEdit(Model):
    """What changes of a network card; fields left out stay. `network` '' means: no port group."""

    network: str | None = None
    connected: bool | None = None
    mac: Mac | None = None
    fence: Name | None = None
    """On a fenced port group: the fence to share with others."""


@router.post("/nics", status_code=201, operation_id="add_nic", summary="Add a network card")
async def add_nic(ref: str, request: NicRequest, host: HostDep) -> VmView:
    """At once when the VM is off; plugged live when it runs and has a slot free. Refused while it is frozen."""
    return await host.add_nic(ref, request)


@router.patch("/nics/{nic_id}", operation_id="change_nic", summary="Move, connect or disconnect a network card")
async def change_nic(ref: str, nic_id: str, request: NicEdit, host: HostDep) -> VmView:
    """Live when the VM runs: the guest sees its link go down or up. A MAC changes only while the VM is off."""
    return await host.change_nic(ref, NicChange(id=nic_id, **request.model_dump(exclude_unset=True)))


@router.delete("/nics/{nic_id}", operation_id="remove_nic", summary="Remove a network card")
async def remove_nic(ref: str, nic_id: str, host: HostDep) -> VmView:
    """At once when the VM is off; unplugged live when it runs and the guest lets go."""
    return await host.remove_nic(ref, nic_id)


@router.post("/disks", status_code=201, operation_id="add_disk", summary="Add an empty disk")
async def add_disk(ref: str, request: AddDisk, host: HostDep) -> VmView:
    """At once when the VM is off; plugged live when it runs and has a slot free. Refused while it is frozen."""
    return await host.add_disk(ref, request)


@router.post("/disks/{disk_id}/grow", operation_id="grow_disk", summary="Grow a disk")
async def grow_disk(ref: str, disk_id: str, request: GrowDisk, host: HostDep) -> VmView:
    """To `size_mib`, which must be more than it is. The guest sees it at once; its file system is its own business."""
    return await host.grow_disk(ref, disk_id, request)


@router.delete("/disks/{disk_id}", operation_id="remove_disk", summary="Remove a disk")
async def remove_disk(ref: str, disk_id: str, host: HostDep) -> VmView:
    """The data is gone, unless clones share its layers."""
    return await host.remove_disk(ref, disk_id)


@router.post("/disks/{disk_id}/export", status_code=202, operation_id="export_disk", summary="Export a disk to a file")
async def export_disk(ref: str, disk_id: str, request: ExportDisk, host: HostDep) -> Task:
    """Writes the disk whole, as the guest sees it, to a new file on the host. Needs the VM to be off or frozen."""
    return await host.export_disk(ref, disk_id, request)
