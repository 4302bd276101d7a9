"""A SOAP request as a call: what is asked of which object, with its parameters made into what the schema declares.

    asked = parse_request(body)
    asked.moid, asked.name, asked.arguments, asked.cookie

    InvalidRequest     no XML, no envelope, an element that the schema does not have there
    MethodNotFound     no such method
    InvalidType        a type that the schema has not, or that does not belong there
    InvalidArgument    a value that does not fit, a required field that is missing

Raises these and nothing else, whatever the bytes are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ramet.vsphere.types import FETCH, NAMESPACE, Support, fields_of, is_a, make, needed_of, vmodl, wire_name
from ramet.vsphere.wire import leaves
from ramet.vsphere.wire.leaves import wrong
from ramet.vsphere.wire.xml_tree import Element, XmlError, parse_tree

__all__ = ["SoapRequest", "parse_request"]

_LONGEST_ID = 200
_PLAIN = (str, int, bool, float)


@dataclass(frozen=True, slots=True)
class SoapRequest:
    name: str
    """Of the method, on the wire."""
    moid: str
    info: Any
    """What the schema says of the method."""
    arguments: dict[str, Any] = field(default_factory=dict)
    cookie: str | None = None
    """The session's secret, when it stands in the envelope's header."""
    this: Any = None
    """The object that is asked, as the client refers to it."""


def parse_request(body: bytes) -> SoapRequest:
    try:
        root = parse_tree(body)
    except XmlError as exc:
        raise _request(str(exc)) from exc
    content = root.child("Body") if root.name == "Envelope" else None
    if content is None or not content.children:
        raise _request("This is no SOAP envelope with a call in it.")
    header = root.child("Header")
    cookie = header.child("vcSessionCookie") if header is not None else None
    return _call(content.children[0], cookie.text.strip() if cookie is not None else None)


def _call(element: Element, cookie: str | None) -> SoapRequest:
    this = element.child("_this")
    if this is None:
        raise _request(f"{element.name} is asked of no object: <_this> is missing.")
    moid = _moid(this, "_this")
    reference = _this(this, moid)
    info = _method(element.name, reference)
    known = {parameter.name: parameter for parameter in info.params}
    given = _by_name([child for child in element.children if child is not this], known, element.name)
    arguments = {name: _value(found, known[name].type, name) for name, found in given.items()}
    return SoapRequest(element.name, moid, info, arguments, cookie, reference)


def _this(element: Element, moid: str) -> Any:
    """Of whatever type the client takes it for: which it is, is known by its id."""
    kind = leaves.named_type(element.kind or "")
    return (kind if kind is not None and leaves.is_reference(kind) else Support.ManagedObject)(moid)


def _method(name: str, this: Any) -> Any:
    if name == "Fetch":
        return FETCH
    try:
        return Support.GetWsdlMethod(NAMESPACE, name).info
    except KeyError:
        raise vmodl.fault.MethodNotFound(
            receiver=this, method=name[:100], msg=f"There is no method {name[:100]}."
        ) from None


def _by_name(elements: list[Element], known: dict[str, Any], where: str) -> dict[str, list[Element]]:
    given: dict[str, list[Element]] = {}
    for child in elements:
        if child.name not in known:
            raise _request(f"Unexpected element {child.name!r} in {where}.")
        if not child.is_nil:
            given.setdefault(child.name, []).append(child)
    return given


def _value(elements: list[Element], kind: Any, where: str) -> Any:
    if leaves.is_array(kind):
        return _array(elements, kind, where)
    if len(elements) > 1:
        raise _request(f"{where} stands there more than once.")
    return _one(elements[0], kind, where)


def _array(elements: list[Element], kind: Any, where: str) -> Any:
    if len(elements) == 1 and elements[0].xsi_type is not None:
        said = leaves.named_type(elements[0].xsi_type)
        if said is not None and leaves.is_array(said):  # a client that sends the array as a value of its own
            elements = elements[0].children
    return kind([_one(element, kind.Item, f"{where}[{i}]") for i, element in enumerate(elements)])


def _one(element: Element, declared: Any, where: str) -> Any:
    kind = declared if element.xsi_type is None else _said(element.xsi_type, declared, where)
    if leaves.is_fault(kind):
        return _fault(element, kind, where)
    if leaves.is_reference(kind):
        return _reference(element, kind, declared, where)
    if leaves.is_array(kind):
        return kind([_one(child, kind.Item, f"{where}[{i}]") for i, child in enumerate(element.children)])
    if leaves.is_data(kind):
        return _data(element, kind, where)
    if element.children:
        raise _type(where, f"{where} has elements inside, and no type that says what they are.")
    if kind is object or kind is str:
        return element.text
    if kind is type:
        return _type_named(element.text.strip(), where)
    return leaves.leaf(kind, element.text, where)


def _said(name: str, declared: Any, where: str) -> Any:
    """The type that an element says it has, as long as it is a kind of what is declared."""
    kind = _type_named(name, where)
    if leaves.is_reference(declared) and kind is Support.ManagedObject:
        return declared
    if declared is not object and not is_a(kind, declared) and not _is_as_good(kind, declared):
        raise _type(where, f"A {name} does not belong into {where}.")
    return kind if declared is object or not _is_as_good(kind, declared) else declared


def _type_named(name: str, where: str) -> Any:
    kind = leaves.named_type(name)
    if kind is None:
        raise _type(where, f"There is no type {name[:100]!r}.")
    return kind


def _is_as_good(kind: Any, declared: Any) -> bool:
    """Plain values carry their own names for one another's types, and faults come as LocalizedMethodFault."""
    if kind is type(None) or declared is type(None):
        return False
    if leaves.is_fault(declared):
        return kind is vmodl.LocalizedMethodFault
    plain = (declared is type, issubclass(declared, _PLAIN), issubclass(declared, Support.ManagedMethod))
    return any(plain) and issubclass(kind, _PLAIN)


def _moid(element: Element, where: str) -> str:
    moid = element.text.strip()
    if not moid or len(moid) > _LONGEST_ID or element.children:
        raise wrong(where, "the id of a managed object is expected.")
    return moid


def _reference(element: Element, kind: Any, declared: Any, where: str) -> Any:
    named = leaves.named_type(element.kind) if element.kind else kind
    if named is None or not leaves.is_reference(named):
        raise _type(where, f"There is no managed object type {element.kind!r}.")
    if leaves.is_reference(declared) and not is_a(named, declared) and not is_a(declared, named):
        raise _type(where, f"A {wire_name(named)} does not belong into {where}.")
    return named(_moid(element, where))


def _data(element: Element, kind: Any, where: str) -> Any:
    if element.text.strip():
        raise _type(where, f"{where} has elements inside, and here is text.")
    known = fields_of(kind)
    given = _by_name(element.children, known, where)
    made = make(kind, **{name: _value(found, known[name].type, f"{where}.{name}") for name, found in given.items()})
    for name in needed_of(kind):
        if name not in given:
            raise wrong(f"{where}.{name}", f"a {wire_name(kind)} needs it.")
    return made


def _fault(element: Element, kind: Any, where: str) -> Any:
    """<fault xsi:type=…> and a localized message, or the fault itself."""
    inner = element.child("fault")
    if inner is None:
        return _data(element, kind, where)
    base = vmodl.MethodFault
    exact = base if inner.xsi_type is None else _said(inner.xsi_type, base, f"{where}.fault")
    made = _data(inner, exact, f"{where}.fault")
    said = element.child("localizedMessage")
    made.__dict__["msg"] = said.text if said is not None else None
    return made


def _request(sentence: str) -> Exception:
    made: Exception = vmodl.fault.InvalidRequest(msg=sentence)
    return made


def _type(where: str, sentence: str) -> Exception:
    made: Exception = vmodl.fault.InvalidType(argument=where, msg=sentence)
    return made
