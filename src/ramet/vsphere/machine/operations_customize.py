"""CustomizeVM_Task and its dry run: what the guest of a VM that is off is told when it is powered on next."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ramet.errors import StateError
from ramet.host.tasks import TaskHandle
from ramet.model.base import explain
from ramet.model.machine import Machine, VmState
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.guest.customization_spec import values_of
from ramet.vsphere.inventory.places import Ordered
from ramet.vsphere.machine.long_work import run
from ramet.vsphere.machine.operations_base import MachineOperations
from ramet.vsphere.machine.refusals import refusing
from ramet.vsphere.types import vmodl

_LINUX = "as CustomizeGuest_Task: Linux specs"
_PRIVILEGE = "VirtualMachine.Provisioning.Customize"


def order_of_customization(machine: Machine, spec: Any) -> Ordered:
    """InvalidArgument names what is wrong; NicSettingMismatch, UncustomizableGuest what cannot be done."""
    values, time_zone = values_of(machine, spec)
    try:
        return Ordered(values=values, time_zone=time_zone)
    except ValidationError as exc:
        raise vmodl.fault.InvalidArgument(invalidProperty="spec.identity.timeZone", msg=explain(exc)) from exc


class CustomizeOperations(MachineOperations):
    @operation("CheckCustomizationSpec", privilege=_PRIVILEGE, partial=_LINUX)
    async def check_customization(self, call: Call, spec: Any) -> None:
        order_of_customization(self.live.vm.machine, spec)

    @operation("CustomizeVM_Task", privilege=_PRIVILEGE, partial=_LINUX)
    async def customize(self, call: Call, spec: Any) -> Any:
        """At the next power-on, when the guest's agent answers; events tell of that. Another order replaces this."""
        with refusing(self, "poweredOff"):
            self._require_off()
        order = order_of_customization(self.live.vm.machine, spec)

        async def work(_: TaskHandle) -> None:
            await self.places.change(self.vm_id, customization=order)

        return await run(self, call, "CustomizeVM_Task", work, vm_id=self.vm_id)

    def _require_off(self) -> None:
        record = self.record
        if record.state is not VmState.OFF:
            raise StateError(
                f"{record.name!r} is {record.state.value}: CustomizeVM_Task is for VMs that are powered off.",
                hint="CustomizeGuest_Task customizes the guest of one that runs.",
                state=record.state.value,
                operation="customize",
            )
