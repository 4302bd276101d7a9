"""An example for each parameter, made from its type: what must be there, and what is mostly wanted.

    example(world, parameter) -> "<spec><name>kid</name><location/></spec>", in lines

A reference names an object that there is. What a type needs beyond its required fields, and which of the kinds of an
abstract type is meant, no schema says: it stands in the two small tables here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from ramet.vsphere.core.world import World
from ramet.vsphere.types import Support, is_a, vim, wire_name
from ramet.vsphere.wire import leaves

__all__ = ["example", "is_plain"]

_ALSO: dict[str, tuple[str, ...]] = {
    "VirtualMachineConfigSpec": ("extraConfig",),
    "config:VirtualMachineConfigSpec": ("name", "memoryMB", "numCPUs", "extraConfig"),
    "OptionValue": ("value",),
    "PropertyFilterSpec": ("propSet", "objectSet"),
    "PropertySpec": ("all", "pathSet"),
    "CustomizationSpec": ("nicSettingMap",),
    "CustomizationIPSettings": ("subnetMask", "gateway"),
    "EventFilterSpec": ("maxCount",),
    "GuestProgramSpec": ("workingDirectory",),
}
"""Fields that are wanted although they are optional; of one parameter only, when its name stands there too."""
_MEANT = {
    "CustomizationIdentitySettings": "CustomizationLinuxPrep",
    "CustomizationIpGenerator": "CustomizationDhcpIpGenerator",
    "CustomizationName": "CustomizationFixedName",
    "GuestAuthentication": "NamePasswordAuthentication",
    "VirtualDevice": "VirtualVmxnet3",
    "SelectionSpec": "TraversalSpec",
}
"""The kind of an abstract type that is mostly meant."""
_WORDS = {
    "name": "kid", "newName": "kid", "key": "guestinfo.example", "userName": "root", "username": "root",
    "locale": "en", "pathSet": "name", "path": "/tmp", "programPath": "/bin/sh", "arguments": "-c 'id > /tmp/id'",
    "domain": "example.test", "ipAddress": "192.0.2.10", "subnetMask": "255.255.255.0", "gateway": "192.0.2.1",
    "memoryMB": "1024", "numCPUs": "2", "hostName": "kid",
}  # fmt: skip
_BY_TYPE = {"boolean": "false", "dateTime": "2026-01-31T12:00:00Z", "string": "text", "binary": "", "anyURI": "ds:///"}
MAX_DEPTH = 6


def is_plain(kind: Any) -> bool:
    """A value that is typed as it is; everything else is XML."""
    return not (
        leaves.is_array(kind)
        or leaves.is_reference(kind)
        or leaves.is_data(kind)
        or leaves.is_fault(kind)
        or kind is object
    )


def example(world: World, parameter: Any) -> str:
    if is_plain(parameter.type):
        return _word(parameter.name, parameter.type)
    return "\n".join(_Writer(world).element(parameter.name, parameter.type, 0))


def _word(name: str, kind: Any) -> str:
    if leaves.is_enum(kind):
        return str(kind.values[0])
    known = leaves.type_name(kind)
    if kind is type:
        return "VirtualMachine"
    if issubclass(kind, Support.ManagedMethod):
        return "PowerOnVM_Task"
    if name in _WORDS and (issubclass(kind, str) or _WORDS[name].isdigit()):
        return _WORDS[name]
    return _BY_TYPE.get(known, "0")


@dataclass(frozen=True, slots=True)
class _Writer:
    world: World

    def element(self, name: str, kind: Any, depth: int) -> list[str]:
        pad = "  " * depth
        if leaves.is_array(kind):
            return self.element(name, kind.Item, depth)
        if kind is object:
            return [f'{pad}<{name} xsi:type="xsd:string">text</{name}>']
        if leaves.is_reference(kind):
            return [self._reference(name, kind, pad)]
        if is_plain(kind):
            return [f"{pad}<{name}>{escape(_word(name, kind))}</{name}>"]
        return self._data(name, kind, depth)

    def _reference(self, name: str, kind: Any, pad: str) -> str:
        there = (is_a(vim.VirtualMachine, kind) and self.world.of_kind(vim.VirtualMachine)) or self.world.of_kind(kind)
        moid = there[0].moid if there else "id"
        type_ = wire_name(there[0].wire if there else kind)
        return f'{pad}<{name} type={quoteattr(type_)} xsi:type="ManagedObjectReference">{escape(moid)}</{name}>'

    def _data(self, name: str, kind: Any, depth: int) -> list[str]:
        declared, kind = kind, _meant(kind)
        pad, said = "  " * depth, "" if kind is declared else f" xsi:type={quoteattr(wire_name(kind))}"
        wanted = _ALSO.get(f"{name}:{wire_name(kind)}") or _ALSO.get(wire_name(kind), ())
        fields = [
            info
            for info in kind._GetPropertyList()
            if (not info.flags & Support.F_OPTIONAL or info.name in wanted) and info.name != "dynamicType"
        ]
        if not fields or depth >= MAX_DEPTH:
            return [f"{pad}<{name}{said}/>"]
        lines = [line for info in fields for line in self.element(info.name, info.type, depth + 1)]
        return [f"{pad}<{name}{said}>", *lines, f"{pad}</{name}>"]


def _meant(kind: Any) -> Any:
    other = _MEANT.get(wire_name(kind))
    return leaves.named_type(other) if other else kind
