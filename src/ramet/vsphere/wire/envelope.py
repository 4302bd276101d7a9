"""SOAP answers: an envelope around a result, or around a fault.

    response(info, result, version) -> bytes
    await response_of_many(info, result, version) -> bytes       # lets others run between the parts of a long list
    fault(exc, version) -> bytes
"""

from __future__ import annotations

from typing import Any

from ramet.vsphere.core.pacing import Pace
from ramet.vsphere.types import NAMESPACE, Support, fields_of, vmodl, wire_name
from ramet.vsphere.wire.soap_values import Out, escape, fields_writer, known_kind, list_in_any, writer

__all__ = ["fault", "is_long", "response", "response_of_many"]

_START = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n<soapenv:Body>\n'
)
_END = "\n</soapenv:Body>\n</soapenv:Envelope>"
_PC = vmodl.query.PropertyCollector
_LONG = 20
"""Objects: all properties of one are some milliseconds' work."""


def response(info: Any, result: Any, version: str) -> bytes:
    out = [_START, f'<{info.wsdlName}Response xmlns="{NAMESPACE}">']
    if result is not None:
        writer("returnval", info.result, version)(out, result)
    return _close(out, info)


def is_long(result: Any) -> bool:
    if isinstance(result, _PC.UpdateSet):
        return sum(len(one.objectSet) for one in result.filterSet) > _LONG
    if isinstance(result, _PC.RetrieveResult):
        return len(result.objects) > _LONG
    return isinstance(result, Support.Array) and len(result) > _LONG


async def response_of_many(info: Any, result: Any, version: str) -> bytes:
    """Of what `is_long`."""
    out = [_START, f'<{info.wsdlName}Response xmlns="{NAMESPACE}">']
    if isinstance(result, Support.Array):
        await _write_list(out, info.result, result, version)
        return _close(out, info)
    out.append("<returnval>")
    if isinstance(result, _PC.UpdateSet):
        await _write_fields(out, result, version, "filterSet", "objectSet")
    else:
        await _write_fields(out, result, version, "objects")
    out.append("</returnval>")
    return _close(out, info)


async def _write_list(out: Out, declared: Any, result: Any, version: str) -> None:
    if issubclass(declared, Support.Array):
        await _write_all(out, writer("returnval", declared.Item, version), result)
        return
    opening, write, closing = list_in_any("returnval", type(result), version)  # as Fetch's, which may be anything
    out.append(opening)
    await _write_all(out, write, result)
    out.append(closing)


async def _write_fields(out: Out, value: Any, version: str, long: str, inner: str | None = None) -> None:
    """The fields of a data object in their order, of which one is long, or its elements have one that is."""
    for name, info in fields_of(type(value)).items():
        found = getattr(value, name)
        if found is None or not Support.IsChildVersion(version, info.version):
            continue
        if name != long:
            writer(name, info.type, version)(out, found)
        elif inner is None:
            await _write_all(out, writer(name, info.type.Item, version), found)
        else:
            for one in found:
                out.append(f"<{name}>")
                await _write_fields(out, one, version, inner)
                out.append(f"</{name}>")


async def _write_all(out: Out, write: Any, items: Any) -> None:
    pace = Pace()
    for item in items:
        write(out, item)
        if pace.is_due():
            await pace.rest()


def _close(out: Out, info: Any) -> bytes:
    out.append(f"</{info.wsdlName}Response>")
    out.append(_END)
    return "".join(out).encode()


def fault(exc: Any, version: str) -> bytes:
    """Of a `vmodl.MethodFault`. Clients read the type from the detail, and show the string to people."""
    known = known_kind(type(exc), version)
    name = f"{wire_name(known)}Fault"
    out = [
        f"{_START}<soapenv:Fault><faultcode>ServerFaultCode</faultcode>",
        f"<faultstring>{escape(exc.msg or wire_name(type(exc)))}</faultstring><detail>",
        f'<{name} xmlns="{NAMESPACE}" xsi:type="{wire_name(known)}">',
    ]
    fields_writer(known, version)(out, exc)
    out.append(f"</{name}></detail></soapenv:Fault>{_END}")
    return "".join(out).encode()

