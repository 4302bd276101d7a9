"""Reading properties: paths, declared types, and values made to fit them.

    values = await read_all(mo, ("name", "runtime.powerState")) -> dict[path, value]    # unset paths are left out
    await read_now(mo, path) -> value or None
    check_path(wire, path)                      # InvalidProperty
    value_at(mo, path) -> value or None         # plain and quick, after `prepare`
    fit(value, info) -> value                   # into the declared type

A path is names with dots, and for an element of an array its key: config.hardware.device[4000].backing. A longest
prefix of it that the class has a function for is asked; the rest is walked. pyVmomi checks types when a field is set,
so that a value that does not fit is an error of ours, found by a test and not by a client.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from ramet.vsphere.types import Support, property_info, vmodl

if TYPE_CHECKING:
    from ramet.vsphere.core.objects import Mo

_PART = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)(?:\[(?:"([^"]*)"|([^\]"]+))\])?$')


def split(path: str) -> list[tuple[str, str | None]]:
    """'a.b[3].c' -> [('a', None), ('b', '3'), ('c', None)]. InvalidProperty when it is no path."""
    parts = []
    for text in re.findall(r'[^.\[]+(?:\["[^"]*"\]|\[[^\]]*\])?', path) or [""]:
        match = _PART.match(text)
        if match is None:
            raise _invalid(path)
        parts.append((match[1], match[2] if match[2] is not None else match[3]))
    return parts


def check_path(wire: Any, path: str) -> None:
    """InvalidProperty when the type has nothing there, whatever this server knows of it."""
    kind = wire
    for name, key in split(path):
        info = property_info(kind, name) if hasattr(kind, "_GetPropertyInfo") else None
        if info is None:
            if is_open(kind):
                return
            raise _invalid(path)
        kind = info.type
        if issubclass(kind, Support.Array):
            kind = kind.Item if key is not None else kind
        elif key is not None:
            raise _invalid(path)


def is_open(kind: Any) -> bool:
    """Data objects have kinds with more fields: what the declared type has not, the value may have."""
    return isinstance(kind, type) and issubclass(kind, Support.DataObject)


async def read_all(mo: Mo, paths: Iterable[str]) -> dict[str, Any]:
    """The values at these paths, but for what is unset. InvalidProperty when the type has not one of them."""
    paths = list(paths)
    for path in paths:
        check_path(mo.wire, path)
    await mo.prepare({path.partition(".")[0].partition("[")[0] for path in paths})
    return values(mo, paths)


def values(mo: Mo, paths: Collection[str]) -> dict[str, Any]:
    """Like `read_all`, for an object that is prepared and paths that are checked."""
    found = ((path, value_at(mo, path)) for path in paths)
    return {path: value for path, value in found if value is not None}


async def read_now(mo: Mo, path: str) -> Any:
    return (await read_all(mo, (path,))).get(path)


def value_at(mo: Mo, path: str) -> Any:
    """The value at a path that is checked; None is unset."""
    getter = mo.getters.get(path)
    if getter is not None and "." not in path:
        return fit(getter(mo), property_info(mo.wire, path))
    if getter is not None:
        return fit(getter(mo), _declared(mo.wire, path))
    return _walk(mo, path)


def _walk(mo: Mo, path: str) -> Any:
    parts = split(path)
    for length in range(len(parts), 0, -1):
        head = ".".join(name for name, _ in parts[:length])
        if any(key is not None for _, key in parts[: length - 1]) or (head not in mo.getters and length > 1):
            continue
        info = _declared(mo.wire, head)
        value = fit(mo.getters[head](mo) if head in mo.getters else None, info)
        for name, key in [("", parts[length - 1][1]), *parts[length:]]:
            value = _step(value, name, key)
        return value
    return None


def _step(value: Any, name: str, key: str | None) -> Any:
    if value is not None and name:
        value = getattr(value, name, None)
    if value is not None and key is not None:
        value = next((item for item in value if str(getattr(item, "key", None)) == key), None)
    return value


def _declared(wire: Any, path: str) -> Any:
    kind, info = wire, None
    for name, _ in split(path):
        info = property_info(kind, name)
        if info is None:
            return None
        kind = info.type
    return info


def fit(value: Any, info: Any) -> Any:
    """Into the declared type: lists into its array, whole numbers into its width, text into its enum."""
    if info is None:
        return value
    kind = info.type
    if issubclass(kind, Support.Array):
        return value if isinstance(value, kind) else kind([fit_one(item, kind.Item) for item in value or ()])
    return None if value is None else fit_one(value, kind)


def fit_one(value: Any, kind: Any) -> Any:
    if isinstance(value, (bool, kind)):
        return value
    if isinstance(value, int | float | str) and kind is not object:
        return kind(value)
    return value


def _invalid(path: str) -> Exception:
    fault: Exception = vmodl.query.InvalidProperty(name=path, msg=f"The property {path!r} is not known.")
    return fault
