"""A VirtualMachine as its properties see it: the record, what the surface remembers, and what was asked for lately.

Properties are functions over this, in the modules beside: `config`, `devices`, `runtime`, `guest`, `layout`, `summary`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.model.machine import Vm, VmState
from ramet.vsphere import ids
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.inventory.host_facts import HostFacts
from ramet.vsphere.inventory.places import Places, VmNote
from ramet.vsphere.machine.disk_facts import DiskFacts
from ramet.vsphere.machine.guest_facts import GuestFacts, GuestSeen
from ramet.vsphere.machine.usage import Usage

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

_OFF = (VmState.OFF, VmState.STARTING, VmState.READY)


class MachineView(Mo):
    """What properties need. `told` is what the store said of the VM last."""

    def __init__(self, world: World, vm: Vm) -> None:
        super().__init__(world, ids.vm_moid(vm.id))
        self._vm_id = vm.id
        self.told = vm

    @property
    def vm(self) -> Vm:
        """The record as it is now: of a VM that is just being removed, as it was."""
        floor = self.world.host.floor
        live = floor.machines.get(self._vm_id)
        return live.vm if live is not None else floor.inventory.get_vm(self._vm_id) or self.told

    @property
    def note(self) -> VmNote:
        return self.world.part(Places).note(self._vm_id)

    @property
    def power_state(self) -> str:
        """As the API counts: a VM that is frozen, or held by QEMU, is on."""
        state = self.vm.state
        return "suspended" if state is VmState.SUSPENDED else "poweredOff" if state in _OFF else "poweredOn"

    @property
    def is_reachable(self) -> bool:
        """Whether the daemon holds its process, or there is none."""
        live = self.world.host.floor.machines.get(self._vm_id)
        return live is None or live.vm.process is None or live.process is not None

    @property
    def facts(self) -> HostFacts:
        return self.world.part(HostFacts)

    @property
    def disks(self) -> DiskFacts:
        return self.world.part(DiskFacts)

    @property
    def usage(self) -> Usage:
        return self.world.part(Usage)

    @property
    def guests(self) -> GuestFacts:
        return self.world.part(GuestFacts)

    @property
    def seen(self) -> GuestSeen | None:
        return self.guests.seen(self.vm)

    @property
    def datastore(self) -> Any:
        return self.world.ref(ids.DATASTORE)

    @property
    def folder(self) -> str:
        """Where its own files are."""
        return f"[{ids.DATASTORE_NAME}] vms/{self._vm_id}"

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.vm.name}.vmx"

    @property
    def instance_uuid(self) -> str:
        return self.note.instance_uuid or ids.instance_uuid(self.vm)
