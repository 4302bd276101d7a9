"""Values of the schema as XML, the way that clients of every language understand them.

    out = []
    writer("returnval", declared_type, version)(out, value)      # None is written by nobody
    to_xml("returnval", value, declared_type, version) -> str

What has to be done for a tag, a type and a client's version is found out once and kept as a function: a list of ten
thousand VMs is a matter of appending strings. What differs from pyVmomi's own serialiser, and why:

- no versionId attribute: only VMware's own clients know what it means
- a reference where anything may stand is xsi:type="ManagedObjectReference"
- of an array where anything may stand, each item carries its own xsi:type: clients in C and Go need it
- what XML cannot carry at all, such as the control characters that a guest may have in its host name, becomes U+FFFD
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pyVmomi import Iso8601

from ramet.vsphere.types import Support, fields_of, remember, vmodl, wire_name
from ramet.vsphere.wire import leaves

__all__ = ["escape", "fields_writer", "known_kind", "list_in_any", "to_xml", "unset_fields", "writer"]

Out = list[str]
Writer = Callable[[Out, Any], None]

_KNOWN = 65_536
_SPECIAL = re.compile("[&<>\"\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}
_INT_BITS = 31


def escape(text: str) -> str:
    return _SPECIAL.sub(_escaped, text) if _SPECIAL.search(text) else text


def _escaped(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[0], "\ufffd")


def to_xml(tag: str, value: Any, declared: Any, version: str) -> str:
    out: Out = []
    if value is not None:
        writer(tag, declared, version)(out, value)
    return "".join(out)


@remember(_KNOWN)
def writer(tag: str, declared: Any, version: str) -> Writer:
    """Writes values of that declared type into an element of that name; arrays into one element for each item."""
    if declared is object:
        return _any_writer(tag, version)
    if leaves.is_array(declared):
        return _list_writer(writer(tag, declared.Item, version))
    if leaves.is_fault(declared):
        return _fault_writer(tag, "", version)
    if leaves.is_data(declared):
        return _data_writer(tag, declared, version)
    if leaves.is_reference(declared):
        return _reference_writer(tag, "")
    return _leaf_writer(f"<{tag}>", tag, declared)


def _list_writer(write: Writer) -> Writer:
    def emit(out: Out, value: Any) -> None:
        for item in value:
            write(out, item)

    return emit


def _leaf_writer(opening: str, tag: str, kind: Any) -> Writer:
    closing, text = f"</{tag}>", _text_of(kind)

    def emit(out: Out, value: Any) -> None:
        out.append(f"{opening}{text(value)}{closing}")

    return emit


def _text_of(kind: Any) -> Callable[[Any], str]:
    if kind is bool:
        return lambda value: "true" if value else "false"
    if isinstance(kind, type) and issubclass(kind, Support.Link):
        return lambda value: escape(value if isinstance(value, str) else str(value.key))
    if isinstance(kind, type) and issubclass(kind, Support.Enum):
        return str.__str__
    if isinstance(kind, type) and issubclass(kind, str):
        return escape
    if isinstance(kind, type) and issubclass(kind, int):
        return int.__repr__
    return _text


def _text(value: Any) -> str:
    """Of whatever is rare."""
    if isinstance(value, datetime):
        return str(Iso8601.ISO8601Format(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return {"inf": "INF", "-inf": "-INF", "nan": "NaN"}.get(repr(value), repr(float(value)))
    if isinstance(value, Support.ManagedMethod):
        return str(value.info.wsdlName)
    if isinstance(value, type):
        return str(Support.GetWsdlName(value))
    return escape(str(value))


def _reference_writer(tag: str, attributes: str) -> Writer:
    closing = f"</{tag}>"
    opening = f"<{tag}{attributes} type=\""

    def emit(out: Out, value: Any) -> None:
        out.append(f'{opening}{value.__class__._wsdlName}">{escape(value._moId)}{closing}')

    return emit


def _data_writer(tag: str, declared: Any, version: str) -> Writer:
    opening, closing = f"<{tag}>", f"</{tag}>"
    exact = fields_writer(declared, version)

    def emit(out: Out, value: Any) -> None:
        kind = value.__class__
        if kind is declared:
            out.append(opening)
            exact(out, value)
        else:
            known = known_kind(kind, version)
            out.append(opening if known is declared else f'<{tag} xsi:type="{wire_name(known)}">')
            fields_writer(known, version)(out, value)
        out.append(closing)

    return emit


@remember(_KNOWN)
def known_kind(kind: Any, version: str) -> Any:
    """What a client of that version knows of it: the type, or the one that it is a kind of."""
    return Support.GetCompatibleType(kind, version)


@remember(_KNOWN)
def fields_writer(kind: Any, version: str) -> Writer:
    """Found out at the first value: types contain themselves, as snapshots do."""
    steps: tuple[tuple[str, Writer], ...] | None = None
    if leaves.is_fault(kind):  # an exception keeps some names for itself
        return _fault_fields_writer(kind, version)

    def emit(out: Out, value: Any) -> None:
        nonlocal steps
        if steps is None:
            steps = _steps(kind, version)
        inside = value.__dict__
        for name, write in steps:
            found = inside.get(name)
            if found is not None:
                write(out, found)

    return emit


def _steps(kind: Any, version: str) -> tuple[tuple[str, Writer], ...]:
    return tuple(
        (name, writer(name, info.type, version))
        for name, info in fields_of(kind).items()
        if Support.IsChildVersion(version, info.version)
    )


def _fault_fields_writer(kind: Any, version: str) -> Writer:
    def emit(out: Out, value: Any) -> None:
        for name, write in _steps(kind, version):
            found = getattr(value, name, None) if name != "msg" else None
            if found is not None:
                write(out, found)

    return emit


def _fault_writer(tag: str, attributes: str, version: str) -> Writer:
    """A fault inside of something is a LocalizedMethodFault, with its message beside it."""
    opening, closing = f"<{tag}{attributes}>", f"</{tag}>"

    def emit(out: Out, value: Any) -> None:
        inner = value.fault if isinstance(value, vmodl.LocalizedMethodFault) else value
        said = value.localizedMessage if inner is not value else value.msg
        known = known_kind(inner.__class__, version)
        out.append(f'{opening}<fault xsi:type="{wire_name(known)}">')
        fields_writer(known, version)(out, inner)
        out.append("</fault>")
        if said:
            out.append(f"<localizedMessage>{escape(said)}</localizedMessage>")
        out.append(closing)

    return emit


def _any_writer(tag: str, version: str) -> Writer:
    """By what the value is: each says its type."""
    known: dict[Any, Writer] = {}

    def emit(out: Out, value: Any) -> None:
        kind = value.__class__
        if kind is int and value.bit_length() > _INT_BITS:
            kind = Support.long
        write = known.get(kind)
        if write is None:
            write = known[kind] = _tagged_writer(tag, kind, version)
        write(out, value)

    return emit


@remember(_KNOWN)
def _tagged_writer(tag: str, kind: Any, version: str) -> Writer:
    if leaves.is_array(kind):
        return _tagged_list_writer(tag, kind, version)
    if leaves.is_fault(kind):
        return _fault_writer(tag, ' xsi:type="LocalizedMethodFault"', version)
    if leaves.is_data(kind):
        return _tagged_data_writer(tag, known_kind(kind, version), version)
    if leaves.is_reference(kind):
        return _reference_writer(tag, ' xsi:type="ManagedObjectReference"')
    return _leaf_writer(f'<{tag} xsi:type="{_plain_name(kind)}">', tag, kind)


def _tagged_data_writer(tag: str, kind: Any, version: str) -> Writer:
    opening, closing, fields = f'<{tag} xsi:type="{wire_name(kind)}">', f"</{tag}>", fields_writer(kind, version)

    def emit(out: Out, value: Any) -> None:
        out.append(opening)
        fields(out, value)
        out.append(closing)

    return emit


def _plain_name(kind: Any) -> str:
    if issubclass(kind, Support.Enum):
        return wire_name(kind)
    if issubclass(kind, (type, Support.ManagedMethod, Support.PropertyPath, Support.Link)):
        return "xsd:string"
    return f"xsd:{_xsd_name(kind)}"


def _xsd_name(kind: Any) -> str:
    named = next((base for base in kind.__mro__ if base in _XSD), str)
    return _XSD[named]


_XSD: dict[Any, str] = {
    bool: "boolean",
    Support.byte: "byte",
    Support.short: "short",
    Support.long: "long",
    int: "int",
    Support.double: "double",
    float: "float",
    Support.URI: "anyURI",
    str: "string",
    bytes: "base64Binary",
    datetime: "dateTime",
}


def list_in_any(tag: str, kind: Any, version: str) -> tuple[str, Writer, str]:
    """How a list begins where any type may stand, what writes one of its elements, and how it ends."""
    item = _item_name(kind.Item)
    return f'<{tag} xsi:type="ArrayOf{_capital(item)}">', _any_writer(item, version), f"</{tag}>"


def _tagged_list_writer(tag: str, kind: Any, version: str) -> Writer:
    opening, write, closing = list_in_any(tag, kind, version)

    def emit(out: Out, value: Any) -> None:
        out.append(opening)
        for one in value:
            write(out, one)
        out.append(closing)

    return emit


def _item_name(kind: Any) -> str:
    if kind is object:
        return "anyType"
    if leaves.is_reference(kind):
        return "ManagedObjectReference"
    if leaves.is_data(kind) or leaves.is_fault(kind):
        return wire_name(kind)
    return _plain_name(kind).removeprefix("xsd:")


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def unset_fields(value: Any, where: str = "") -> list[str]:
    """Required fields that are not set, anywhere inside: a bug of whoever made the value. For tests."""
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in unset_fields(item, f"{where}[{i}]")]
    if not isinstance(value, Support.DataObject):
        return []
    missing = []
    for name, info in fields_of(type(value)).items():
        inside = getattr(value, name, None)
        if inside is None and not info.flags & Support.F_OPTIONAL and info.type is not object:
            missing.append(f"{where}.{name}")
        missing += unset_fields(inside, f"{where}.{name}")
    return missing
