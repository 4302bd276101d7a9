"""InstantClone_Task and CloneVM_Task: from a VM to another.

An instant clone's refusals come at once, as faults of the call, where the host's own check makes them: there is no task
then, and nothing has changed. The task ends when the clone executes, for whoever asked has the rest to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

from ramet.errors import DeadlineError, RametError, StateError, UsageError
from ramet.host.copying import COPIED, Shaping
from ramet.host.tasks import TaskHandle
from ramet.model.host import Task
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.machine.long_work import ended, run, show, until_known
from ramet.vsphere.machine.operations_base import MachineOperations, vm_ref
from ramet.vsphere.machine.operations_config import steps
from ramet.vsphere.machine.operations_customize import order_of_customization
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
from ramet.vsphere.types import vmodl, wire_name

LONGEST_COPY_S = 86_400.0
UNDO_S = 60.0


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

    # -- copies ----------------------------------------------------------------------------------------------------

    @operation(
        "CloneVM_Task", privilege="System.View",
        partial="of one that runs the copy has the disks as after a power cut; `snapshot` and `memory` are refused "
        "with NotSupported",
    )
    async def clone(self, call: Call, folder: Any, name: str, spec: Any) -> Any:
        """Of its disks: full, or linked where the spec's `diskMoveType` says so. A VM that is on goes on."""
        require_clone(call, self, spec, of_template=self.is_template)
        with refusing(self, "poweredOff"):
            self._require_copied()
        with refusing(self):
            order = copy_of(self.world, self.live, folder, name, spec)
            for wish in order.wishes:
                require_cards(call, self, wish.devices)
            self._check_free(name)
            if order.customization is not None and not order.wishes:
                order_of_customization(self.live.vm.machine, order.customization)
        made: list[str] = []

        async def work(handle: TaskHandle) -> None:
            made.append(await self._copy(order))
            if order.power_on:
                handle.cancellable = False
                await self._power_on(made[0])

        async def result(_: Task) -> Any:
            await until_known(self.world, ids.vm_moid(made[0]))
            return vm_ref(made[0])

        return await run(self, call, "CloneVM_Task", work, vm_id=self.vm_id, cancellable=True, result=result)

    def _require_copied(self) -> None:
        record = self.record
        if record.state not in COPIED:
            raise StateError(
                f"{record.name!r} is {record.state.value}: CloneVM_Task copies VMs that are off, running or frozen.",
                hint="Power it on or off first.",
                state=record.state.value,
                operation="clone",
            )

    def _check_free(self, name: str) -> None:
        if self.host.floor.is_taken(name):
            raise duplicate_name(self.world, name, f"There is a VM named {name!r} already. Choose another name.")

    async def _copy(self, order: CopyOrder) -> str:
        """Its id. What is said of it is kept before it is there, and goes with what fails."""
        vm_id = self.host.floor.rooms.book.new_vm_id()
        try:
            await self._note(vm_id, order)
            await self._made(vm_id, order)
        except BaseException:
            if vm_id not in self.host.floor.machines:
                with contextlib.suppress(RametError, OSError):
                    await asyncio.shield(self.places.forget(vm_id))
            raise
        return vm_id

    async def _power_on(self, vm_id: str) -> None:
        """What cannot be powered on goes again, unless it is on by then."""
        try:
            await ended(self.host, await self.host.start_vm(vm_id))
        except RametError:
            with contextlib.suppress(RametError):
                await ended(self.host, await self.host.remove_vm(vm_id))
            raise

    async def _note(self, vm_id: str, order: CopyOrder) -> None:
        noted: dict[str, Any] = {"template": True} if order.template else {}
        if order.folder != ids.VM_FOLDER:
            noted["folder"] = order.folder
        if order.customization is not None and not order.wishes:
            noted["customization"] = order_of_customization(self.live.vm.machine, order.customization)
        if noted:
            await self.places.change(vm_id, **noted)

    async def _made(self, vm_id: str, order: CopyOrder) -> None:
        """When this raises the host's work has ended, and undone what there was."""
        faults: list[vmodl.MethodFault] = []

        async def shape(handle: TaskHandle) -> None:
            try:
                await self._shape(vm_id, order, handle)
            except vmodl.MethodFault as fault:  # the host's task knows no faults of the API's
                faults.append(fault)
                raise UsageError(fault.msg or wire_name(type(fault))) from fault

        task = await self.host.copy_vm(self.vm_id, order.request, shaping=Shaping(vm_id, shape))
        try:
            await ended(self.host, task, LONGEST_COPY_S)
        except (asyncio.CancelledError, DeadlineError):
            with contextlib.suppress(RametError):
                await self.host.tasks.cancel(task.id)
            await asyncio.shield(self.host.tasks.wait(task.id, UNDO_S))
            raise
        except RametError:
            if faults:
                raise faults[0] from None
            raise

    async def _shape(self, vm_id: str, order: CopyOrder, handle: TaskHandle) -> None:
        """Before anybody sees it: no copy has its source's cards, or lacks what its guest is to be told."""
        for wish in order.wishes:
            for what, step in steps(self.host, self.places, vm_id, wish):
                with handle.step(what):
                    await step
        if order.customization is not None and order.wishes:  # its cards are settled only now
            machine = self.host.floor.find(vm_id).vm.machine
            await self.places.change(vm_id, customization=order_of_customization(machine, order.customization))

    async def _born(self, place: Place, task: Task) -> Any:
        """The new VM, in the folder that was asked for: that of its source, if none was."""
        vm_id = str(task.result[0]["id"])
        folder = place.folder or self.places.note(self.vm_id).folder
        if folder != ids.VM_FOLDER:
            await self.places.change(vm_id, folder=folder)
        await until_known(self.world, ids.vm_moid(vm_id))
        return vm_ref(vm_id)
