"""Values of the schema as JSON, and back.

    to_json(value, declared, version) -> what json.dumps takes
    from_json(data, declared, where) -> value              # InvalidArgument, with the path that is wrong

A data object carries its type in `_typeName`; a reference is {type, value}; where anything may stand, a plain value is
boxed: {"_typeName": "string", "_value": "x"}. What is unset is left out. A fault that stands in a field is a
LocalizedMethodFault, as in SOAP.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

from pyVmomi import Iso8601

from ramet.vsphere.types import NEWEST, Support, is_a, vmodl, wire_name
from ramet.vsphere.wire import leaves
from ramet.vsphere.wire.fragments import check_required
from ramet.vsphere.wire.leaves import wrong

__all__ = ["fault_to_json", "from_json", "to_json"]

_TYPE, _VALUE = "_typeName", "_value"
_HIDDEN = ("dynamicType", "dynamicProperty", "msg")


def to_json(value: Any, declared: Any = object, version: str = NEWEST) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return _list_to_json(value, declared, version)
    if isinstance(value, Support.ManagedObject):
        return {_TYPE: "ManagedObjectReference", "type": wire_name(type(value)), "value": value._moId}
    if isinstance(value, vmodl.MethodFault):
        return _localized(value, version)
    if isinstance(value, Support.DataObject):
        return _fields(value, version)
    plain = _plain(value)
    if declared is object:
        return {_TYPE: leaves.type_name(_kind_of(value)), _VALUE: plain}
    return plain


def _list_to_json(value: Any, declared: Any, version: str) -> Any:
    kind = type(value) if isinstance(value, Support.Array) else declared
    item = kind.Item if kind is not object and leaves.is_array(kind) else object
    made = [to_json(one, item, version) for one in value]
    if declared is object and item is not object:
        return {_TYPE: leaves.type_name(kind), _VALUE: made}
    return made


def _kind_of(value: Any) -> Any:
    if isinstance(value, type):
        return type
    return Support.ManagedMethod if isinstance(value, Support.ManagedMethod) else type(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return Iso8601.ISO8601Format(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, type):
        return wire_name(value) if hasattr(value, "_wsdlName") else leaves.type_name(value)
    if isinstance(value, Support.ManagedMethod):
        return str(value.info.wsdlName)
    if isinstance(value, bool | int | float):
        return value
    return str(value)


def _fields(value: Any, version: str) -> dict[str, Any]:
    kind = Support.GetCompatibleType(type(value), version)
    made: dict[str, Any] = {_TYPE: wire_name(kind)}
    for info in kind._GetPropertyList():
        found = getattr(value, info.name, None)
        if found is None or info.name in _HIDDEN or not Support.IsChildVersion(version, info.version):
            continue
        if isinstance(found, list) and not found and info.flags & Support.F_OPTIONAL:
            continue
        is_bare = info.name == "fault" and isinstance(value, vmodl.LocalizedMethodFault)
        made[info.name] = _fields(found, version) if is_bare else to_json(found, info.type, version)
    return made


def _localized(value: Any, version: str) -> dict[str, Any]:
    return {
        _TYPE: "LocalizedMethodFault",
        "fault": _fields(value, version),
        "localizedMessage": value.msg or wire_name(type(value)),
    }


def fault_to_json(fault: Any, version: str = NEWEST) -> dict[str, Any]:
    """A fault that is the answer itself: its own type and fields, and its sentence as `faultstring`."""
    return {**_fields(fault, version), "faultstring": fault.msg or wire_name(type(fault))}


def from_json(data: Any, declared: Any, where: str) -> Any:
    """A value of the declared type. InvalidArgument says where it does not fit."""
    if data is None:
        return None
    kind, data = _unboxed(data, declared, where)
    if leaves.is_array(kind):
        if not isinstance(data, list):
            raise wrong(where, "an array is expected.")
        return kind([_item(one, kind.Item, f"{where}[{i}]") for i, one in enumerate(data)])
    if leaves.is_reference(kind):
        return _reference(data, kind, where)
    if leaves.is_data(kind) or leaves.is_fault(kind):
        return _data(data, kind, where)
    return leaves.leaf(kind, data, where)


def _item(data: Any, kind: Any, where: str) -> Any:
    if data is None:
        raise wrong(where, "an array has no null in it.")
    return from_json(data, kind, where)


def _unboxed(data: Any, declared: Any, where: str) -> tuple[Any, Any]:
    """What it says that it is, as long as that is a kind of what is declared; and what is in the box."""
    said = data.get(_TYPE) if isinstance(data, dict) else None
    if said is None:
        return (_guess(data, where) if declared is object else declared), data
    kind = leaves.named_type(said) if isinstance(said, str) else None
    if kind is None:
        raise wrong(where, f"there is no type {said!r}.")
    if kind is Support.ManagedObject and declared is not object and leaves.is_reference(declared):
        kind = declared
    elif kind is vmodl.LocalizedMethodFault and declared is not object and leaves.is_fault(declared):
        return _unboxed(data.get("fault"), declared, f"{where}.fault")
    elif declared is not object and not is_a(kind, declared):
        raise wrong(where, f"a {said} is no {leaves.type_name(declared)}.")
    return kind, data.get(_VALUE, data)


def _guess(data: Any, where: str) -> Any:
    """Where anything may stand, and no type is told: what JSON's own plain values are."""
    match data:
        case bool():
            return bool
        case int():
            return int if -(1 << 31) <= data < 1 << 31 else Support.long
        case float():
            return Support.double
        case str():
            return str
    raise wrong(where, f"what it is must be told by {_TYPE}.")


def _reference(data: Any, kind: Any, where: str) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get("value"), str):
        raise wrong(where, "a reference is expected: {type, value}.")
    named = data.get("type")
    return leaves.reference(named if isinstance(named, str) else None, data["value"], kind, where)


def _data(data: Any, kind: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise wrong(where, f"an object is expected, a {leaves.type_name(kind)}.")
    known = {info.name: info for info in kind._GetPropertyList()}
    given = {name: one for name, one in data.items() if one is not None and name not in (_TYPE, "faultstring")}
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        raise wrong(f"{where}.{strange}", f"a {leaves.type_name(kind)} has nothing of that name.")
    check_required(kind, given, where)
    made = {name: from_json(one, known[name].type, f"{where}.{name}") for name, one in given.items()}
    return kind(**{name: one for name, one in made.items() if not _is_empty(one)})


def _is_empty(value: Any) -> bool:
    """An array that nothing is in is as good as unset, and pyVmomi refuses it where it is required."""
    return isinstance(value, list) and not value
