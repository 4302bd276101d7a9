"""Values without parts: between text, what JSON has, and the types of the schema.

    leaf(kind, value, where) -> value of that type      # InvalidArgument, with the path that is wrong
    named_type("xsd:string") -> type, or None
    type_name(kind) -> "string", "VirtualMachinePowerState", "ArrayOfString"
    is_reference(kind), is_data(kind), is_array(kind), is_fault(kind), is_enum(kind)

XML brings text only; JSON brings numbers and booleans of its own. Both end here.
"""

from __future__ import annotations

import base64
import binascii
import math
from datetime import datetime
from typing import Any

from pyVmomi import Iso8601

from ramet.vsphere.types import NAMESPACE, Support, vmodl

_XSD = "http://www.w3.org/2001/XMLSchema"
_RANGES = {"byte": 8, "short": 16, "int": 32, "long": 64}
_WORDS = {"true": True, "1": True, "false": False, "0": False}
_LONGEST_NAME = 128
_NAMES = {"base64Binary": "binary", "ManagedObject": "ManagedObjectReference"}


def is_array(kind: Any) -> bool:
    return issubclass(kind, Support.Array)


def is_reference(kind: Any) -> bool:
    return issubclass(kind, Support.ManagedObject)


def is_data(kind: Any) -> bool:
    return issubclass(kind, Support.DataObject)


def is_fault(kind: Any) -> bool:
    return issubclass(kind, vmodl.MethodFault)


def is_enum(kind: Any) -> bool:
    return issubclass(kind, Support.Enum)


def wrong(where: str, sentence: str) -> Exception:
    """What a caller did wrong, and where in what it sent."""
    made: Exception = vmodl.fault.InvalidArgument(invalidProperty=where, msg=f"{where}: {sentence}")
    return made


def named_type(name: str) -> Any:
    """What an xsi:type or a _typeName means; None when nothing has that name. A prefix is of no account."""
    plain = name.rpartition(":")[2]
    if len(plain) > _LONGEST_NAME:
        return None  # the registry looks at 'ArrayOfArrayOf…' by recursion
    if plain in ("ManagedObjectReference", "ManagedObject"):
        return Support.ManagedObject
    if plain == "ArrayOfManagedObjectReference":
        return Support.ManagedObject.Array
    if plain == "binary":
        return Support.binary
    for namespace in (NAMESPACE, _XSD):
        try:
            return Support.GetWsdlType(namespace, plain)
        except (KeyError, AttributeError):  # AttributeError: an array of what has none, 'ArrayOfstring'
            continue
    return None


def type_name(kind: Any) -> str:
    if is_array(kind):
        return f"ArrayOf{_capital(type_name(kind.Item))}"
    if is_reference(kind):
        return "ManagedObjectReference"
    name = str(Support.GetWsdlName(kind))
    return _NAMES.get(name, name)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def reference(kind_name: str | None, moid: str, declared: Any, where: str) -> Any:
    """A reference to a managed object; its type may be left out."""
    kind = declared if not kind_name else named_type(kind_name)
    if kind is None or not is_reference(kind):
        raise wrong(where, f"there is no managed object type {kind_name!r}.")
    if not moid or len(moid) > 200:
        raise wrong(where, "the id of the managed object is missing.")
    return kind(moid)


def leaf(kind: Any, value: Any, where: str) -> Any:
    """A value of that type, made of text, or of what JSON has. InvalidArgument otherwise."""
    if kind is bool:
        return _boolean(value, where)
    if is_enum(kind):
        return _enum(kind, value, where)
    if kind is datetime:
        return _moment(value, where)
    if issubclass(kind, bytes):
        return _binary(kind, value, where)
    if kind is type or issubclass(kind, Support.ManagedMethod):
        return _name(kind, _text(value, where), where)
    if issubclass(kind, str):
        return kind(_text(value, where))
    if issubclass(kind, int):
        return _whole(kind, value, where)
    if issubclass(kind, float):
        return _number(kind, value, where)
    raise wrong(where, f"a {type_name(kind)} has parts, and here is a plain value.")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise wrong(where, "a string is expected.")
    return value


def _boolean(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    found = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise wrong(where, "true or false is expected.")
    return found


def _enum(kind: Any, value: Any, where: str) -> Any:
    text = _text(value, where).strip()
    if text not in kind.values:
        raise wrong(where, f"{text!r} is none of {', '.join(kind.values)}.")
    return kind(text)


def _moment(value: Any, where: str) -> datetime:
    found: datetime | None = Iso8601.ParseISO8601(_text(value, where).strip())
    if found is None:
        raise wrong(where, "a time is expected, such as 2026-01-31T12:00:00Z.")
    return found


def _binary(kind: Any, value: Any, where: str) -> Any:
    try:
        return kind(base64.b64decode(_text(value, where), validate=False))
    except (binascii.Error, ValueError) as exc:
        raise wrong(where, "text in base64 is expected.") from exc


def _name(kind: Any, text: str, where: str) -> Any:
    if kind is type:
        found = named_type(text.strip())
    else:
        try:
            found = Support.GuessWsdlMethod(text.strip())
        except KeyError:
            found = None
    if found is None:
        raise wrong(where, f"the schema has no {text!r}.")
    return found


def _whole(kind: Any, value: Any, where: str) -> Any:
    try:
        number = value if isinstance(value, int) and not isinstance(value, bool) else int(_text(value, where).strip())
    except ValueError as exc:
        raise wrong(where, "a whole number is expected.") from exc
    bits = _RANGES.get(type_name(kind), 64)
    if not -(1 << bits - 1) <= number < 1 << (bits - 1 if bits > 8 else bits):
        raise wrong(where, f"{number} does not fit into {bits} bits.")
    return kind(number)


def _number(kind: Any, value: Any, where: str) -> Any:
    try:
        number = float(value if isinstance(value, int | float) else _text(value, where).strip())
    except (ValueError, OverflowError) as exc:
        raise wrong(where, "a number is expected.") from exc
    if not math.isfinite(number):
        raise wrong(where, "a number is expected.")
    return kind(number)
