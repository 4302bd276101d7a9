"""Names for people: of objects, types and methods, and the links to them.

    shown_type(vim.VirtualMachine[]) -> "ManagedObjectReference:VirtualMachine[]"
    method_name(info) -> "instantClone"           # as the schema's authors spell it, no _Task
    find_method(wire, "instantClone") -> info or None
    object_name(mo) -> "web", or ""
    object_url("vm-1"), data_url("vm-1", "config.hardware"), method_url("vm-1", "instantClone")
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import value_at
from ramet.vsphere.types import Support, wire_name
from ramet.vsphere.wire import leaves

_SAFE = "-_.~:"


def shown_type(kind: Any) -> str:
    if leaves.is_array(kind):
        return f"{shown_type(kind.Item)}[]"
    if leaves.is_reference(kind):
        name = wire_name(kind)
        return "ManagedObjectReference" if name == "ManagedObject" else f"ManagedObjectReference:{name}"
    return leaves.type_name(kind)


def method_name(info: Any) -> str:
    return str(Support.Uncapitalize(info.name))


def find_method(wire: Any, name: str) -> Any:
    """By its own name or by that on the wire."""
    return next((info for info in wire._GetMethodList() if name in (method_name(info), info.wsdlName)), None)


def object_name(mo: Mo) -> str:
    """What beside its id tells a person which one it is."""
    for path in ("name", "info"):
        if path not in mo.getters:
            continue
        try:
            found = value_at(mo, path)
        except Exception:  # a name is no reason for a page not to come
            return ""
        found = getattr(found, "descriptionId", "") if path == "info" else found
        if found:
            return str(found)
    return ""


def object_url(moid: str) -> str:
    return f"?moid={quote(moid, safe=_SAFE)}"


def data_url(moid: str, path: str) -> str:
    return f"{object_url(moid)}&doPath={quote(path, safe=_SAFE)}"


def method_url(moid: str, method: str) -> str:
    return f"{object_url(moid)}&method={quote(method, safe=_SAFE)}"
