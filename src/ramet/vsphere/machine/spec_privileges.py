"""What a spec takes to be allowed, beside the method's own privilege: one for each thing that it says.

    require_change(call, mo, spec)             # ReconfigVM_Task; before anything of the spec is looked up
    require_fields(call, mo, spec)             # the same, of a spec that may as well say nothing
    require_instant_clone(call, mo, spec), require_clone(call, mo, spec, of_template=…)
    require_cards(call, mo, devices)           # what becomes of network cards, once that is known
    require_networks(call, mo, cards)
    require_creation(call, mo, request)

All of them raise NoPermission, which names the first privilege that is missing. Which they are is what the API's
reference says of ReconfigVM_Task, CreateVM_Task, CloneVM_Task and InstantClone_Task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ramet.model.requests import CreateVm, NicChange, NicRequest
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.machine.spec_devices import DeviceChanges, is_nic
from ramet.vsphere.machine.spec_reconfigure import set_fields
from ramet.vsphere.types import vim

_CONFIG = "VirtualMachine.Config."
SETTINGS = f"{_CONFIG}Settings"
ADVANCED = f"{_CONFIG}AdvancedConfig"
EDIT = f"{_CONFIG}EditDevice"
ADD_REMOVE = f"{_CONFIG}AddRemoveDevice"
NEW_DISK = f"{_CONFIG}AddNewDisk"
CONNECTION = "VirtualMachine.Interact.DeviceConnection"
NETWORK = "Network.Assign"
SPACE = "Datastore.AllocateSpace"
POOL = "Resource.AssignVMToPool"
POWER_ON = "VirtualMachine.Interact.PowerOn"
CUSTOMIZE = "VirtualMachine.Provisioning.Customize"
FROM_EXISTING = "VirtualMachine.Inventory.CreateFromExisting"

OF_FIELDS = {
    "name": f"{_CONFIG}Rename",
    "annotation": f"{_CONFIG}Annotation",
    "numCPUs": f"{_CONFIG}CPUCount",
    "numCoresPerSocket": f"{_CONFIG}CPUCount",
    "memoryMB": f"{_CONFIG}Memory",
    "extraConfig": ADVANCED,
    "cpuAllocation": f"{_CONFIG}Resource",
    "swapPlacement": f"{_CONFIG}SwapPlacement",
    "changeTrackingEnabled": f"{_CONFIG}ChangeTracking",
}
"""Of every other field that says something it is SETTINGS."""
FREE = frozenset({"changeVersion"})
"""What it is that the caller has seen."""
_OF_DISKS = {"add": NEW_DISK, "remove": f"{_CONFIG}RemoveDisk"}
CHANGING = frozenset(
    {*OF_FIELDS.values(), SETTINGS, *_OF_DISKS.values(), f"{_CONFIG}DiskExtend", ADD_REMOVE, EDIT, CONNECTION}
)
"""Whoever has any of them changes VMs."""
_CLONING = {
    (False, False): "VirtualMachine.Provisioning.Clone",
    (False, True): "VirtualMachine.Provisioning.CreateTemplateFromVM",
    (True, False): "VirtualMachine.Provisioning.DeployTemplate",
    (True, True): "VirtualMachine.Provisioning.CloneTemplate",
}
"""By whether the source is a template, and whether the clone is to be one."""


def require_change(call: Call, mo: Mo, spec: Any) -> None:
    """A spec that asks for nothing is for those who may change something: it is a task, and stands in the history."""
    session = call.session_or_fault(mo, SETTINGS)
    if not require_fields(call, mo, spec) and not any(session.may(privilege) for privilege in CHANGING):
        call.require(SETTINGS, mo)


def require_fields(call: Call, mo: Mo, spec: Any, besides: Iterable[str] = ()) -> bool:
    """Whether any was needed. `besides`: fields that are the method's own business."""
    wanted = list(dict.fromkeys(_needed(spec, frozenset(besides) | FREE)))
    _require(call, mo, wanted)
    return bool(wanted)


def require_cards(call: Call, mo: Mo, devices: DeviceChanges) -> None:
    """As far as something is another than it was: clients send back whole cards to change one thing of them."""
    for edit in devices.changed:
        if edit.network is not None or edit.mac is not None:
            call.require(EDIT, mo)
        if edit.connected is not None:
            call.require(CONNECTION, mo)
    require_networks(call, mo, (*devices.added, *devices.changed))


def require_networks(call: Call, mo: Mo, cards: Iterable[NicRequest | NicChange]) -> None:
    """For those that are put onto one."""
    if any(card.network is not None for card in cards):
        call.require(NETWORK, mo)


# -- new VMs -----------------------------------------------------------------------------------------------------------


def require_instant_clone(call: Call, mo: Mo, spec: Any) -> None:
    """`require_networks` is for the edits that come of it."""
    _require(call, mo, (POWER_ON, FROM_EXISTING, SPACE, POOL))
    if spec.config:
        call.require(ADVANCED, mo)
    if spec.location is not None and spec.location.deviceChange:
        call.require(EDIT, mo)


def require_clone(call: Call, mo: Mo, spec: Any, *, of_template: bool) -> None:
    """`require_cards` is for the changes that come of it. The name in a config is not looked at."""
    _require(call, mo, (_CLONING[of_template, bool(spec.template)], FROM_EXISTING, SPACE))
    if not spec.template:
        call.require(POOL, mo)
    if spec.powerOn:
        call.require(POWER_ON, mo)
    if spec.customization is not None:
        call.require(CUSTOMIZE, mo)
    if spec.location is not None:
        require_fields(call, mo, vim.vm.ConfigSpec(deviceChange=spec.location.deviceChange))
    if spec.config is not None:
        require_fields(call, mo, spec.config, ("name",))


def require_creation(call: Call, mo: Mo, request: CreateVm) -> None:
    """Its memory, processors and cards go with the privilege to create it."""
    call.require(SPACE, mo)
    if request.extra_config:
        call.require(ADVANCED, mo)
    if request.image is not None:
        call.require(f"{_CONFIG}AddExistingDisk", mo)
    if request.disks:
        call.require(NEW_DISK, mo)
    require_networks(call, mo, request.nics or ())


# -- what is needed ----------------------------------------------------------------------------------------------------


def _require(call: Call, mo: Mo, privileges: Iterable[str]) -> None:
    for privilege in privileges:
        call.require(privilege, mo)


def _needed(spec: Any, besides: frozenset[str]) -> Iterator[str]:
    for name, value in set_fields(spec):
        if name == "deviceChange":
            yield from filter(None, map(_of_device, value))
        elif name not in besides:
            yield OF_FIELDS.get(name, SETTINGS)


def _of_device(change: Any) -> str | None:
    """Of a disk that exists nothing can be changed but its size. What an edit of a card needs is known later."""
    if isinstance(change.device, vim.vm.device.VirtualDisk):
        return _OF_DISKS.get(change.operation, f"{_CONFIG}DiskExtend")
    if change.operation in ("add", "remove"):
        return ADD_REMOVE
    return None if is_nic(change.device) else EDIT
