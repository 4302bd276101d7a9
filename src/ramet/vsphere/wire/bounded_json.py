"""JSON from whoever connects: bounded in size, depth and parts, and no number that is none.

    parse_json(data) -> value               # JsonError

`json` recurses in C, a level for each bracket: depth is counted before it sees the text. The text is UTF-8: `json`
itself would guess at other encodings, in which a bracket does not look like one to who counts.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["MAX_DEPTH", "JsonError", "parse_json"]

MAX_DEPTH = 64
MAX_BYTES = 4 << 20
MAX_PARTS = 50_000
"""Objects and arrays in all: an empty one takes 64 bytes of memory for the two of its text."""
# possessive: else sre keeps a place to return to for each character, 100 bytes of memory for one of text
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class JsonError(ValueError):
    """What is wrong with it, in a sentence for the caller."""


def parse_json(data: bytes) -> Any:
    """The value; None for nothing at all."""
    if len(data) > MAX_BYTES:
        raise JsonError(f"The text is larger than {MAX_BYTES >> 20} MiB.")
    if not data.strip():
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise JsonError("The text is not UTF-8.") from exc
    _check_brackets(data)
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits is a ValueError too
        raise JsonError(f"The text is not JSON: {exc}.") from exc


def _check_brackets(data: bytes) -> None:
    bare = _STRING.sub(b"", data)
    if bare.count(b"[") + bare.count(b"{") > MAX_PARTS:
        raise JsonError(f"The text has more than {MAX_PARTS} objects and arrays.")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise JsonError(f"The text is nested more than {MAX_DEPTH} deep.")
        if depth < 0:
            raise JsonError("The text is not JSON: it closes what it has not opened.")


def _refuse(name: str) -> Any:
    raise JsonError(f"{name} is no number of JSON")
