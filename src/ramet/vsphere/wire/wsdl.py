"""The service's description for clients that are built from one: every type and method of the advertised version.

    service_wsdl(address) -> bytes           # vimService.wsdl: where the service is
    vim_wsdl() -> bytes                      # vim.wsdl: what it is; 4 MB, to be made once

All of it comes from the registry. The names of what stands around types (RequestType, RequestMsg, VimPortType) are
those that clients generated from the original's description expect.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from xml.sax.saxutils import quoteattr

from ramet.vsphere.types import NAMESPACE, NEWEST, Support, release, vmodl, wire_name
from ramet.vsphere.wire import leaves

__all__ = ["service_wsdl", "vim_wsdl"]

_SERVICE = "urn:vim25Service"
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_WSDL = "http://schemas.xmlsoap.org/wsdl/"
_SOAP = "http://schemas.xmlsoap.org/wsdl/soap/"
_PLAIN: dict[Any, str] = {
    bool: "xsd:boolean",
    int: "xsd:int",
    float: "xsd:float",
    str: "xsd:string",
    object: "xsd:anyType",
    datetime: "xsd:dateTime",
    type: "xsd:string",
    Support.byte: "xsd:byte",
    Support.short: "xsd:short",
    Support.long: "xsd:long",
    Support.double: "xsd:double",
    Support.URI: "xsd:anyURI",
    Support.binary: "xsd:base64Binary",
    Support.PropertyPath: "xsd:string",
    Support.ManagedMethod: "xsd:string",
    Support.Link: "xsd:string",
}


def service_wsdl(address: str) -> bytes:
    return (
        f'{_HEAD}<definitions targetNamespace="{_SERVICE}" xmlns="{_WSDL}" xmlns:soap="{_SOAP}"'
        f' xmlns:interface="{NAMESPACE}">\n'
        f'<import location="vim.wsdl" namespace="{NAMESPACE}"/>\n'
        '<service name="VimService"><port binding="interface:VimBinding" name="VimPort">'
        f"<soap:address location={quoteattr(address)}/></port></service>\n</definitions>\n"
    ).encode()


def vim_wsdl() -> bytes:
    kinds = _kinds()
    managed = [kind for kind in kinds if leaves.is_reference(kind)]
    methods = sorted(_methods(managed), key=lambda info: str(info.wsdlName))
    faults = [kind for kind in kinds if leaves.is_fault(kind) and kind is not vmodl.LocalizedMethodFault]
    parts = [
        f'{_HEAD}<definitions targetNamespace="{NAMESPACE}" xmlns="{_WSDL}" xmlns:mime="{_WSDL}mime/"'
        f' xmlns:soap="{_SOAP}" xmlns:vim25="{NAMESPACE}" xmlns:xsd="http://www.w3.org/2001/XMLSchema">',
        f'<types><schema targetNamespace="{NAMESPACE}" xmlns="http://www.w3.org/2001/XMLSchema"'
        ' elementFormDefault="qualified">',
        *_types(kinds),
        *(part for info in methods for part in _call_elements(info)),
        *(f'<element name="{wire_name(kind)}Fault" type="vim25:{wire_name(kind)}"/>' for kind in faults),
        '<element name="versionURI" type="xsd:string"/>',
        "</schema></types>",
        *(part for info in methods for part in _messages(info)),
        *(
            f'<message name="{wire_name(kind)}FaultMsg"><part name="fault" element="vim25:{wire_name(kind)}Fault"/>'
            "</message>"
            for kind in faults
        ),
        '<portType name="VimPortType">',
        *(_operation(info, {wire_name(kind) for kind in faults}) for info in methods),
        "</portType>",
        '<binding name="VimBinding" type="vim25:VimPortType">'
        '<soap:binding style="document" transport="http://schemas.xmlsoap.org/soap/http"/>',
        *(_bound(info, {wire_name(kind) for kind in faults}) for info in methods),
        "</binding></definitions>",
    ]
    return "\n".join(parts).encode()


def _kinds() -> list[Any]:
    """Every type that a client of the advertised version may meet, by name."""
    names = [*Support.ListDataTypes(), *Support.ListManagedTypes(), *Support.ListEnumTypes()]
    kinds = {Support.GetVmodlType(name) for name in names}
    return sorted((kind for kind in kinds if _is_ours(kind)), key=wire_name)


def _is_ours(kind: Any) -> bool:
    version = kind._version
    return bool(Support.GetWsdlNamespace(version) == NAMESPACE and Support.IsChildVersion(NEWEST, version))


def _methods(managed: list[Any]) -> Iterator[Any]:
    for kind in managed:
        for info in kind._methodInfo.values():
            if Support.IsChildVersion(NEWEST, info.version):
                yield info


def _types(kinds: list[Any]) -> Iterator[str]:
    yield (
        '<complexType name="ManagedObjectReference"><simpleContent><extension base="xsd:string">'
        '<attribute name="type" type="xsd:string"/></extension></simpleContent></complexType>'
    )
    for kind in kinds:
        if leaves.is_enum(kind):
            yield _enum(kind)
        elif leaves.is_data(kind) and kind is not Support.DataObject:
            yield _data(kind)
        if not leaves.is_reference(kind) and kind is not Support.DataObject:
            yield _array(wire_name(kind), _qualified(kind))
    yield _array("ManagedObjectReference", "vim25:ManagedObjectReference")
    for name in ("anyType", "anyURI", "base64Binary", "boolean", "byte", "double", "int", "long", "short", "string"):
        yield _array(name, f"xsd:{name}")


def _enum(kind: Any) -> str:
    plain = (str.__str__(value) for value in kind.values)  # a value's name may hide a method of str: "replace" does
    values = "".join(f"<enumeration value={quoteattr(value)}/>" for value in plain)
    return f'<simpleType name="{wire_name(kind)}"><restriction base="xsd:string">{values}</restriction></simpleType>'


def _array(name: str, item: str) -> str:
    return (
        f'<complexType name="ArrayOf{name[:1].upper()}{name[1:]}"><sequence>'
        f'<element name="{name}" type="{item}" minOccurs="0" maxOccurs="unbounded"/></sequence></complexType>'
    )


def _data(kind: Any) -> str:
    name, base = wire_name(kind), kind.__bases__[0]
    skipped: tuple[str, ...] = ()
    if kind is vmodl.DynamicData or kind is vmodl.DynamicArray or kind is vmodl.DynamicProperty:
        base, skipped = None, ("dynamicType", "dynamicProperty")
    elif kind is vmodl.LocalizedMethodFault:
        base = vmodl.DynamicData
    elif kind is vmodl.MethodFault:
        base, skipped = None, ("msg",)
    shown = (info for info in kind._propList if info.name not in skipped and _is_known(info))
    fields = "".join(_element(info.name, info) for info in shown)
    sequence = f"<sequence>{fields}</sequence>"
    if base is None:
        return f'<complexType name="{name}">{sequence}</complexType>'
    return (
        f'<complexType name="{name}"><complexContent><extension base="vim25:{wire_name(base)}">{sequence}</extension>'
        "</complexContent></complexType>"
    )


def _is_known(info: Any) -> bool:
    return bool(Support.IsChildVersion(NEWEST, info.version))


def _element(name: str, info: Any) -> str:
    return _occurring(name, info.type, bool(info.flags & Support.F_OPTIONAL))


def _occurring(name: str, kind: Any, is_optional: bool) -> str:
    least = ' minOccurs="0"' if is_optional else ""
    most = ""
    if leaves.is_array(kind):
        kind, most = kind.Item, ' maxOccurs="unbounded"'
    return f'<element name="{name}" type="{_qualified(kind)}"{least}{most}/>'


def _qualified(kind: Any) -> str:
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain
    if leaves.is_reference(kind):
        return "vim25:ManagedObjectReference"
    if kind is vmodl.MethodFault:
        return "vim25:LocalizedMethodFault"
    return f"vim25:{wire_name(kind)}"


def _request_name(info: Any) -> str:
    name = str(info.wsdlName).removesuffix("_Task")
    return f"{name[:1].upper()}{name[1:]}RequestType"


def _call_elements(info: Any) -> Iterator[str]:
    fields = "".join(_element(parameter.name, parameter) for parameter in info.params if _is_known(parameter))
    this = '<element name="_this" type="vim25:ManagedObjectReference"/>'
    name = info.wsdlName
    yield f'<complexType name="{_request_name(info)}"><sequence>{this}{fields}</sequence></complexType>'
    yield f'<element name="{name}" type="vim25:{_request_name(info)}"/>'
    result = ""
    if info.result is not type(None):
        result = _occurring("returnval", info.result, bool(info.resultFlags & Support.F_OPTIONAL))
    yield f'<element name="{name}Response"><complexType><sequence>{result}</sequence></complexType></element>'


def _messages(info: Any) -> Iterator[str]:
    for message, element in (("RequestMsg", ""), ("ResponseMsg", "Response")):
        part = f'<part name="parameters" element="vim25:{info.wsdlName}{element}"/>'
        yield f'<message name="{info.wsdlName}{message}">{part}</message>'


def _faults(info: Any, known: set[str]) -> list[str]:
    kinds = (Support.GetVmodlType(name) for name in info.faults)
    named = [wire_name(kind) for kind in kinds]
    return [name for name in dict.fromkeys([*named, "RuntimeFault"]) if name in known]


def _operation(info: Any, known: set[str]) -> str:
    name = info.wsdlName
    faults = "".join(f'<fault name="{fault}" message="vim25:{fault}FaultMsg"/>' for fault in _faults(info, known))
    return (
        f'<operation name="{name}"><input message="vim25:{name}RequestMsg"/>'
        f'<output message="vim25:{name}ResponseMsg"/>{faults}</operation>'
    )


def _bound(info: Any, known: set[str]) -> str:
    action = f"{NAMESPACE}/{release(NEWEST)}"
    faults = "".join(
        f'<fault name="{fault}"><soap:fault name="{fault}" use="literal"/></fault>' for fault in _faults(info, known)
    )
    return (
        f'<operation name="{info.wsdlName}"><soap:operation soapAction="{action}" style="document"/>'
        f'<input><soap:body use="literal"/></input><output><soap:body use="literal"/></output>{faults}</operation>'
    )
