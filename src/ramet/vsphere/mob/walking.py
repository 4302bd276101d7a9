"""From an object to what a doPath names in it.

    await properties(mo) -> [(info, value), …]           # all of them; None is unset
    await find(mo, "config.hardware.device[2000].backing") -> value       # InvalidProperty

An element of an array is named by its key, or by its place when elements have none.
"""

from __future__ import annotations

from typing import Any

import structlog

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import check_path, split, value_at
from ramet.vsphere.mob.values import item_key
from ramet.vsphere.types import Support, vmodl

log = structlog.stdlib.get_logger(__name__)


async def properties(mo: Mo) -> list[tuple[Any, Any]]:
    """Every property of the schema with its value. One that cannot be read does not keep the others away."""
    infos = mo.wire._GetPropertyList()
    await mo.prepare({info.name for info in infos})
    return [(info, _read(mo, info.name)) for info in infos]


def _read(mo: Mo, name: str) -> Any:
    try:
        return value_at(mo, name)
    except Exception:
        log.exception("a property could not be read", object=mo.moid, property=name)
        return None


async def find(mo: Mo, path: str) -> Any:
    """The value there; None is unset. InvalidProperty when the type has nothing of that name."""
    parts = split(path)
    check_path(mo.wire, parts[0][0])
    await mo.prepare({parts[0][0]})
    value = value_at(mo, parts[0][0])
    for name, key in [("", parts[0][1]), *parts[1:]]:
        if name and value is not None:
            value = _field(value, name, path)
        if key is not None and value is not None:
            value = _element(value, key)
    return value


def _field(value: Any, name: str, path: str) -> Any:
    known = isinstance(value, Support.DataObject | vmodl.MethodFault)
    if not known or name not in {info.name for info in value._GetPropertyList()}:
        raise vmodl.query.InvalidProperty(name=path, msg=f"There is no {name!r} at {path!r}.")
    return getattr(value, name, None)


def _element(value: Any, key: str) -> Any:
    if not isinstance(value, list):
        return None
    return next((item for i, item in enumerate(value) if item_key(item, i).strip('"') == key), None)
