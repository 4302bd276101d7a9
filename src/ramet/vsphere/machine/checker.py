"""The dry runs: what InstantClone_Task would say, without a clone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramet.model.host import Task
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation
from ramet.vsphere.core.world import World
from ramet.vsphere.machine.long_work import run
from ramet.vsphere.machine.operations_clone import CloneOperations
from ramet.vsphere.machine.operations_life import refused
from ramet.vsphere.machine.refusals import refusal
from ramet.vsphere.machine.spec_privileges import require_instant_clone
from ramet.vsphere.types import vim, vmodl

_ONE_HOST = "There is one host: a VM can be moved nowhere else."


class ProvisioningChecker(Mo):
    wire = vim.vm.check.ProvisioningChecker

    @operation("CheckInstantClone_Task", partial="all tests are made, whatever `testType` says")
    async def check_instant_clone(self, call: Call, vm: Any, spec: Any, testType: Sequence[str] = ()) -> Any:
        """One result; its `error` is what InstantClone_Task would be refused with. All tests are always made."""
        source = self.world.find(vm._moId, call, vm)
        if not isinstance(source, CloneOperations):
            raise vmodl.fault.InvalidArgument(invalidProperty="vm", msg=f"{vm._moId} is no VM.")
        found: list[Any] = []

        async def work(_: Any) -> None:
            found.append(await self._checked(call, source, spec))

        async def result(_: Task) -> Any:
            return vim.vm.check.Result.Array(found)

        return await run(source, call, "CheckInstantClone_Task", work, vm_id=ids.vm_id(source.moid), result=result)

    async def _checked(self, call: Call, source: CloneOperations, spec: Any) -> Any:
        checked = vim.vm.check.Result(vm=source.ref, host=vim.HostSystem(ids.HOST))
        try:
            call.require("VirtualMachine.Provisioning.Clone", source)
            require_instant_clone(call, source, spec)
            source.require_on()
            order = source.ordered(call, spec)
            forecast = await self.world.host.forecast_clone(source.vm_id, order.request)
        except Exception as exc:
            fault = refusal(source, exc, _needed(source))
            if fault is None:
                raise
            checked.error = [fault]
        else:
            checked.warning = [vim.fault.VimFault(msg=warning) for warning in forecast.warnings]
        return checked

    check_clone = refused("CheckClone_Task", "CloneVM_Task says itself, and at once, what it cannot do.")
    check_relocate = refused("CheckRelocate_Task", _ONE_HOST)
    check_migrate = refused("CheckMigrate_Task", _ONE_HOST)
    query_vmotion = refused("QueryVMotionCompatibilityEx_Task", _ONE_HOST)


def _needed(source: CloneOperations) -> str | None:
    """The power state, where it is that which is wrong."""
    try:
        source.require_on()
    except Exception:
        return "poweredOn"
    return None


class CompatibilityChecker(Mo):
    wire = vim.vm.check.CompatibilityChecker

    check_compatibility = refused("CheckCompatibility_Task", "There is one host: what runs on it is compatible.")
    check_power_on = refused("CheckPowerOn_Task", "PowerOnVM_Task says itself, and at once, what it cannot do.")
    check_vm_config = refused("CheckVmConfig_Task", "CreateVM_Task and ReconfigVM_Task say what they cannot do.")


def objects(world: World) -> list[Mo]:
    return [ProvisioningChecker(world, "ProvChecker"), CompatibilityChecker(world, "CompatChecker")]
