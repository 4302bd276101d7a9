"""ReconfigVM_Task and Rename_Task: what is wrong is told by the call, what it takes time for is a task."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any

from ramet.errors import StateError
from ramet.model.machine import VmState
from ramet.model.requests import AddDisk, ChangeVm, GrowDisk
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.machine.long_work import run
from ramet.vsphere.machine.operations_base import MachineOperations
from ramet.vsphere.machine.refusals import duplicate_name, power_state, refusal, refusing
from ramet.vsphere.machine.spec_instant import check_name
from ramet.vsphere.machine.spec_privileges import require_cards, require_change
from ramet.vsphere.machine.spec_reconfigure import Wish, wish_of

if TYPE_CHECKING:
    from ramet.host.service import Host


class ConfigOperations(MachineOperations):
    """Changes of a VM that exists."""

    @operation(
        "ReconfigVM_Task", privilege="System.View",
        partial="name, annotation, guestId, instanceUuid, extraConfig, cards, disks; numCPUs, memoryMB and the removal "
        "of disks when off; of `cpuAllocation` that there is no limit. Fields that repeat what is so are taken; others "
        "are refused with NotSupported",
    )
    async def reconfigure(self, call: Call, spec: Any) -> Any:
        require_change(call, self, spec)
        if spec.name:
            self._check_rename(spec.name, "spec.name")
        is_on = power_state(self.record.state) == "poweredOn"
        with refusing(self):
            wish = wish_of(self.world, self.record.machine, spec, is_on=is_on)
        require_cards(call, self, wish.devices)
        self._check_state(wish)

        async def work(handle: Any) -> None:
            for what, step in steps(self.host, self.places, self.vm_id, wish):
                with handle.step(what):
                    await step

        return await run(self, call, "ReconfigVM_Task", work, vm_id=self.vm_id)

    @operation("Rename_Task", privilege="VirtualMachine.Config.Rename")
    async def rename(self, call: Call, newName: str) -> Any:
        self._check_rename(newName, "newName")

        async def work(_: Any) -> None:
            if newName != self.record.name:
                await self.host.change_vm(self.vm_id, ChangeVm(name=newName))

        return await run(self, call, "Rename_Task", work, vm_id=self.vm_id)

    def _check_rename(self, name: str, where: str) -> None:
        check_name(name, where)
        if name != self.record.name and self.host.floor.is_taken(name):
            raise duplicate_name(self.world, name, f"There is a VM named {name!r} already. Choose another name.")

    def _check_state(self, wish: Wish) -> None:
        """What the lifecycle would refuse in the middle of the work is refused before it."""
        hardware = wish.change is not None and (wish.change.memory_mib or wish.change.vcpus)
        if self.record.state is VmState.OFF or not (hardware or wish.devices.removed_disks):
            return
        what = "memory, processors and the removal of disks"
        error = StateError(
            f"{self.record.name!r} is {self.record.state.value}: {what} need a VM that is powered off.",
            state=self.record.state.value,
            operation="change the hardware",
        )
        raise refusal(self, error, "poweredOff") from error


def steps(host: Host, places: Places, vm_id: str, wish: Wish) -> Iterator[tuple[str, Awaitable[object]]]:
    """In an order in which each finds what it needs. What is not reached was never begun."""
    ref, devices = vm_id, wish.devices
    if wish.change is not None:
        yield "change", host.change_vm(ref, wish.change)
    if wish.notes:
        yield "notes", places.change(ref, **wish.notes)
    for nic_id in devices.removed:
        yield f"remove {nic_id}", host.remove_nic(ref, nic_id)
    for change in devices.changed:
        yield f"change {change.id}", host.change_nic(ref, change)
    for request in devices.added:
        yield "add a NIC", host.add_nic(ref, request)
    for disk_id in devices.removed_disks:
        yield f"remove {disk_id}", host.remove_disk(ref, disk_id)
    for disk_id, size_mib in devices.grown:
        yield f"grow {disk_id}", host.grow_disk(ref, disk_id, GrowDisk(size_mib=size_mib))
    for size_mib in devices.added_disks:
        yield "add a disk", host.add_disk(ref, AddDisk(size_mib=size_mib))
