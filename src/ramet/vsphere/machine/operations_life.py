"""The end of a VM, templates, tools; and what there is not, each with the sentence that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ramet.errors import StateError
from ramet.model.host import Task
from ramet.model.machine import VmState
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation
from ramet.vsphere.machine.long_work import show, until_known
from ramet.vsphere.machine.operations_base import MachineOperations
from ramet.vsphere.machine.refusals import refusing
from ramet.vsphere.types import vim, vmodl

_SNAPSHOTS = (
    "Snapshots are not supported: an instant clone of a frozen VM begins at that VM's instant as often as it is wanted."
)
_ONE_HOST = "There is one host: a VM can be moved nowhere else."
_CONSOLES = "There are no tickets of this old kind: AcquireTicket gives one of the type webmks."
_FILES = "VMs have no files of their own that could be registered: an image is imported with 'ramet image import'."


def refused(name: str, why: str) -> Callable[..., Any]:
    """An operation that there is not. The sentence says what there is instead."""

    @operation(name, refusal=why)
    async def refuse(self: Any, call: Call, **parameters: Any) -> Any:
        raise vmodl.fault.NotSupported(msg=why)

    return refuse


class LifeOperations(MachineOperations):
    """Everything but power, clones and configuration."""

    @operation("Destroy_Task", privilege="VirtualMachine.Inventory.Delete")
    async def destroy(self, call: Call) -> Any:
        """Of a VM that is off, or suspended; its clones live on."""
        with refusing(self, "poweredOff"):
            task = await self.host.remove_vm(self.vm_id)
        return await show(self, call, "Destroy_Task", task, result=self._gone, requested="poweredOff")

    async def _gone(self, _: Task) -> None:
        await until_known(self.world, self.moid, gone=True)

    @operation("UnregisterVM", privilege="VirtualMachine.Inventory.Unregister")
    async def unregister(self, call: Call) -> None:
        """What it is stays, under the path that `config.files.vmPathName` has: RegisterVM_Task takes that. What clients
        said of it, as its folder, goes."""
        with refusing(self, "poweredOff"):
            await self.host.unregister_vm(self.vm_id)
        await until_known(self.world, self.moid, gone=True)

    @operation("MarkAsTemplate")
    async def mark_as_template(self, call: Call) -> None:
        with refusing(self, "poweredOff"):
            if self.record.state is not VmState.OFF:
                raise StateError(
                    f"{self.record.name!r} is {self.record.state.value}: a template is powered off.",
                    state=self.record.state.value,
                    operation="mark as template",
                )
        await self.places.change(self.vm_id, template=True)

    @operation("MarkAsVirtualMachine")
    async def mark_as_virtual_machine(self, call: Call, pool: Any, host: Any = None) -> None:
        if not self.is_template:
            raise vim.fault.InvalidState(msg=f"{self.record.name!r} is no template.")
        await self.places.change(self.vm_id, template=False)

    @operation("RefreshStorageInfo")
    async def refresh_storage(self, call: Call) -> None:
        """What is shown is read when it is asked for."""

    @operation("Reload")
    async def reload(self, call: Call) -> None:
        """As above."""

    # -- tools -----------------------------------------------------------------------------------------------------

    @operation("MountToolsInstaller", partial="there is no disc: the tools are put into the guest by its agent")
    async def mount_tools_installer(self, call: Call) -> None:
        """Ramet's tools are put into the guest by its agent, without a disc and a person."""
        with refusing(self, "poweredOn"):
            await self.host.install_tools(self.vm_id)

    @operation("UnmountToolsInstaller", partial="there is no disc: it does nothing")
    async def unmount_tools_installer(self, call: Call) -> None:
        """There is no disc."""

    @operation("UpgradeTools_Task", partial="without installer options")
    async def upgrade_tools(self, call: Call, installerOptions: str | None = None) -> Any:
        with refusing(self, "poweredOn"):
            task = await self.host.install_tools(self.vm_id)
        return await show(self, call, "UpgradeTools_Task", task)

    # -- what there is not -----------------------------------------------------------------------------------------

    acquire_mks_ticket = refused("AcquireMksTicket", _CONSOLES)
    relocate = refused("RelocateVM_Task", _ONE_HOST)
    migrate = refused("MigrateVM_Task", _ONE_HOST)
    create_snapshot = refused("CreateSnapshot_Task", _SNAPSHOTS)
    create_snapshot_ex = refused("CreateSnapshotEx_Task", _SNAPSHOTS)
    revert = refused("RevertToCurrentSnapshot_Task", _SNAPSHOTS)
    remove_snapshots = refused("RemoveAllSnapshots_Task", _SNAPSHOTS)
    consolidate = refused("ConsolidateVMDisks_Task", "Chains of disk layers are shortened by the host itself.")
    promote = refused("PromoteDisks_Task", "Chains of disk layers are shortened by the host itself.")
    reload_from_path = refused("reloadVirtualMachineFromPath_Task", _FILES)
