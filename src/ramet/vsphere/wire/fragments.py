"""XML that people and scripts type into a form: one parameter's elements, made into what the schema declares.

    parse_fragment(text) -> [Element, ...]                  # FragmentError
    argument(elements, parameter) -> value                  # InvalidArgument, with the path that is wrong

The parser is that of SOAP, with its bounds. The prefixes that people use are declared around what they type, so that
`xsi:type` works as it stands; a document type is a syntax error inside of an element.
"""

from __future__ import annotations

from typing import Any

from ramet.vsphere.types import NAMESPACE, Support, is_a, needed_of
from ramet.vsphere.wire import leaves
from ramet.vsphere.wire.leaves import wrong
from ramet.vsphere.wire.xml_tree import Element, XmlError, parse_tree

__all__ = ["MAX_CHARACTERS", "FragmentError", "argument", "check_required", "parse_fragment"]

MAX_CHARACTERS = 1 << 20
_AROUND = (
    '<fragment xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
    'xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/" '
    f'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:vim25="{NAMESPACE}" xmlns:ns1="{NAMESPACE}">'
)


class FragmentError(ValueError):
    """What is wrong with the XML, in a sentence for the caller."""


def parse_fragment(text: str) -> list[Element]:
    """The elements at the top of a text; FragmentError when it is no XML."""
    if len(text) > MAX_CHARACTERS:
        raise FragmentError(f"The XML is longer than {MAX_CHARACTERS} characters.")
    try:
        fragment = parse_tree(f"{_AROUND}{text.strip()}</fragment>".encode("utf-8", "surrogatepass"))
    except XmlError as exc:
        raise FragmentError(str(exc)) from exc
    if fragment.text.strip():
        raise FragmentError("There is text outside of the elements.")
    return fragment.children


def argument(elements: list[Element], parameter: Any) -> Any:
    """The parameter's value: None when there are no elements, an array of all of them when it is one."""
    strange = next((one.name for one in elements if one.name != parameter.name), None)
    if strange is not None:
        raise wrong(parameter.name, f"the element is called <{parameter.name}>, not <{strange}>.")
    return _value(elements, parameter.type, parameter.name)


def _value(elements: list[Element], kind: Any, where: str) -> Any:
    if leaves.is_array(kind):
        return kind([_one(element, kind.Item, f"{where}[{i}]") for i, element in enumerate(elements)])
    if len(elements) > 1:
        raise wrong(where, "it stands here more than once.")
    return _one(elements[0], kind, where) if elements else None


def _one(element: Element, declared: Any, where: str) -> Any:
    kind = _kind(element, declared, where)
    if leaves.is_array(kind):
        return kind([_one(child, kind.Item, f"{where}[{i}]") for i, child in enumerate(element.children)])
    if leaves.is_reference(kind):
        named = None if element.kind == "ManagedObjectReference" else element.kind
        return leaves.reference(named, element.text.strip(), kind, where)
    if leaves.is_data(kind) or leaves.is_fault(kind):
        return _data(element, kind, where)
    if element.children:
        raise wrong(where, f"a {leaves.type_name(kind)} has no elements inside.")
    return leaves.leaf(kind, element.text, where)


def _kind(element: Element, declared: Any, where: str) -> Any:
    """What the element says that it is, as long as that is a kind of what is declared."""
    said = element.xsi_type
    if said is None:
        return str if declared is object else declared
    kind = leaves.named_type(said)
    if kind is None:
        raise wrong(where, f"there is no type {said!r}.")
    if kind is Support.ManagedObject and leaves.is_reference(declared):
        return declared
    if declared is not object and not is_a(kind, declared):
        raise wrong(where, f"a {said} is no {leaves.type_name(declared)}.")
    return kind


def _data(element: Element, kind: Any, where: str) -> Any:
    if element.text.strip():
        raise wrong(where, f"a {leaves.type_name(kind)} has elements inside, and here is text.")
    known = {info.name: info for info in kind._GetPropertyList()}
    given: dict[str, list[Element]] = {}
    for child in element.children:
        if child.name not in known:
            raise wrong(f"{where}.{child.name}", f"a {leaves.type_name(kind)} has nothing of that name.")
        given.setdefault(child.name, []).append(child)
    made = kind(**{name: _value(found, known[name].type, f"{where}.{name}") for name, found in given.items()})
    check_required(kind, given, where)
    return made


def check_required(kind: Any, given: Any, where: str) -> None:
    """InvalidArgument for the first field that must be there and is not."""
    for name in needed_of(kind):
        if name not in given:
            raise wrong(f"{where}.{name}", f"a {leaves.type_name(kind)} needs it.")
