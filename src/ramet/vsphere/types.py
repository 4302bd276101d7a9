"""pyVmomi's type registry, as the server's own schema: no type of vim25 is written down here by hand.

    from ramet.vsphere.types import vim, vmodl
    NEWEST                                   the version that is advertised, 8.0.3.0
    release(version) -> "8.0.3.0"            as it stands on the wire
    version_for(soap_action) -> version      what a client speaks, never above NEWEST
    operation_info(wire, "InstantClone_Task") -> info or None
    property_info(wire, "runtime") -> info or None
    is_a(wire, other) -> bool                types are loaded lazily: issubclass on a lazy one would fail
    wire_name(wire) -> "VirtualMachine"
    make(vim.Description, label="x")         a data object, made quickly and without a check: for values known to fit
    @remember(8192)                          functools.lru_cache, for functions of types
    load_types()                             all at once, half a second: else each is loaded when it is first met
    fields_of(wire) -> {name: info}          of a data object, in their order on the wire

pyVmomi has no types that mypy could follow: its names are Any here, and the rest of the surface says what it means in
its own signatures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

from pyVmomi import VmomiSupport as Support
from pyVmomi import vim, vmodl

__all__ = [
    "NAMESPACE",
    "NEWEST",
    "Support",
    "fields_of",
    "is_a",
    "load_types",
    "make",
    "needed_of",
    "operation_info",
    "prior_versions",
    "property_info",
    "release",
    "remember",
    "version_for",
    "vim",
    "vmodl",
    "wire_name",
]

NAMESPACE = "urn:vim25"
NEWEST: str = "vim.version.v8_0_3_0"
_ACTION = re.compile(r"urn:(?:vim25|internalvim25)/([0-9][0-9.]*)")

FETCH: Any = Support.Object(
    name="Fetch",
    wsdlName="Fetch",
    version="vmodl.version.version0",
    privId="System.Anonymous",
    resultFlags=Support.F_OPTIONAL,
    result=object,
    methodResult=object,
    params=(Support.Object(name="prop", type=str, version="vmodl.version.version0", flags=0, privId=None),),
)
"""How clients since 8.0 read one property. Every managed object has it, and the registry knows it not."""


F = TypeVar("F", bound=Callable[..., Any])


def remember(most: int) -> Callable[[F], F]:
    """`functools.lru_cache` in the eyes of mypy, for which types are no hashable arguments."""
    return cast("Callable[[F], F]", lru_cache(most))


def release(version: str) -> str:
    """'vim.version.v8_0_3_0' -> '8.0.3.0'."""
    return str(Support.versionIdMap[version])


def prior_versions() -> list[str]:
    """Every version that NEWEST contains, newest first: a client takes the newest that it knows."""
    known = Support.GetServiceVersions("vim25")
    older = [v for v in known if v != NEWEST and v in Support.parentMap[NEWEST] and Support.versionIdMap.get(v)]
    return list(dict.fromkeys(older))


def version_for(soap_action: str | None) -> str:
    """What the client's SOAPAction names: quoted or not, short, newer than ours, or missing altogether."""
    match = _ACTION.search(soap_action or "")
    spelled = (f"vim25/{match[1]}{rest}" for rest in ("", ".0", ".0.0")) if match else ()
    version = next((Support.versionMap[name] for name in spelled if name in Support.versionMap), None)
    if version is None or not Support.IsChildVersion(NEWEST, version):
        return NEWEST
    return str(version)


@remember(8192)
def operation_info(wire: Any, name: str) -> Any:
    """What the schema says of a method, by its name on the wire; None when the type has no such method."""
    if name == "Fetch":
        return FETCH
    return next((info for info in wire._GetMethodList() if info.wsdlName == name), None)


def property_info(wire: Any, name: str) -> Any:
    """What the schema says of a property of a managed or a data object; None when there is none of the name."""
    try:
        return wire._GetPropertyInfo(name)
    except AttributeError:
        return None


def is_a(wire: Any, other: Any) -> bool:
    """Whether a type is another, or a kind of it."""
    return wire is other or other in wire.__mro__


def wire_name(wire: Any) -> str:
    """The type's name on the wire: vim.VirtualMachine -> 'VirtualMachine'."""
    return str(wire._wsdlName)


def load_types() -> None:
    """For a thread, when the server starts: no client then waits for a type to be made."""
    for name in (*Support.ListDataTypes(), *Support.ListManagedTypes(), *Support.ListEnumTypes()):
        wire = Support.GetVmodlType(name)
        _types_of(getattr(wire, "_propList", ()))
        for info in getattr(wire, "_methodInfo", {}).values():
            _types_of(info.params)
            _types_of((info,))


def _types_of(infos: Any) -> list[Any]:
    """They are made when they are asked for."""
    return [(info.type, getattr(info, "result", None)) for info in infos]


@remember(8192)
def fields_of(wire: Any) -> dict[str, Any]:
    """What the schema says of a data object's fields, by name, in their order on the wire."""
    return {info.name: info for info in wire._GetPropertyList()}


@remember(8192)
def needed_of(wire: Any) -> tuple[str, ...]:
    """Fields without which a data object is not taken: those that the schema requires, and lists may be empty.

    A plain value that was added to its type by a later version is not among them. Clients made for an older one cannot
    know it, and do not always say which one they were made for; it is false, zero or empty then.
    """
    return tuple(name for name, info in fields_of(wire).items() if _is_needed(wire, info))


def _is_needed(wire: Any, info: Any) -> bool:
    if info.flags & Support.F_OPTIONAL or issubclass(info.type, Support.Array):
        return False
    owner = next(kind for kind in wire.__mro__ if info in getattr(kind, "_propList", ()))
    return info.version == owner._version or not issubclass(info.type, (bool, int, float, str))


@remember(8192)
def _blank(wire: Any) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    made = wire()
    arrays = tuple((name, info.type) for name, info in fields_of(wire).items() if issubclass(info.type, Support.Array))
    return {name: getattr(made, name) for name in fields_of(wire)}, arrays


def make(wire: Any, **fields: Any) -> Any:
    """A data object like its constructor's, which checks every field under a lock: ten times the price."""
    made = wire.__new__(wire)
    values, arrays = _blank(wire)
    inside = made.__dict__
    inside.update(values)
    for name, kind in arrays:
        inside[name] = kind()
    inside.update(fields)
    return made
