"""Port groups, as networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.model.machine import USER_NETWORK
from ramet.vsphere import ids
from ramet.vsphere.core.objects import prop
from ramet.vsphere.inventory.entity import Entity
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World


class Network(Entity):
    """A port group of the host, or QEMU's own network in user mode, which every host has."""

    wire = vim.Network

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, ids.network_moid(name))
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def parent_moid(self) -> str:
        return ids.NETWORK_FOLDER

    @property
    def is_accessible(self) -> bool:
        return self._name == USER_NETWORK or self.world.host.floor.rooms.networks.privileged

    @prop("host")
    def get_hosts(self) -> list[Any]:
        return self.refs(vim.HostSystem)

    @prop("vm")
    def get_vms(self) -> list[Any]:
        found = (
            self.world.ref(ids.vm_moid(vm.id))
            for vm in self.world.host.floor.inventory.users_vms()
            if any(nic.network == self._name for nic in vm.machine.nics)
        )
        return [one for one in found if one is not None]

    @prop("summary")
    def get_summary(self) -> Any:
        return vim.Network.Summary(network=self.ref, name=self._name, accessible=self.is_accessible, ipPoolName="")


def network_names(world: World) -> list[str]:
    """Of all networks that there are to be."""
    return [*(network.name for network in world.host.floor.inventory.networks.all()), USER_NETWORK]
