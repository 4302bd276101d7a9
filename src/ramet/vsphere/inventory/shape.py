"""Data objects of the schema, made with less ado.

filled(vim.vm.Capability, snapshotOperationsSupported=True)   # what is required and not named: False, 0, empty
utc(unix_time) -> datetime
made(vim.vm.FileInfo, vmPathName="…")       # quickly, and unchecked: for what lists are made of
option(key, value) -> OptionValue
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ramet.vsphere.types import NEWEST, Support, fields_of, make, remember, vim


def filled(kind: Any, **fields: Any) -> Any:
    """A data object whose required flags, numbers and lists are there. Anything else that is required is named."""
    for info in kind._GetPropertyList():
        if info.name not in fields and not info.flags & Support.F_OPTIONAL and _is_known(info):
            if issubclass(info.type, bool):
                fields[info.name] = False
            elif issubclass(info.type, int):
                fields[info.name] = info.type(0)
    return kind(**fields)


def _is_known(info: Any) -> bool:
    """Whether clients of the newest version that is spoken know this field."""
    return bool(Support.IsChildVersion(NEWEST, info.version))


def made(kind: Any, **fields: Any) -> Any:
    """A data object, at a tenth of its constructor's price: nothing is checked, so tests make them the other way."""
    for name, array in _arrays(kind):
        given = fields.get(name)
        if given.__class__ is list:
            fields[name] = array(given)
    return make(kind, **fields)


@remember(4096)
def _arrays(kind: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((name, info.type) for name, info in fields_of(kind).items() if issubclass(info.type, Support.Array))


def utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def option(key: str, value: Any) -> Any:
    return made(vim.option.OptionValue, key=key, value=value)
