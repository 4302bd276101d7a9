"""Custom fields: names that clients define, and the values that entities have for them. Kept with the inventory.

fields = world.part(CustomFields)
fields.values_of("vm-17") -> the API's values;  fields.defined_for(vim.VirtualMachine) -> its definitions
await fields.set_value("vm-17", 3, "web");  await fields.set_by_name("vm-17", wire, "owner", "eve")
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog
from pydantic import ValidationError

from ramet.host.store import Delete, Put
from ramet.model.base import Model
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.world import World
from ramet.vsphere.types import is_a, vim, vmodl, wire_name

log = structlog.stdlib.get_logger(__name__)

MOID = "CustomFieldsManager"
FIELD_PREFIX = "vsphere/field/"
VALUES_PREFIX = "vsphere/field-values/"
MOST_FIELDS = 500
LONGEST_NAME = 80
LONGEST_VALUE = 4096
_FIRST_KEY = 101


class FieldRecord(Model):
    """A definition, as it is kept."""

    key: int
    name: str
    kind: str | None = None
    """Wire name of the type that may have it; None for all."""


class ValuesRecord(Model):
    """Of one entity, as they are kept."""

    moid: str
    values: dict[int, str]


class CustomFields:
    """Reads are of memory; writes are durable when they return."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._fields: dict[int, FieldRecord] = {}
        self._values: dict[str, dict[int, str]] = {}
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """What entities that are gone had is forgotten. Needs the world's objects."""
        store = self._world.store
        for entry in await store.list(FIELD_PREFIX):
            try:
                field = FieldRecord.model_validate(entry.value)
            except ValidationError:
                log.warning("a custom field was ignored", key=entry.key)
                continue
            self._fields[field.key] = field
        for entry in await store.list(VALUES_PREFIX):
            try:
                record = ValuesRecord.model_validate(entry.value)
            except ValidationError:
                log.warning("values of custom fields were ignored", key=entry.key)
                continue
            if self._is_gone(record.moid):
                await store.delete(entry.key)
            else:
                self._values[record.moid] = dict(record.values)

    def _is_gone(self, moid: str) -> bool:
        """A VM that was unregistered may come back."""
        vm_id = ids.vm_id(moid)
        return self._world.get(moid) is None and (
            vm_id is None or self._world.host.floor.inventory.get_vm(vm_id) is None
        )

    # -- reading -----------------------------------------------------------------------------------------------------

    def definitions(self) -> list[Any]:
        return [_definition(field) for field in self._fields.values()]

    def defined_for(self, wire: Any) -> list[Any]:
        return [_definition(field) for field in self._fields.values() if _fits(field, wire)]

    def values_of(self, moid: str) -> list[Any]:
        kind = vim.CustomFieldsManager.StringValue
        values = self._values.get(moid, {})
        return [kind(key=key, value=value) for key, value in sorted(values.items()) if key in self._fields]

    # -- writing -----------------------------------------------------------------------------------------------------

    async def add(self, name: str, wire: Any) -> Any:
        """DuplicateName when one of that name may be on the same kind."""
        kind = wire_name(wire) if wire is not None and wire is not vim.ManagedEntity else None
        async with self._changing:
            self._check_name(name, kind, None)
            if len(self._fields) >= MOST_FIELDS:
                raise fault(vim.fault.InvalidState, f"There are {MOST_FIELDS} custom fields already.")
            key = max([_FIRST_KEY - 1, *self._fields]) + 1
            field = FieldRecord(key=key, name=name, kind=kind)
            await self._world.store.put(f"{FIELD_PREFIX}{key}", field.model_dump(mode="json"))
            self._fields[key] = field
        self._touch(self._world_entities())
        return _definition(field)

    async def rename(self, key: int, name: str) -> None:
        async with self._changing:
            field = self._find(key)
            self._check_name(name, field.kind, key)
            renamed = field.changed(name=name)
            await self._world.store.put(f"{FIELD_PREFIX}{key}", renamed.model_dump(mode="json"))
            self._fields[key] = renamed
        self._touch(self._world_entities())

    async def remove(self, key: int) -> None:
        """With all values of it."""
        async with self._changing:
            self._find(key)
            changes: list[Put | Delete] = [Delete(f"{FIELD_PREFIX}{key}")]
            left = {moid: _without(values, key) for moid, values in self._values.items() if key in values}
            changes += [_change(moid, values) for moid, values in left.items()]
            for start in range(0, len(changes), 100):
                await self._world.store.put_all(changes[start : start + 100])
            self._fields.pop(key, None)
            self._values.update(left)
        self._touch(self._world_entities())

    async def set_value(self, mo: Mo, key: int, value: str) -> None:
        """An empty value takes it away. InvalidArgument for a field that this kind does not have."""
        async with self._changing:
            field = self._fields.get(key)
            if field is None or not _fits(field, mo.wire):
                raise _wrong("key", f"{wire_name(mo.wire)} has no custom field {key}.")
            if len(value) > LONGEST_VALUE:
                raise _wrong("value", f"A value has at most {LONGEST_VALUE} characters.")
            values = _without(self._values.get(mo.moid, {}), key)
            if value:
                values[key] = value
            await self._world.store.put_all([_change(mo.moid, values)])
            self._values[mo.moid] = values
        self._touch([mo.moid])

    async def set_by_name(self, mo: Mo, name: str, value: str) -> None:
        key = next((one.key for one in self._fields.values() if one.name == name and _fits(one, mo.wire)), None)
        if key is None:
            raise _wrong("key", f"{wire_name(mo.wire)} has no custom field {name[:80]!r}.")
        await self.set_value(mo, key, value)

    def _find(self, key: int) -> FieldRecord:
        field = self._fields.get(key)
        if field is None:
            raise _wrong("key", f"There is no custom field {key}.")
        return field

    def _check_name(self, name: str, kind: str | None, but: int | None) -> None:
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise _wrong("name", f"A name of a custom field has 1 to {LONGEST_NAME} characters.")
        for field in self._fields.values():
            if field.key != but and field.name == name and (field.kind == kind or None in (field.kind, kind)):
                raise fault(
                    vim.fault.DuplicateName, f"There is a custom field {name!r} already.", name=name,
                    object=self._world.ref(MOID),
                )  # fmt: skip

    def _world_entities(self) -> list[str]:
        return [mo.moid for mo in self._world.of_kind(vim.ManagedEntity)]

    def _touch(self, moids: Iterable[str]) -> None:
        for moid in (*moids, MOID):
            self._world.updates.touch(moid)


def _without(values: dict[int, str], key: int) -> dict[int, str]:
    return {other: value for other, value in values.items() if other != key}


def _change(moid: str, values: dict[int, str]) -> Put | Delete:
    if not values:
        return Delete(VALUES_PREFIX + moid)
    return Put(VALUES_PREFIX + moid, ValuesRecord(moid=moid, values=values).model_dump(mode="json"))


def _fits(field: FieldRecord, wire: Any) -> bool:
    return field.kind is None or field.kind in {wire_name(base) for base in wire.__mro__ if hasattr(base, "_wsdlName")}


def _definition(field: FieldRecord) -> Any:
    wire = getattr(vim, field.kind) if field.kind else None
    return vim.CustomFieldsManager.FieldDef(key=field.key, name=field.name, type=str, managedObjectType=wire)


def _wrong(where: str, sentence: str) -> Exception:
    return fault(vmodl.fault.InvalidArgument, sentence, invalidProperty=where)


class CustomFieldsManager(Mo):
    wire = vim.CustomFieldsManager

    @property
    def _fields(self) -> CustomFields:
        return self.world.part(CustomFields)

    @prop("field")
    def get_fields(self) -> list[Any]:
        return self._fields.definitions()

    @operation("AddCustomFieldDef")
    async def add(
        self, call: Call, name: str, moType: Any = None, fieldDefPolicy: Any = None, fieldPolicy: Any = None
    ) -> Any:
        if moType is not None and not is_a(moType, vim.ManagedEntity):
            raise _wrong("moType", "Only entities of the inventory have custom fields.")
        return await self._fields.add(name, moType)

    @operation("RemoveCustomFieldDef")
    async def remove(self, call: Call, key: int) -> None:
        await self._fields.remove(key)

    @operation("RenameCustomFieldDef")
    async def rename(self, call: Call, key: int, name: str) -> None:
        await self._fields.rename(key, name)

    @operation("SetField", privilege="Global.SetCustomField")
    async def set_field(self, call: Call, entity: Any, key: int, value: str) -> None:
        await self._fields.set_value(self.world.find(entity._moId, call), key, value)
