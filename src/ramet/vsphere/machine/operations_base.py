"""What the operations of a VM stand on: its record, its machine, and long work that is shown as a Task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.model.machine import Vm
from ramet.vsphere import ids
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.host.service import Host
    from ramet.machine.live import LiveMachine


class MachineOperations(Mo):
    """A VirtualMachine as its operations see it."""

    @property
    def host(self) -> Host:
        return self.world.host

    @property
    def vm_id(self) -> str:
        return ids.vm_id(self.moid) or ""

    @property
    def live(self) -> LiveMachine:
        """ManagedObjectNotFound for a VM that has been removed meanwhile."""
        live = self.world.host.floor.machines.get(self.vm_id)
        if live is None:
            raise vmodl.fault.ManagedObjectNotFound(obj=self.ref, msg="The VM has been removed.")
        return live

    @property
    def record(self) -> Vm:
        return self.live.vm

    @property
    def places(self) -> Places:
        return self.world.part(Places)

    @property
    def is_template(self) -> bool:
        return self.places.note(self.vm_id).template

    def refuse_template(self, what: str) -> None:
        """A template does nothing but being cloned."""
        if self.is_template:
            raise vmodl.fault.NotSupported(
                msg=f"{self.record.name!r} is a template and cannot be {what}. See MarkAsVirtualMachine."
            )


def vm_ref(vm_id: str) -> Any:
    return vim.VirtualMachine(ids.vm_moid(vm_id))
