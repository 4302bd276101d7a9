"""docs/reference/vsphere.md: what of the vSphere API this server has, from the schema and from the classes themselves.

python tools/vsphere_reference.py [--check]            # --check: exit 1 when the page is not what it should be

Every type of which there is an object here, with every method and property that the schema gives it. What is partial
stands beside the operation in the code, and so does why one is refused.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ramet.vsphere
from ramet.vsphere.core.objects import Mo, Operation
from ramet.vsphere.mob.naming import shown_type
from ramet.vsphere.types import NEWEST, Support, release, wire_name

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "vsphere.md"
SUPPORTED, PARTIAL, REFUSED, UNSET = "supported", "partial", "refused", "unset"

_HEAD = """\
# The vSphere API, as far as it is there

Generated from the program: `python tools/vsphere_reference.py`. [How the vSphere surface maps to
Ramet](../explanation/vsphere.md) says what stands for what.

The server says that it is version {version}. The tables have every method and property that this version gives to the
types of which there are objects here; the same methods are reached by SOAP, by VI JSON and in the object browser. The
[automation API](automation-api.md) has a page of its own.

| | |
|---|---|
| supported | It does what the API says. |
| partial | It does, but for what the note says. |
| refused | It answers the fault that is named, with a sentence that says why; nothing has changed. |
| unset | Of a property: it can be asked for and has no value, or is an empty list. It is no error. |

A property whose type is a data object has the fields that this host knows something of; those that the schema requires
are always there. Of any object of a type that is not listed there is none: a reference to one is answered with
ManagedObjectNotFound. A method that the schema does not have is MethodNotFound.

{summary}
"""


def generated() -> dict[Path, str]:
    return {PAGE: page()}


def page() -> str:
    kinds = sorted(_kinds().items(), key=lambda both: wire_name(both[0]).lower())
    sections = [_section(wire, classes) for wire, classes in kinds]
    head = _HEAD.format(version=release(NEWEST), summary=_summary(kinds))
    return head + "".join(sections)


def _kinds() -> dict[Any, list[type[Mo]]]:
    """The classes of objects by their type: those that no other is made of."""
    for module in pkgutil.walk_packages(ramet.vsphere.__path__, "ramet.vsphere."):
        importlib.import_module(module.name)
    found: dict[Any, list[type[Mo]]] = {}
    for kind in dict.fromkeys(_below(Mo)):
        if hasattr(kind, "wire") and not _parts(kind):
            found.setdefault(kind.wire, []).append(kind)
    return found


def _below(kind: type[Mo]) -> Iterator[type[Mo]]:
    for sub in _parts(kind):
        yield sub
        yield from _below(sub)


def _parts(kind: type[Mo]) -> list[type[Mo]]:
    """Its kinds in the program, not those of tests."""
    return [sub for sub in kind.__subclasses__() if sub.__module__.startswith("ramet.vsphere.")]


def _summary(kinds: Iterable[tuple[Any, list[type[Mo]]]]) -> str:
    counts = dict.fromkeys((SUPPORTED, PARTIAL, REFUSED), 0)
    for wire, classes in kinds:
        for info in _methods(wire):
            counts[_method(_operations(classes), info)[0]] += 1
    return "Of the methods " + ", ".join(f"{count} are {what}" for what, count in counts.items()) + "."


def _section(wire: Any, classes: list[type[Mo]]) -> str:
    operations = _operations(classes)
    methods = "".join(_row(f"`{info.wsdlName}`", *_method(operations, info)) for info in _methods(wire))
    properties = "".join(
        _row(f"`{info.name}`", *_property(classes, info), shown_type(info.type)) for info in _properties(wire)
    )
    text = f"\n## {wire_name(wire)}\n"
    if methods:
        text += f"\n| Method | | |\n|---|---|---|\n{methods}"
    if properties:
        text += f"\n| Property | | | Type |\n|---|---|---|---|\n{properties}"
    return text


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


def _methods(wire: Any) -> list[Any]:
    return sorted(wire._GetMethodList(), key=lambda info: info.wsdlName.lower())


def _properties(wire: Any) -> list[Any]:
    return sorted(wire._GetPropertyList(), key=lambda info: info.name.lower())


def _operations(classes: Iterable[type[Mo]]) -> dict[str, Operation]:
    return {name: offered for kind in classes for name, offered in kind.operations.items()}


def _method(operations: dict[str, Operation], info: Any) -> tuple[str, str]:
    offered = operations.get(info.wsdlName)
    if offered is None:
        return REFUSED, "NotSupported"
    if offered.refusal is not None:
        return REFUSED, f"{offered.fault}: {offered.refusal}"
    return (PARTIAL, offered.partial) if offered.partial is not None else (SUPPORTED, "")


def _property(classes: Iterable[type[Mo]], info: Any) -> tuple[str, str]:
    if not any(path.partition(".")[0] == info.name for kind in classes for path in kind.getters):
        return UNSET, "an empty list" if issubclass(info.type, Support.Array) else ""
    note = next((kind.partial[info.name] for kind in classes if info.name in kind.partial), None)
    return (PARTIAL, note) if note is not None else (SUPPORTED, "")


def main() -> int:
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{'stale' if '--check' in sys.argv else 'wrote'}: {path.name}")
        if "--check" not in sys.argv:
            path.write_text(text)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
