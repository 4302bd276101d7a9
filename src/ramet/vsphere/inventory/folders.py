"""The folders, the datacenter that has them, and who is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.vsphere import ids
from ramet.vsphere.core.objects import prop
from ramet.vsphere.inventory.entity import Entity
from ramet.vsphere.inventory.operations import DatacenterOperations, FolderOperations
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

_VM_CHILDREN = [vim.Folder, vim.VirtualMachine, vim.VirtualApp]


class FixedFolder(Entity):
    """A folder that is always there. Its children are all objects of one kind."""

    wire = vim.Folder

    def __init__(
        self, world: World, moid: str, name: str, parent: str | None, child_types: list[Any], kind: Any
    ) -> None:
        super().__init__(world, moid)
        self._name, self._parent = name, parent
        self._child_types, self._kind = child_types, kind

    @property
    def name(self) -> str:
        return self._name

    @property
    def parent_moid(self) -> str | None:
        return self._parent

    @prop("childType")
    def get_child_type(self) -> list[Any]:
        return self._child_types

    @prop("childEntity")
    def get_children(self) -> list[Any]:
        return self.refs(self._kind)


class VmFolder(FolderOperations, Entity):
    """A folder of VMs and of folders: the topmost one, or one that somebody made."""

    wire = vim.Folder

    @property
    def places(self) -> Places:
        return self.world.part(Places)

    @property
    def is_topmost(self) -> bool:
        return self.moid == ids.VM_FOLDER

    @property
    def name(self) -> str:
        record = self.places.folder(self.moid)
        return "vm" if record is None else record.name

    @property
    def parent_moid(self) -> str | None:
        record = self.places.folder(self.moid)
        return ids.DATACENTER if record is None else record.parent

    @prop("childType")
    def get_child_type(self) -> list[Any]:
        return _VM_CHILDREN

    @prop("childEntity")
    def get_children(self) -> list[Any]:
        folders = [vim.Folder(one.moid) for one in self.places.folders_in(self.moid)]
        vms = (self.world.ref(ids.vm_moid(one)) for one in self.places.vms_in(self.moid))
        return [*folders, *(one for one in vms if one is not None)]


class Datacenter(DatacenterOperations, Entity):
    wire = vim.Datacenter

    @property
    def name(self) -> str:
        return ids.DATACENTER_NAME

    @property
    def parent_moid(self) -> str:
        return ids.ROOT_FOLDER

    @prop("vmFolder")
    def get_vm_folder(self) -> Any:
        return self.world.ref(ids.VM_FOLDER)

    @prop("hostFolder")
    def get_host_folder(self) -> Any:
        return self.world.ref(ids.HOST_FOLDER)

    @prop("datastoreFolder")
    def get_datastore_folder(self) -> Any:
        return self.world.ref(ids.DATASTORE_FOLDER)

    @prop("networkFolder")
    def get_network_folder(self) -> Any:
        return self.world.ref(ids.NETWORK_FOLDER)

    @prop("datastore")
    def get_datastores(self) -> list[Any]:
        return self.refs(vim.Datastore)

    @prop("network")
    def get_networks(self) -> list[Any]:
        return self.refs(vim.Network)

    @prop("configuration")
    def get_configuration(self) -> Any:
        return vim.Datacenter.ConfigInfo(defaultHardwareVersionKey="vmx-21")


def fixed_folders(world: World) -> list[Entity]:
    """The root, the datacenter and its four folders."""
    dc = ids.DATACENTER
    return [
        FixedFolder(
            world, ids.ROOT_FOLDER, "Datacenters", None, [vim.Folder, vim.Datacenter], vim.Datacenter
        ),
        Datacenter(world, dc),
        VmFolder(world, ids.VM_FOLDER),
        FixedFolder(
            world, ids.HOST_FOLDER, "host", dc, [vim.Folder, vim.ComputeResource], vim.ComputeResource
        ),
        FixedFolder(
            world, ids.DATASTORE_FOLDER, "datastore", dc, [vim.Folder, vim.Datastore, vim.StoragePod], vim.Datastore
        ),
        FixedFolder(
            world, ids.NETWORK_FOLDER, "network", dc,
            [vim.Folder, vim.Network, vim.DistributedVirtualSwitch], vim.Network,
        ),
    ]  # fmt: skip
