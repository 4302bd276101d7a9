"""Reading properties: paths, declared types, and values made to fit them.

    values = await read_all(mo, ("name", "runtime.powerState")) -> dict[path, value]    # unset paths are left out
    await read_now(mo, path) -> value or None
    check_path(wire, path)                      # InvalidProperty
    value_at(mo, path) -> value or None         # plain and quick, after `prepare`
    reader(type(mo), path) -> function of mo    # the same, for many objects
    fit(value, info) -> value                   # into the declared type

A path is names with dots, and for an element of an array its key: config.hardware.device[4000].backing. A longest
prefix of it that the class has a function for is asked; the rest is walked. pyVmomi checks types when a field is set,
so that a value that does not fit is an error of ours, found by a test and not by a client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from ramet.vsphere.types import Support, property_info, remember, vmodl

if TYPE_CHECKING:
    from ramet.vsphere.core.objects import Mo

_PART = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)(?:\[(?:"([^"]*)"|([^\]"]+))\])?$')
_TEXT = re.compile(r'[^.\[]+(?:\["[^"]*"\]|\[[^\]]*\])?|.')
_LONGEST = 1000
_KNOWN_PATHS = 8192


def split(path: str) -> list[tuple[str, str | None]]:
    """'a.b[3].c' -> [('a', None), ('b', '3'), ('c', None)]. InvalidProperty when it is no path."""
    if len(path) > _LONGEST or not path or path.endswith("."):
        raise _invalid(path)
    parts = []
    for i, text in enumerate(_TEXT.findall(path)):
        if text == "." and i % 2:
            continue
        match = _PART.match(text)
        if match is None or i % 2:
            raise _invalid(path)
        parts.append((match[1], match[2] if match[2] is not None else match[3]))
    return parts


@remember(_KNOWN_PATHS)
def check_path(wire: Any, path: str) -> None:
    """InvalidProperty when the type has nothing there, whatever this server knows of it."""
    kind = wire
    for i, (name, key) in enumerate(split(path)):
        info = property_info(kind, name) if _has_fields(kind) and (i == 0 or not _is_managed(kind)) else None
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


def _has_fields(kind: Any) -> bool:
    return hasattr(kind, "_GetPropertyInfo")


def _is_managed(kind: Any) -> bool:
    """A path ends at a reference: what it refers to is another object."""
    return isinstance(kind, type) and issubclass(kind, Support.ManagedObject)


def root_of(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


async def read_all(mo: Mo, paths: Iterable[str]) -> dict[str, Any]:
    """The values at these paths, but for what is unset. InvalidProperty when the type has not one of them."""
    paths = list(paths)
    for path in paths:
        check_path(mo.wire, path)
    await mo.prepare({root_of(path) for path in paths})
    return values(mo, paths)


def values(mo: Mo, paths: Collection[str]) -> dict[str, Any]:
    """Like `read_all`, for an object that is prepared and paths that are checked."""
    found = ((path, value_at(mo, path)) for path in paths)
    return {path: value for path, value in found if value is not None}


async def read_now(mo: Mo, path: str) -> Any:
    return (await read_all(mo, (path,))).get(path)


def value_at(mo: Mo, path: str) -> Any:
    """The value at a path that is checked; None is unset."""
    return reader(type(mo), path)(mo)


@remember(_KNOWN_PATHS)
def reader(kind: type[Mo], path: str) -> Callable[[Mo], Any]:
    """What reads that path of objects of a class: the class's own function for it, or for the longest part of it."""
    if path in kind.getters:
        return _plain_reader(kind.getters[path], _declared(kind.wire, path))
    parts = split(path)
    for length in range(len(parts), 0, -1):
        head = ".".join(name for name, _ in parts[:length])
        if all(key is None for _, key in parts[: length - 1]) and (head in kind.getters or length == 1):
            getter = kind.getters.get(head, _unset)
            steps = [("", parts[length - 1][1]), *parts[length:]]
            return _walking_reader(_plain_reader(getter, _declared(kind.wire, head)), steps)
    raise AssertionError(path)


def _unset(mo: Any) -> None:
    return None


def _plain_reader(getter: Callable[[Any], Any], info: Any) -> Callable[[Mo], Any]:
    if info is None or info.type is object:
        return getter
    kind, is_array = info.type, issubclass(info.type, Support.Array)

    def read(mo: Mo) -> Any:
        value = getter(mo)
        if value.__class__ is kind or (value is None and not is_array):
            return value
        return fit(value, info)

    return read


def _walking_reader(read: Callable[[Mo], Any], steps: list[tuple[str, str | None]]) -> Callable[[Mo], Any]:
    def walk(mo: Mo) -> Any:
        value = read(mo)
        for name, key in steps:
            if value is None:
                return None
            value = _step(value, name, key)
        return value

    return walk


def _step(value: Any, name: str, key: str | None) -> Any:
    if name:
        info = property_info(type(value), name)
        value = fit(getattr(value, name), info) if info is not None else None
    if value is not None and key is not None:
        value = next((item for item in value if key_of(item) == key), None)
    return value


def key_of(item: Any) -> str | None:
    """By what an element of an array is named in a path; None when it has no key."""
    if isinstance(item, Support.ManagedObject):
        return str(item._moId)
    key = getattr(item, "key", None)
    return None if key is None else str(key)


def _declared(wire: Any, path: str) -> Any:
    kind, info = wire, None
    for name, _ in split(path):
        info = property_info(kind, name) if _has_fields(kind) else None
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
    shown = path if len(path) <= 100 else f"{path[:100]}…"
    fault: Exception = vmodl.query.InvalidProperty(name=shown, msg=f"The property {shown!r} is not known.")
    return fault
