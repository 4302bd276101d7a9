"""The host's events in the API's words: of which type each is, of which severity, about what.

told = Told.of(event)        # cheap: what filters look at
told.full(world) -> the API's data object

What the API has no type for is an EventEx with a type id of its own, `ramet.` and the host's kind. An instant clone is
one as well, with the id that the original gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ramet.model.host import Event
from ramet.vsphere import ids
from ramet.vsphere.core.world import World
from ramet.vsphere.inventory.shape import utc
from ramet.vsphere.types import Support, vim

INSTANT_CLONED = "com.vmware.vc.VmInstantClonedEvent"
USER_EVENT = "vsphere.user-event"
POSTED = "vsphere.posted-event"
CATEGORIES = {"info": "Information", "warning": "Warning", "error": "Error", "user": "User"}

_BY_STATE = {
    "running": "VmPoweredOnEvent",
    "off": "VmPoweredOffEvent",
    "suspended": "VmSuspendedEvent",
    "starting": "VmStartingEvent",
    "stopping": "VmStoppingEvent",
}
_BY_KIND = {
    "vm.removed": "VmRemovedEvent",
    "vm.unregistered": "VmRemovedEvent",
    "vm.registered": "VmRegisteredEvent",
    "vm.customization-started": "CustomizationStartedEvent",
    "vm.customized": "CustomizationSucceeded",
    "vm.customization-failed": "CustomizationFailed",
    USER_EVENT: "GeneralUserEvent",
}
_WARNINGS = ("host.warning", "vm.identity-failed", "events.lost")
_ERRORS = ("vm.customization-failed",)
TYPES = (
    "VmCreatedEvent", "VmClonedEvent", "VmRegisteredEvent", "VmRemovedEvent",
    "VmPoweredOnEvent", "VmPoweredOffEvent", "VmSuspendedEvent", "VmResumingEvent", "VmStartingEvent",
    "VmStoppingEvent", "CustomizationStartedEvent", "CustomizationSucceeded", "CustomizationFailed",
    "GeneralUserEvent", "GeneralHostWarningEvent", "EventEx",
)  # fmt: skip
"""Those that events of this server are of."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event, and what filters ask about it."""

    event: Event
    type_name: str
    type_id: str
    category: str
    moid: str
    """Of the entity that it is about."""
    user: str

    @classmethod
    def of(cls, event: Event) -> Told:
        name = _type_of(event)
        type_id = f"vim.event.{name}" if name != "EventEx" else _extended_id(event)
        moid = ids.vm_moid(event.vm_id) if event.vm_id else str(event.fields.get("moid") or ids.HOST)
        return cls(event, name, type_id, _category(event), moid, str(event.fields.get("user") or ""))

    @property
    def type_names(self) -> frozenset[str]:
        """What clients call its type: by the whole id, and by the last of its words as well."""
        return frozenset((self.type_id, self.type_name, self.type_id.rpartition(".")[2]))

    @property
    def wire(self) -> Any:
        return getattr(vim.event, self.type_name)

    def full(self, world: World) -> Any:
        """The data object, whole."""
        event = self.event
        common: dict[str, Any] = {
            "key": event.seq,
            "chainId": event.seq,
            "createdTime": utc(event.at),
            "userName": self.user,
            "datacenter": vim.event.DatacenterEventArgument(
                name=ids.DATACENTER_NAME, datacenter=vim.Datacenter(ids.DATACENTER)
            ),
            "computeResource": _compute(world),
            "host": _host(world),
            "fullFormattedMessage": event.message,
        }
        if event.vm_id:
            common["vm"] = _vm_argument(event.vm_id, event.vm_name or "")
        return self.wire(**common, **self._own(world))

    def _own(self, world: World) -> dict[str, Any]:
        """What its type has besides."""
        event = self.event
        if self.type_name == "EventEx":
            about = world.get(self.moid)
            return {
                "eventTypeId": self.type_id,
                "severity": self.category,
                "message": event.message,
                "objectId": self.moid,
                "objectName": event.vm_name or None,
                "objectType": about.wire if about is not None else vim.VirtualMachine if event.vm_id else None,
            }
        if self.type_name == "GeneralHostWarningEvent":
            return {"message": event.message}
        if self.type_name == "GeneralUserEvent":
            return {"message": event.message, "entity": _entity(world, self.moid, str(event.fields.get("name") or ""))}
        if self.type_name == "VmClonedEvent":
            source = str(event.fields.get("source") or "")
            return {"template": False, "sourceVm": _vm_argument(source, _name_of(world, source))}
        return {"template": False}


def _type_of(event: Event) -> str:
    if event.kind == "vm.created":
        return "VmClonedEvent" if event.fields.get("source") else "VmCreatedEvent"
    if event.kind == "vm.state" and event.vm_id:
        return _state_type(event)
    if event.kind == "host.warning" and not event.vm_id:
        return "GeneralHostWarningEvent"
    found = _BY_KIND.get(event.kind, "EventEx")
    return found if event.vm_id or not found.startswith(("Vm", "Customization")) else "EventEx"


def _state_type(event: Event) -> str:
    """By the state that it names; to run again after a pause or a freeze is no power-on."""
    state = event.message.rstrip(".").rpartition(" ")[2]
    before = event.fields.get("before")
    if state == "running" and before in ("frozen", "paused"):
        return "EventEx"
    if state == "running" and before == "suspended":
        return "VmResumingEvent"
    if "before" not in event.fields:
        return "VmPoweredOffEvent"  # it ended while nobody looked
    return _BY_STATE.get(state, "EventEx")


def _extended_id(event: Event) -> str:
    if event.kind == "vm.cloned":
        return INSTANT_CLONED
    if event.kind == POSTED:
        return str(event.fields.get("type_id") or "ramet.posted")
    if event.kind == "vm.state":
        return f"ramet.vm.{event.message.rstrip('.').rpartition(' ')[2]}"
    return f"ramet.{event.kind}"


def _category(event: Event) -> str:
    if event.kind == USER_EVENT:
        return "user"
    if event.kind == POSTED:
        severity = str(event.fields.get("severity") or "info")
        return severity if severity in CATEGORIES else "info"
    if event.kind in _WARNINGS or (event.kind == "host.memory" and event.fields.get("level") != "ok"):
        return "warning"
    return "error" if event.kind in _ERRORS else "info"


def _vm_argument(vm_id: str, name: str) -> Any:
    moid = ids.vm_moid(vm_id) if vm_id else "vm-0"
    return vim.event.VmEventArgument(name=name, vm=vim.VirtualMachine(moid))


def _name_of(world: World, vm_id: str) -> str:
    vm = world.host.floor.inventory.get_vm(vm_id)
    return vm.name if vm is not None else ""


def _entity(world: World, moid: str, name: str) -> Any:
    mo = world.get(moid)
    reference = mo.ref if mo is not None else Support.ManagedObject(moid)
    return vim.event.ManagedEntityEventArgument(name=name, entity=reference) if mo is not None else None


def _host(world: World) -> Any:
    mo: Any = world.get(ids.HOST)
    return vim.event.HostEventArgument(name=mo.name, host=mo.ref) if mo is not None else None


def _compute(world: World) -> Any:
    mo: Any = world.get(ids.COMPUTE_RESOURCE)
    if mo is None:
        return None
    return vim.event.ComputeResourceEventArgument(name=mo.name, computeResource=mo.ref)
