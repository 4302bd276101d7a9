"""The answer to the question of a VM that QEMU has stopped."""

from __future__ import annotations

from ramet.model.machine import VmState
from ramet.model.requests import StopVm
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.machine.operations_base import MachineOperations
from ramet.vsphere.machine.refusals import refusing
from ramet.vsphere.machine.runtime import POWER_OFF, RETRY, question_id
from ramet.vsphere.types import vim, vmodl


class AnswerOperations(MachineOperations):
    """See `runtime.question`."""

    @operation("AnswerVM")
    async def answer(self, call: Call, questionId: str, answerChoice: str) -> None:
        vm = self.record
        if questionId != question_id(vm):
            raise vmodl.fault.InvalidArgument(invalidProperty="questionId", msg=f"There is no question {questionId!r}.")
        if vm.state is not VmState.PAUSED:
            raise vim.fault.ConcurrentAccess(msg=f"{vm.name!r} has no question now: somebody has answered it.")
        with refusing(self):
            if answerChoice == RETRY:
                await self.host.resume_vm(self.vm_id)
            elif answerChoice == POWER_OFF:
                await self.host.stop_vm(self.vm_id, StopVm(hard=True))
            else:
                raise vmodl.fault.InvalidArgument(
                    invalidProperty="answerChoice", msg=f"The answers are {RETRY} (retry) and {POWER_OFF} (power off)."
                )
