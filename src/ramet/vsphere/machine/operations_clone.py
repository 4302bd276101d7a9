"""InstantClone_Task and CloneVM_Task: from a VM to another.

An instant clone's refusals come at once, as faults of the call, where the host's own check makes them: there is no task
then, and nothing has changed. The task ends when the clone executes, for whoever asked has the rest to do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ramet.errors import StateError
from ramet.model.host import Task
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.machine.long_work import show, until_known
from ramet.vsphere.machine.operations_base import MachineOperations, vm_ref
from ramet.vsphere.machine.refusals import power_state, refusing
from ramet.vsphere.machine.spec_instant import order_of
from ramet.vsphere.machine.spec_location import Place


class CloneOperations(MachineOperations):
    """Both workflows of the instant clone, by what the source is doing: it runs, or it is frozen."""

    @operation("InstantClone_Task")
    async def instant_clone(self, call: Call, spec: Any) -> Any:
        self.require_privileges(call)
        with refusing(self, "poweredOn"):
            self.require_on()
        with refusing(self):
            order = order_of(self.world, self.live, spec)
            task = await self.host.clone_vm(self.vm_id, order.request)
        return await show(self, call, "InstantClone_Task", task, result=partial(self._born, order.place))

    def require_privileges(self, call: Call) -> None:
        """Those beside the method's own, as the original asks for them."""
        for privilege in (
            "VirtualMachine.Interact.PowerOn",
            "VirtualMachine.Inventory.CreateFromExisting",
            "Datastore.AllocateSpace",
            "Resource.AssignVMToPool",
        ):
            call.require(privilege, self)

    def require_on(self) -> None:
        state = self.record.state
        if power_state(state) != "poweredOn":
            raise StateError(
                f"Cannot clone {self.record.name!r} while it is {state.value}.",
                hint="An instant clone is made from a VM that is powered on.",
                state=state.value,
                operation="clone",
            )

    async def _born(self, place: Place, task: Task) -> Any:
        """The new VM, in the folder that was asked for: that of its source, if none was."""
        vm_id = str(task.result[0]["id"])
        folder = place.folder or self.places.note(self.vm_id).folder
        if folder != ids.VM_FOLDER:
            await self.places.change(vm_id, folder=folder)
        await until_known(self.world, ids.vm_moid(vm_id))
        return vm_ref(vm_id)
