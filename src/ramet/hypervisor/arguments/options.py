"""Spelling of options."""

from __future__ import annotations

import json
from typing import Any


def json_option(name: str, value: dict[str, Any]) -> list[str]:
    """An option in QEMU's JSON syntax, which needs no quoting of commas and keeps types."""
    return [name, json.dumps(value, separators=(",", ":"))]


def listed(name: str, *first: str, **values: str | int) -> list[str]:
    """An option in the classic syntax: ``name first,key=value,…``. Commas in values are doubled, as QEMU asks."""
    pairs = (f"{key.replace('_', '-')}={str(value).replace(',', ',,')}" for key, value in values.items())
    return [name, ",".join((*first, *pairs))]
