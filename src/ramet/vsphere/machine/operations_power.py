"""Power, and what goes through the guest to the same end. The lifecycle's table decides; here are its words."""

from __future__ import annotations

from typing import Any

from ramet.errors import DeadlineError, GuestError, StateError
from ramet.model.machine import VmState
from ramet.model.requests import StopVm
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.machine.guest_facts import GuestFacts
from ramet.vsphere.machine.long_work import show
from ramet.vsphere.machine.operations_base import MachineOperations
from ramet.vsphere.machine.refusals import power_state, refusing
from ramet.vsphere.types import vim

AGENT_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 600.0


class PowerOperations(MachineOperations):
    """PowerOn, PowerOff, Suspend, Reset, and their gentle kin."""

    @operation("PowerOnVM_Task", partial="there is one host to choose")
    async def power_on(self, call: Call, host: Any = None) -> Any:
        """From off, from suspended, and from a stop by QEMU, as by a disk that was full."""
        self.refuse_template("powered on")
        with refusing(self, "poweredOn"):
            if self.record.state is VmState.PAUSED:
                task = await self.host.resume_vm(self.vm_id)
            else:
                task = await self.host.start_vm(self.vm_id)
        return await show(self, call, "PowerOnVM_Task", task, requested="poweredOn")

    @operation("PowerOffVM_Task")
    async def power_off(self, call: Call) -> Any:
        with refusing(self, "poweredOff"):
            task = await self.host.stop_vm(self.vm_id, StopVm(hard=True))
        return await show(self, call, "PowerOffVM_Task", task, requested="poweredOff")

    @operation("SuspendVM_Task")
    async def suspend(self, call: Call) -> Any:
        with refusing(self, "suspended"):
            task = await self.host.suspend_vm(self.vm_id)
        return await show(self, call, "SuspendVM_Task", task, requested="suspended")

    @operation("ResetVM_Task")
    async def reset(self, call: Call) -> Any:
        """A power cycle; a frozen VM loses its frozen state, as in the original."""
        with refusing(self, "poweredOn"):
            self._require_on("reset")
            before = self.record
            task = await self.host.restart_vm(self.vm_id, hard=True)
            self.world.part(GuestFacts).goes_down(before)
        return await show(self, call, "ResetVM_Task", task, requested="poweredOn")

    @operation("TerminateVM")
    async def terminate(self, call: Call) -> None:
        """At once, without a task to follow."""
        with refusing(self, "poweredOff"):
            await self.host.stop_vm(self.vm_id, StopVm(hard=True))

    @operation("ShutdownGuest")
    async def shutdown_guest(self, call: Call) -> None:
        """Returns when the guest's agent has answered; its going down is seen in runtime.powerState."""
        with refusing(self, "poweredOff"):
            self._require_on("shut down")
            await self._require_agent()
            before = self.record
            await self.host.stop_vm(self.vm_id, StopVm(timeout_s=SHUTDOWN_TIMEOUT_S))
            self.world.part(GuestFacts).goes_down(before)

    @operation("RebootGuest")
    async def reboot_guest(self, call: Call) -> None:
        with refusing(self, "poweredOn"):
            self._require_on("reboot")
            await self._require_agent()
            before = self.record
            await self.host.restart_vm(self.vm_id)
            self.world.part(GuestFacts).goes_down(before)

    @operation("StandbyGuest", partial="the VM is suspended, the guest is not asked to sleep")
    async def standby_guest(self, call: Call) -> None:
        """The VM is suspended, as where `powerOpInfo.standbyAction` is 'checkpoint'."""
        with refusing(self, "suspended"):
            self._require_on("put on standby")
            await self._require_agent()
            await self.host.suspend_vm(self.vm_id)

    def _require_on(self, what: str) -> None:
        state = self.record.state
        if power_state(state) != "poweredOn":
            raise StateError(
                f"Cannot {what} {self.record.name!r}: it is {state.value}.", state=state.value, operation=what
            )

    async def _require_agent(self) -> None:
        """ToolsUnavailable, where the original would miss its tools."""
        try:
            await self.host.wait_agent(self.vm_id, AGENT_TIMEOUT_S)
        except (DeadlineError, GuestError, OSError) as exc:
            raise vim.fault.ToolsUnavailable(
                msg=f"The guest agent of {self.record.name!r} does not answer; it is what VMware Tools are elsewhere."
            ) from exc
