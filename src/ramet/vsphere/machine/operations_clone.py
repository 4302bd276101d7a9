"""InstantClone_Task and CloneVM_Task: from a VM to another.

An instant clone's refusals come at once, as faults of the call, where the host's own check makes them: there is no task
then, and nothing has changed. The task ends when the clone executes, for whoever asked has the rest to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

from ramet.errors import RametError, StateError
from ramet.host.tasks import TaskHandle
from ramet.model.host import Task
from ramet.model.machine import VmState
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.machine.long_work import ended, run, show, until_known
from ramet.vsphere.machine.operations_base import MachineOperations, vm_ref
from ramet.vsphere.machine.operations_config import steps
from ramet.vsphere.machine.refusals import duplicate_name, power_state, refusing
from ramet.vsphere.machine.spec_copy import CopyOrder, copy_of
from ramet.vsphere.machine.spec_instant import Order, order_of
from ramet.vsphere.machine.spec_location import Place
from ramet.vsphere.machine.spec_privileges import (
    require_cards,
    require_clone,
    require_instant_clone,
    require_networks,
)


class CloneOperations(MachineOperations):
    """Both workflows of the instant clone, by what the source is doing: it runs, or it is frozen."""

    @operation(
        "InstantClone_Task",
        partial="profiles, encryption, tags and another vCenter in `location`, and the key `sched.mem.pshare.salt`, "
        "are refused with NotSupported; there is one pool, one host and one datastore to choose",
    )
    async def instant_clone(self, call: Call, spec: Any) -> Any:
        require_instant_clone(call, self, spec)
        with refusing(self, "poweredOn"):
            self.require_on()
        with refusing(self):
            order = self.ordered(call, spec)
            task = await self.host.clone_vm(self.vm_id, order.request)
        return await show(self, call, "InstantClone_Task", task, result=partial(self._born, order.place))

    def ordered(self, call: Call, spec: Any) -> Order:
        """What the host is to do. It changes nothing; networks need a privilege."""
        order = order_of(self.world, self.live, spec)
        require_networks(call, self, order.request.nics)
        return order

    def require_on(self) -> None:
        state = self.record.state
        if power_state(state) != "poweredOn":
            raise StateError(
                f"Cannot clone {self.record.name!r} while it is {state.value}.",
                hint="An instant clone is made from a VM that is powered on.",
                state=state.value,
                operation="clone",
            )

    # -- of VMs that are off ---------------------------------------------------------------------------------------

    @operation(
        "CloneVM_Task", privilege="System.View",
        partial="of a VM that is off, or a template; `snapshot`, `memory` and `customization` are refused with "
        "NotSupported",
    )
    async def clone(self, call: Call, folder: Any, name: str, spec: Any) -> Any:
        """Of a template, or a VM that is off: full, or linked where the spec's `diskMoveType` says so."""
        require_clone(call, self, spec, of_template=self.is_template)
        with refusing(self, "poweredOff"):
            self._require_off()
        with refusing(self):
            order = copy_of(self.world, self.live, folder, name, spec)
            for wish in order.wishes:
                require_cards(call, self, wish.devices)
            self._check_free(name)
        made: list[str] = []

        async def work(handle: TaskHandle) -> None:
            made.append(await self._copy(handle, order))

        async def result(_: Task) -> Any:
            await until_known(self.world, ids.vm_moid(made[0]))
            return vm_ref(made[0])

        return await run(self, call, "CloneVM_Task", work, vm_id=self.vm_id, cancellable=True, result=result)

    def _require_off(self) -> None:
        record = self.record
        if record.state is not VmState.OFF:
            raise StateError(
                f"{record.name!r} is {record.state.value}: CloneVM_Task copies VMs that are powered off.",
                hint="InstantClone_Task clones those that run.",
                state=record.state.value,
                operation="clone",
            )

    def _check_free(self, name: str) -> None:
        if self.host.floor.is_taken(name):
            raise duplicate_name(self.world, name, f"There is a VM named {name!r} already. Choose another name.")

    async def _copy(self, handle: TaskHandle, order: CopyOrder) -> str:
        """Its id. What fails after the copy was made takes it away again."""
        task = await self.host.copy_vm(self.vm_id, order.request)
        try:
            vm_id = str((await ended(self.host, task)).result["id"])
        except asyncio.CancelledError:
            with contextlib.suppress(RametError):
                await self.host.tasks.cancel(task.id)
            raise
        try:
            await self._shape(handle, vm_id, order)
        except BaseException:
            with contextlib.suppress(RametError):
                await asyncio.shield(self.host.remove_vm(vm_id, True))
            raise
        return vm_id

    async def _shape(self, handle: TaskHandle, vm_id: str, order: CopyOrder) -> None:
        for wish in order.wishes:
            for what, step in steps(self.host, self.places, vm_id, wish):
                with handle.step(what):
                    await step
        noted: dict[str, Any] = {"template": True} if order.template else {}
        if order.folder != ids.VM_FOLDER:
            noted["folder"] = order.folder
        if noted:
            await self.places.change(vm_id, **noted)
        if order.power_on:
            await ended(self.host, await self.host.start_vm(vm_id))

    async def _born(self, place: Place, task: Task) -> Any:
        """The new VM, in the folder that was asked for: that of its source, if none was."""
        vm_id = str(task.result[0]["id"])
        folder = place.folder or self.places.note(self.vm_id).folder
        if folder != ids.VM_FOLDER:
            await self.places.change(vm_id, folder=folder)
        await until_known(self.world, ids.vm_moid(vm_id))
        return vm_ref(vm_id)
