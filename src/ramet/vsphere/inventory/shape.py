"""Data objects of the schema, made with less ado.

filled(vim.vm.Capability, snapshotOperationsSupported=True)   # what is required and not named: False, 0, empty
utc(unix_time) -> datetime
option(key, value) -> OptionValue
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ramet.vsphere.types import NEWEST, Support, vim


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


def utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def option(key: str, value: Any) -> Any:
    return vim.option.OptionValue(key=key, value=value)
