"""What all entities of the inventory have: a name, a parent, a status, and what other rooms know of them.

The rooms beside say what they know by replacing the functions of `Labels`:

    world.part(Labels).custom_values = fields.values_of      # moid -> list of CustomFieldsManager.Value
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop


def _nothing(_: Any) -> list[Any]:
    return []


@dataclass
class Labels:
    """What is known of an entity elsewhere, by its id. Functions are plain and quick."""

    custom_values: Callable[[str], list[Any]] = _nothing
    custom_fields: Callable[[Any], list[Any]] = _nothing
    """By the entity's type: the definitions of fields that it may have."""
    set_custom_value: Callable[[Mo, str, str], Awaitable[None]] | None = None
    """Of the entity, by the field's name."""
    permissions: Callable[[str], list[Any]] = _nothing
    roles: Callable[[], list[int]] = list
    """Ids of the roles of whoever makes the call that is being served."""
    recent_tasks: Callable[[str], list[Any]] = _nothing


class Entity(Mo):
    """A managed entity. Kinds say their `name` and `parent_moid`."""

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def parent_moid(self) -> str | None:
        raise NotImplementedError

    @property
    def labels(self) -> Labels:
        return self.world.part(Labels)

    @prop("name")
    def get_name(self) -> str:
        return self.name

    @prop("parent")
    def get_parent(self) -> Any:
        return self.world.ref(self.parent_moid) if self.parent_moid else None

    @prop("overallStatus")
    @prop("configStatus")
    def get_status(self) -> str:
        return "green"

    @prop("value")
    @prop("customValue")
    def get_custom_values(self) -> list[Any]:
        return self.labels.custom_values(self.moid)

    @prop("availableField")
    def get_custom_fields(self) -> list[Any]:
        return self.labels.custom_fields(self.wire)

    @prop("permission")
    def get_permissions(self) -> list[Any]:
        return self.labels.permissions(self.moid)

    @prop("effectiveRole")
    def get_effective_role(self) -> list[int]:
        """Of who asks: a user has one role, everywhere."""
        return self.labels.roles()

    @prop("recentTask")
    def get_recent_tasks(self) -> list[Any]:
        return self.labels.recent_tasks(self.moid)

    @prop("alarmActionsEnabled")
    def get_alarms_enabled(self) -> bool:
        return False

    @operation("setCustomValue", privilege="Global.SetCustomField")
    async def set_custom_value(self, call: Call, key: str, value: str) -> None:
        if self.labels.set_custom_value is not None:
            await self.labels.set_custom_value(self, key, value)

    def refs(self, wire: Any) -> list[Any]:
        """References of all objects of a kind, in the order of their names."""
        return [mo.ref for mo in sorted(self.world.of_kind(wire), key=lambda mo: mo.moid)]
