"""What is kept of a value to see later whether it has changed: itself when it is small, else a digest.

    mark(value, version) -> something to compare
    parts(value, version) -> {"": …, ".state": …, "[4000]": …, "[4000].connectable": …}    # for partial updates
    differences(old, new) -> [(part, op)]    # only the outermost of what changed
    part_of(value, part) -> value or None

Values may be made anew at every reading, or be changed where they are: neither is to be told apart by identity.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ramet.vsphere.core.properties import key_of, split
from ramet.vsphere.types import Support, fields_of, property_info
from ramet.vsphere.wire.soap_values import to_xml

__all__ = ["Parts", "differences", "is_inside", "mark", "part_of", "parts"]

Parts = dict[str, Any]

_DEPTH = 4
"""Below that a value is compared and told as a whole."""
_SMALL = (str, int, float)


def mark(value: Any, version: str) -> Any:
    if value is None or isinstance(value, _SMALL):
        return value
    if isinstance(value, Support.ManagedObject):
        return value._moId
    xml = to_xml("v", value, object, version)
    return hashlib.blake2b(xml.encode(), digest_size=16).digest()


def parts(value: Any, version: str) -> Parts:
    found: Parts = {}
    _take_apart(found, "", value, version, _DEPTH)
    return found


def _take_apart(found: Parts, at: str, value: Any, version: str, depth: int) -> None:
    inside = _inside(value) if depth else None
    if inside is None:
        found[at] = mark(value, version)
        return
    found[at] = type(value)
    for name, part in inside:
        _take_apart(found, at + name, part, version, depth - 1)


def _inside(value: Any) -> list[tuple[str, Any]] | None:
    """Fields, or elements by their keys; None for what has no parts that can be named."""
    if isinstance(value, Support.DataObject) and not isinstance(value, BaseException):
        named = ((f".{name}", getattr(value, name, None)) for name in fields_of(type(value)))
        return [(name, part) for name, part in named if part is not None]
    if isinstance(value, list):
        keys = [key_of(item) for item in value]
        if None in keys or len(set(keys)) < len(keys) or any('"' in str(key) for key in keys):
            return None
        return [(_bracket(item, key), item) for item, key in zip(value, keys, strict=True)]
    return None


def _bracket(item: Any, key: str | None) -> str:
    is_number = not isinstance(item, Support.ManagedObject) and isinstance(item.key, int)
    return f"[{key}]" if is_number else f'["{key}"]'


def differences(old: Parts, new: Parts) -> list[tuple[str, str]]:
    changed = [(at, _op(at, at in old, at in new)) for at in {*old, *new} if _differ(at, old, new)]
    changed.sort(key=lambda one: len(one[0]))
    outermost: dict[str, str] = {}
    for at, op in changed:
        if not any(is_inside(at, outer) for outer in outermost):
            outermost[at] = op
    return list(outermost.items())


def _differ(at: str, old: Parts, new: Parts) -> bool:
    return (at in old) != (at in new) or old[at] != new[at]


def _op(at: str, was: bool, is_there: bool) -> str:
    if at.endswith("]") and was != is_there:
        return "add" if is_there else "remove"
    return "assign"


def is_inside(at: str, outer: str) -> bool:
    """Whether a part is another, or a part of it."""
    return not outer or at == outer or (at.startswith(outer) and at[len(outer)] in ".[")


def part_of(value: Any, part: str) -> Any:
    """What stands there now; None when it is gone again."""
    if not part:
        return value
    for name, key in split(f"v{part}"):
        if name != "v" or value is None:
            value = getattr(value, name, None) if property_info(type(value), name) is not None else None
        if key is not None and value is not None:
            value = next((item for item in value if key_of(item) == key), None)
    return value
