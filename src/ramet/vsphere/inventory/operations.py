"""What can be done with folders, the datacenter and the pool."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ramet.model.host import Task
from ramet.model.machine import VmState
from ramet.model.requests import RegisterVm
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation
from ramet.vsphere.inventory.browser import inside
from ramet.vsphere.inventory.places import Places
from ramet.vsphere.machine.long_work import ended, run, show, until_known
from ramet.vsphere.machine.operations_life import refused
from ramet.vsphere.machine.operations_power import PowerOperations
from ramet.vsphere.machine.refusals import duplicate_name, refusing
from ramet.vsphere.machine.spec_create import Creation, creation_of
from ramet.vsphere.machine.spec_instant import check_name
from ramet.vsphere.machine.spec_privileges import require_creation
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.machine.live import LiveMachine

_FILES = "VMs have no files of their own that could be registered: an image is imported with 'ramet image import'."
_ONE_HOST = "This server is one host, which is in the inventory from the start."


class FolderOperations(Mo):
    """Of a folder of VMs. Names of folders are unique in their folder, those of VMs on the host."""

    @property
    def _places(self) -> Places:
        return self.world.part(Places)

    @operation("CreateFolder", partial="in folders of VMs")
    async def create_folder(self, call: Call, name: str) -> Any:
        record = await self._places.make_folder(self.moid, name)
        self.world.add(type(self)(self.world, record.moid))
        self.world.updates.reshape(self.moid)
        return vim.Folder(record.moid)

    @operation("Rename_Task", privilege="Folder.Rename", partial="folders of VMs that were created")
    async def rename(self, call: Call, newName: str) -> Any:
        self._require_made("renamed")
        if newName != self._name():
            self._places.check_name(self._parent(), newName)

        async def work(_: Any) -> None:
            await self._places.rename_folder(self.moid, newName)

        return await run(self, call, "Rename_Task", work)

    @operation("Destroy_Task", privilege="Folder.Delete", partial="folders of VMs that were created")
    async def destroy(self, call: Call) -> Any:
        """With all that is in it, as in the original: VMs that are on are refused, before anything is removed."""
        self._require_made("removed")
        vms = [vm_id for moid in self._below(self.moid) for vm_id in self._places.vms_in(moid)]
        self._require_off(vms)
        call.require("VirtualMachine.Inventory.Delete", self)

        async def work(_: Any) -> None:
            await self._remove_all(vms)

        return await run(self, call, "Destroy_Task", work)

    @operation("MoveIntoFolder_Task", privilege="Folder.Move", partial="VMs and folders of VMs")
    async def move_into(self, call: Call, list: Sequence[Any]) -> Any:
        moids = [reference._moId for reference in list]
        self._check_movable(moids)

        async def work(_: Any) -> None:
            for moid in moids:
                vm_id = ids.vm_id(moid)
                if vm_id is not None:
                    await self._places.change(vm_id, folder=self.moid)
                else:
                    await self._places.move_folder(moid, self.moid)

        return await run(self, call, "MoveIntoFolder_Task", work)

    @operation(
        "CreateVM_Task",
        partial="from an image (`ramet.image` in extraConfig, or a disk backed by `[ramet] images/NAME`) or with "
        "empty disks; no ISO files; fields that this host has not are refused with NotSupported",
    )
    async def create_vm(self, call: Call, config: Any, pool: Any, host: Any = None) -> Any:
        with refusing(self):
            creation = creation_of(self.world, config)
            require_creation(call, self, creation.request)
            task = await self.world.host.create_vm(creation.request)
        return await show(self, call, "CreateVM_Task", task, result=partial(self._created, creation))

    async def _created(self, creation: Creation, task: Task) -> Any:
        vm_id = str(task.result["id"])
        noted = dict(creation.notes)
        if self.moid != ids.VM_FOLDER:
            noted["folder"] = self.moid
        if any(noted.values()):
            await self._places.change(vm_id, **noted)
        await until_known(self.world, ids.vm_moid(vm_id))
        return vim.VirtualMachine(ids.vm_moid(vm_id))

    @operation(
        "RegisterVM_Task",
        privilege="VirtualMachine.Inventory.Register",
        partial="VMs that were unregistered, by the path that they had; there is one pool and one host to choose",
    )
    async def register(
        self, call: Call, path: str, asTemplate: bool, name: str | None = None, pool: Any = None, host: Any = None
    ) -> Any:
        with refusing(self):
            live = self._unregistered(path)
            wanted = name or live.name
            check_name(wanted, "name")
            if asTemplate and live.vm.state is not VmState.OFF:
                raise vmodl.fault.InvalidArgument(
                    invalidProperty="asTemplate", msg=f"{live.name!r} is {live.vm.state.value}: no template is."
                )
            if self.world.host.floor.is_taken(wanted):
                raise duplicate_name(self.world, wanted, f"There is a VM named {wanted!r} already. Give another name.")

        async def work(_: Any) -> None:
            await self._places.change(live.id, folder=self.moid, template=asTemplate)
            await self.world.host.register_vm(RegisterVm(ref=live.id, name=wanted))

        async def result(_: Task) -> Any:
            await until_known(self.world, ids.vm_moid(live.id))
            return vim.VirtualMachine(ids.vm_moid(live.id))

        return await run(self, call, "RegisterVM_Task", work, result=result)

    def _unregistered(self, path: str) -> LiveMachine:
        """By a path like `[ramet] vms/3f00a1b2c2ba/web.vmx`: of that VM, however it was called since."""
        inner = inside(path)
        vm_id = inner.parts[1] if len(inner.parts) == 3 and inner.parts[0] == "vms" and inner.suffix == ".vmx" else ""
        live = self.world.host.floor.machines.get(vm_id)
        if live is None or live.vm.is_pooled or live.vm.provisional:
            raise vim.fault.NotFound(msg=f"There is no VM at {path!r}.")
        if live.vm.registered:
            raise vim.fault.AlreadyExists(name=live.name, msg=f"{live.name!r} is registered.")
        return live

    unregister_and_destroy = refused("UnregisterAndDestroy_Task", "Destroy_Task removes a folder with its VMs.")
    create_cluster = refused("CreateCluster", _ONE_HOST)
    create_cluster_ex = refused("CreateClusterEx", _ONE_HOST)
    create_datacenter = refused("CreateDatacenter", "There is one datacenter.")
    add_host = refused("AddStandaloneHost_Task", _ONE_HOST)

    def _name(self) -> str:
        record = self._places.folder(self.moid)
        return record.name if record else "vm"

    def _parent(self) -> str:
        record = self._places.folder(self.moid)
        return record.parent if record else ids.DATACENTER

    def _require_made(self, what: str) -> None:
        if self._places.folder(self.moid) is None:
            raise vmodl.fault.NotSupported(msg=f"The folder {self._name()!r} is always there and cannot be {what}.")

    def _below(self, moid: str) -> list[str]:
        """This folder and all in it, the innermost first."""
        inner = [found for child in self._places.folders_in(moid) for found in self._below(child.moid)]
        return [*inner, moid]

    def _require_off(self, vms: Sequence[str]) -> None:
        for vm_id in vms:
            live = self.world.host.floor.machines.get(vm_id)
            if live is not None and live.vm.is_on:
                raise vim.fault.InvalidState(
                    msg=f"{live.vm.name!r} in {self._name()!r} is powered on: power it off, or move it, first."
                )

    async def _remove_all(self, vms: Sequence[str]) -> None:
        for vm_id in vms:
            with refusing(self):
                task = await self.world.host.remove_vm(vm_id)
                await ended(self.world.host, task)
        for moid in self._below(self.moid):
            await self._places.remove_folder(moid)

    def _check_movable(self, moids: Sequence[str]) -> None:
        for moid in moids:
            mo = self.world.find(moid)
            if ids.vm_id(moid) is None and self._places.folder(moid) is None:
                raise vim.fault.InvalidFolder(target=mo.ref, msg=f"{moid} cannot be moved: it is always where it is.")
            if self._places.is_below(self.moid, moid):
                raise vim.fault.InvalidFolder(
                    target=self.ref, msg="A folder cannot be moved into itself, or into one of its own folders."
                )


class DatacenterOperations(Mo):
    @operation(
        "PowerOnMultiVM_Task", privilege="VirtualMachine.Interact.PowerOn",
        partial="without placement recommendations",
    )
    async def power_on_multi(self, call: Call, vm: Sequence[Any], option: Sequence[Any] = ()) -> Any:
        """One task for all; the result names those that were tried and those that were not."""
        moids = [reference._moId for reference in vm]
        for moid in moids:
            self.world.find(moid)
        outcome = vim.cluster.PowerOnVmResult()

        async def work(_: Any) -> None:
            for moid in moids:
                await self._power_on(call, moid, outcome)

        async def result(_: Task) -> Any:
            return outcome

        return await run(self, call, "PowerOnMultiVM_Task", work, result=result)

    async def _power_on(self, call: Call, moid: str, outcome: Any) -> None:
        mo = self.world.get(moid)
        try:
            if not isinstance(mo, PowerOperations):
                raise vmodl.fault.ManagedObjectNotFound(obj=vim.VirtualMachine(moid), msg="The VM has been removed.")
            task = await mo.power_on(call)
        except vmodl.MethodFault as fault:
            outcome.notAttempted.append(vim.cluster.NotAttemptedVmInfo(vm=vim.VirtualMachine(moid), fault=fault))
        else:
            outcome.attempted.append(vim.cluster.AttemptedVmInfo(vm=mo.ref, task=task))

    rename_datacenter = refused("Rename_Task", "The datacenter's name is fixed.")
    destroy_datacenter = refused("Destroy_Task", "There is always one datacenter.")


class PoolOperations(Mo):
    create_pool = refused("CreateResourcePool", "There is one resource pool: limits are set for each VM.")
    create_child_vm = refused("CreateChildVM_Task", "CreateVM_Task of a folder makes VMs.")
    register_child_vm = refused("RegisterChildVM_Task", _FILES)
    import_vapp = refused("ImportVApp", "OVF packages cannot be imported: disk images can, with 'ramet image import'.")
    create_vapp = refused("CreateVApp", "There are no vApps.")
    update_config = refused("UpdateConfig", "The pool is the whole host: it has no limits of its own.")
    rename_pool = refused("Rename_Task", "The pool's name is fixed.")
    destroy_pool = refused("Destroy_Task", "There is always one resource pool.")
