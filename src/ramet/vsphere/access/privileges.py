"""The API's privileges: those that the schema's methods name, and those that clients know besides.

all_privileges() -> list of names, sorted
of_role(Role.OPERATOR) -> frozenset, or None for everything
group_of("VirtualMachine.Interact.PowerOn") -> "VirtualMachine.Interact"
"""

from __future__ import annotations

from functools import cache

from ramet.model.access import Role
from ramet.vsphere.types import Support

SYSTEM = ("System.Anonymous", "System.Read", "System.View")

# Privileges that the original checks inside of methods: the schema's methods do not name them.
_BESIDES = """
Authorization.ModifyPermissions Datastore.Browse Datastore.Move Folder.Move Folder.Rename Global.CancelTask
Global.GlobalTag Global.Health Global.SystemTag Host.Inventory.RenameCluster Network.Config Network.Move
Resource.ApplyRecommendation Resource.AssignVAppToPool Resource.DeletePool Resource.HotMigrate Resource.MovePool
Resource.RenamePool VirtualMachine.Config.AddNewDisk VirtualMachine.Config.AddRemoveDevice
VirtualMachine.Config.AdvancedConfig VirtualMachine.Config.Annotation VirtualMachine.Config.CPUCount
VirtualMachine.Config.ChangeTracking VirtualMachine.Config.DiskExtend VirtualMachine.Config.DiskLease
VirtualMachine.Config.EditDevice VirtualMachine.Config.HostUSBDevice VirtualMachine.Config.ManagedBy
VirtualMachine.Config.Memory VirtualMachine.Config.MksControl VirtualMachine.Config.RawDevice
VirtualMachine.Config.Rename VirtualMachine.Config.Resource VirtualMachine.Config.SwapPlacement
VirtualMachine.Config.ToggleForkParent VirtualMachine.Interact.Backup VirtualMachine.Interact.DeviceConnection
VirtualMachine.Interact.DnD VirtualMachine.Interact.Pause VirtualMachine.Interact.SESparseMaintenance
VirtualMachine.Interact.SetCDMedia VirtualMachine.Interact.SetFloppyMedia
VirtualMachine.Inventory.CreateFromExisting VirtualMachine.Inventory.Delete VirtualMachine.Inventory.Move
VirtualMachine.Provisioning.CloneTemplate VirtualMachine.Provisioning.CreateTemplateFromVM
VirtualMachine.Provisioning.DeployTemplate VirtualMachine.Provisioning.DiskRandomAccess
VirtualMachine.Provisioning.FileRandomAccess VirtualMachine.Provisioning.GetVmFiles
VirtualMachine.Provisioning.PutVmFiles
"""

_OPERATORS_GROUPS = ("System", "VirtualMachine", "Folder", "Task", "Alarm", "VApp", "ScheduledTask")
_OPERATORS = frozenset(
    {
        "Datastore.AllocateSpace",
        "Datastore.Browse",
        "Datastore.FileManagement",
        "Datastore.UpdateVirtualMachineFiles",
        "Global.CancelTask",
        "Global.LogEvent",
        "Global.SetCustomField",
        "Network.Assign",
        "Resource.AssignVMToPool",
        "Resource.ColdMigrate",
        "Resource.HotMigrate",
        "Sessions.ValidateSession",
    }
)


@cache
def all_privileges() -> tuple[str, ...]:
    """Read from the schema's table, without loading its types."""
    named: set[str] = set(SYSTEM) | set(_BESIDES.split())
    for definition in Support._managedDefMap.values():
        for method in definition[5] or ():
            named.update((method[5] or "").split())
            for parameter in method[3]:
                named.update((parameter[4] or "").split())
    return tuple(sorted(named - {"None"}))


@cache
def of_role(role: Role) -> frozenset[str] | None:
    """What a role may do; None for everything."""
    if role is Role.ADMINISTRATOR:
        return None
    if role is Role.READ_ONLY:
        return frozenset(SYSTEM)
    grouped = {name for name in all_privileges() if name.partition(".")[0] in _OPERATORS_GROUPS}
    return frozenset(grouped | _OPERATORS)


def group_of(privilege: str) -> str:
    return privilege.rpartition(".")[0]
