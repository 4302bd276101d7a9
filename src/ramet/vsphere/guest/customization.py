"""VirtualMachineGuestCustomizationManager: an instant clone that runs becomes a machine of its own.

What the specification says goes into the project's own identity: random generator, clock, network card, address, host
name, machine id, host keys. The VM is off its networks meanwhile, and comes back with its new address.
"""

from __future__ import annotations

from typing import Any

from ramet.errors import DeadlineError, from_dict
from ramet.model.host import Task
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation
from ramet.vsphere.guest import scripts
from ramet.vsphere.guest.customization_spec import values_of
from ramet.vsphere.guest.login import Guest, guest_of
from ramet.vsphere.machine.long_work import run, show
from ramet.vsphere.machine.refusals import refusing
from ramet.vsphere.types import vim

PRIVILEGE = "VirtualMachine.Provisioning.Customize"
KINDS = ("vm.customize", "vm.identify")
TIMEOUT_S = 600.0


class GuestCustomizationManager(Mo):
    wire = vim.vm.GuestCustomizationManager

    @operation(
        "CustomizeGuest_Task", privilege=PRIVILEGE,
        partial="Linux specs: host name (fixed, or the VM's), domain, name servers, fixed addresses and DHCP of IPv4; "
        "others are refused with NotSupported",
    )
    async def customize(self, call: Call, vm: Any, auth: Any, spec: Any, configParams: Any = ()) -> Any:
        """The task ends when the guest has acknowledged, and has its address where one is to be had."""
        guest = guest_of(self.world, vm, auth)
        machine = self.world.host.floor.find(guest.vm_id).vm.machine
        values, time_zone = values_of(machine, spec)
        with refusing(guest.mo, "poweredOn"):
            await guest.run(scripts.CHECK_ROOT)
            if time_zone is not None:
                await guest.run(scripts.TIME_ZONE, time_zone, path=time_zone)
            task = await self.world.host.customize_vm(guest.vm_id, values)
        return await show(guest.mo, call, "CustomizeGuest_Task", task, requested="poweredOn")

    @operation(
        "StartGuestNetwork_Task", privilege=PRIVILEGE,
        partial="the network is up when CustomizeGuest_Task ends; one that did not acknowledge is asked again",
    )
    async def start_network(self, call: Call, vm: Any, auth: Any) -> Any:
        """Customized guests have their network already. One that did not acknowledge is asked once more."""
        guest = guest_of(self.world, vm, auth)
        await guest.check()

        async def work(_: Any) -> None:
            identity = self.world.host.floor.find(guest.vm_id).vm.identity
            if identity.holds_links_down and identity.plan is not None:
                await self._ended(await self.world.host.identify_vm(guest.vm_id))

        return await run(guest.mo, call, "StartGuestNetwork_Task", work, vm_id=guest.vm_id)

    @operation("AbortCustomization_Task", privilege=PRIVILEGE)
    async def abort(self, call: Call, vm: Any, auth: Any) -> Any:
        """What runs is cancelled; where nothing does, nothing happens, however often it is asked."""
        guest = guest_of(self.world, vm, auth)

        async def work(_: Any) -> None:
            await self._cancel(guest)

        return await run(guest.mo, call, "AbortCustomization_Task", work, vm_id=guest.vm_id)

    async def _cancel(self, guest: Guest) -> None:
        tasks = self.world.host.tasks
        for task in tasks.list():
            if task.vm_id == guest.vm_id and task.kind in KINDS and not task.state.is_final and task.cancellable:
                await tasks.cancel(task.id)
                await tasks.wait(task.id, TIMEOUT_S)

    async def _ended(self, task: Task) -> None:
        final = await self.world.host.tasks.wait(task.id, TIMEOUT_S)
        if not final.state.is_final:
            raise DeadlineError(f"The guest did not acknowledge within {TIMEOUT_S:g} s.")
        if final.error is not None:
            raise from_dict(final.error)
