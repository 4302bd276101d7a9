"""In step with the host: every VM and every port group has its object, and whoever waits hears of what changed.

    follower = Follower(world); await follower.load(); await follower.run()        # until cancelled

The host's store tells of every durable change, in order; a follower that fell behind looks at everything again. Records
are read from the host's memory, which is ahead of what the store has told, never behind what was read here before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from pydantic import ValidationError

from ramet.errors import ConflictError
from ramet.host.store import Change
from ramet.model.machine import Vm
from ramet.vsphere import ids
from ramet.vsphere.inventory.network import Network, network_names
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.machine.virtual_machine import VirtualMachine
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

log = structlog.stdlib.get_logger(__name__)

_HOLDS_VMS = (ids.RESOURCE_POOL, ids.HOST, ids.DATASTORE)
_HOLDS_NETWORKS = (ids.NETWORK_FOLDER, ids.DATACENTER, ids.COMPUTE_RESOURCE, ids.HOST)


class Follower:
    """One a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._revision = 0
        self._networks: dict[str, frozenset[str]] = {}
        """VM id -> names of the port groups that its cards are on."""

    async def load(self) -> None:
        """Make the objects of all that there is."""
        self._revision = await self._world.store.revision()
        await self._look_at_all()

    async def forget_the_gone(self) -> None:
        """What was said of VMs that were removed while nobody followed."""
        inventory, places = self._world.host.floor.inventory, self._world.part(Places)
        for vm_id in places.noted():
            if inventory.get_vm(vm_id) is None:
                await places.forget(vm_id)

    async def run(self) -> None:
        while True:
            try:
                async for change in self._world.store.watch("", self._revision):
                    self._revision = change.revision
                    await self._learn(change)
                return  # the store was closed
            except ConflictError:  # fell behind what the store keeps
                log.info("the vSphere surface looks at everything again")
                await self.load()

    async def _look_at_all(self) -> None:
        inventory = self._world.host.floor.inventory
        self._look_at_networks()
        present = {vm.id: vm for vm in inventory.users_vms()}
        for vm in present.values():
            self._is_there(vm)
        for mo in self._world.of_kind(vim.VirtualMachine):
            vm_id = ids.vm_id(mo.moid)
            if vm_id is not None and vm_id not in present:
                await self._is_gone(vm_id, forget=inventory.get_vm(vm_id) is None)

    async def _learn(self, change: Change) -> None:
        kind, _, name = change.key.partition("/")
        if kind == "vm":
            await self._learn_vm(name, change.value)
        elif kind == "network":
            self._look_at_networks()
            self._world.updates.touch(ids.network_moid(name))
        elif kind == "image":
            self._world.updates.touch(ids.DATASTORE)

    # -- VMs -------------------------------------------------------------------------------------------------------

    async def _learn_vm(self, vm_id: str, value: dict[str, Any] | None) -> None:
        """What waits in a pool is nobody's VM, and not shown; nor is a copy that is being made, or was unregistered."""
        hidden = value is not None and (value.get("pool_of") is not None or value.get("registered") is False)
        if value is None or hidden or value.get("provisional"):
            await self._is_gone(vm_id, forget=value is None)
            return
        try:
            told = Vm.model_validate(value)
        except ValidationError:
            return  # the inventory has said so
        self._is_there(told)

    def _is_there(self, vm: Vm) -> None:
        moid, world = ids.vm_moid(vm.id), self._world
        mo = world.get(moid)
        before = self._networks.get(vm.id, frozenset())
        after = frozenset(nic.network for nic in vm.machine.nics if nic.network)
        self._networks[vm.id] = after
        if isinstance(mo, VirtualMachine):
            mo.told = vm
            world.updates.touch(moid)
        else:
            world.add(VirtualMachine(world, vm))
            self._touch_holders(vm.id)
        self._touch_networks(before ^ after)
        if before != after and mo is not None:
            world.updates.reshape(moid)

    async def _is_gone(self, vm_id: str, *, forget: bool) -> None:
        """`forget` what was said of it, too: not of one that was unregistered, which may come back."""
        moid, places = ids.vm_moid(vm_id), self._world.part(Places)
        if self._world.get(moid) is not None:
            self._touch_holders(vm_id)
            self._world.remove(moid)
            self._touch_networks(self._networks.pop(vm_id, frozenset()))
        if forget:
            await places.forget(vm_id)

    def _touch_holders(self, vm_id: str) -> None:
        for moid in (*_HOLDS_VMS, self._world.part(Places).note(vm_id).folder):
            self._world.updates.touch(moid)

    def _touch_networks(self, names: frozenset[str]) -> None:
        for name in names:
            self._world.updates.touch(ids.network_moid(name))

    # -- port groups -----------------------------------------------------------------------------------------------

    def _look_at_networks(self) -> None:
        world, wanted = self._world, {ids.network_moid(name): name for name in network_names(self._world)}
        gone = [mo.moid for mo in world.of_kind(vim.Network) if mo.moid not in wanted]
        new = [name for moid, name in wanted.items() if world.get(moid) is None]
        for moid in gone:
            world.remove(moid)
        for name in new:
            world.add(Network(world, name))
        if gone or new:
            for moid in _HOLDS_NETWORKS:
                world.updates.touch(moid)
