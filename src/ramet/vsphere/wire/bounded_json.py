"""JSON from whoever connects: bounded in size and depth, and no number that is none.

    parse_json(data) -> value               # JsonError

`json` recurses in C, a level for each bracket: depth is counted before it sees the text.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["MAX_DEPTH", "JsonError", "parse_json"]

MAX_DEPTH = 64
MAX_BYTES = 4 << 20
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class JsonError(ValueError):
    """What is wrong with it, in a sentence for the caller."""


def parse_json(data: bytes) -> Any:
    """The value; None for nothing at all."""
    if len(data) > MAX_BYTES:
        raise JsonError(f"The text is larger than {MAX_BYTES >> 20} MiB.")
    if not data.strip():
        return None
    _check_depth(data)
    try:
        return json.loads(data, parse_constant=_refuse)
    except UnicodeDecodeError as exc:
        raise JsonError("The text is not UTF-8.") from exc
    except ValueError as exc:  # a number of thousands of digits is one too
        raise JsonError(f"The text is not JSON: {exc}.") from exc


def _check_depth(data: bytes) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise JsonError(f"The text is nested more than {MAX_DEPTH} deep.")


def _refuse(name: str) -> Any:
    raise JsonError(f"{name} is no number of JSON")
