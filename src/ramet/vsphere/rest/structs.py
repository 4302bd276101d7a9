"""Structures of the automation API, and the three ways in which they are written.

    class Summary(Struct):
        vapi = "com.vmware.vcenter.VM.summary"
        name: str
        cpu_count: int | None = None             # a field with a default is an optional one

    encode(value, Style.API)        {"name": "a"}: what is unset is left out, maps are objects
    encode(value, Style.REST)       the same, but maps are lists of {key, value}
    encode(value, Style.RPC)        {"STRUCTURE": {"….summary": {"name": "a", "cpu_count": {"OPTIONAL": null}}}}
    plain(value)                    from RPC: without what it is wrapped in
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = ["Map", "Secret", "Struct", "Style", "Styled", "encode", "plain"]

V = TypeVar("V")


class Style(StrEnum):
    API = "api"
    REST = "rest"
    RPC = "rpc"


class Struct(BaseModel):
    """Fields are spelled as the API spells them. Unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vapi: ClassVar[str] = ""
    """Its name on the wire of JSON-RPC."""


class Styled:
    """Something that is written in a way of its own."""

    def styled(self, style: Style) -> Any:
        raise NotImplementedError


class Secret(str):
    """A string that nobody logs."""

    __slots__ = ()


def _entries(value: Any) -> Any:
    """A map may come as a list of its entries."""
    if isinstance(value, list) and all(isinstance(one, dict) and "key" in one for one in value):
        return {str(one["key"]): one.get("value") for one in value}
    return value


Map = Annotated[dict[str, V], BeforeValidator(_entries)]


def encode(value: Any, style: Style) -> Any:
    match value:
        case Styled():
            return value.styled(style)
        case Struct():
            return _struct(value, style)
        case dict():
            return _map(value, style)
        case list() | tuple() | set() | frozenset():
            return [encode(one, style) for one in value]
        case Secret():
            return {"SECRET": str(value)} if style is Style.RPC else str(value)
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case str():
            return str(value)
    return value


def _struct(value: Struct, style: Style) -> Any:
    fields = {}
    for name, info in type(value).model_fields.items():
        found = encode(getattr(value, name), style)
        if style is Style.RPC and not info.is_required():
            fields[name] = {"OPTIONAL": found}
        elif found is not None or style is Style.RPC:
            fields[name] = found
    return {"STRUCTURE": {value.vapi: fields}} if style is Style.RPC else fields


def _map(value: dict[str, Any], style: Style) -> Any:
    if style is Style.API:
        return {key: encode(one, style) for key, one in value.items()}
    entries = [{"key": key, "value": encode(one, style)} for key, one in value.items()]
    return [{"STRUCTURE": {"map-entry": one}} for one in entries] if style is Style.RPC else entries


def plain(value: Any) -> Any:
    """ValueError when it is no value of JSON-RPC's."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("a value is wrapped in one word that says what it is")
    (kind, inside), *_ = value.items()
    match kind:
        case "OPTIONAL":
            return None if inside is None else plain(inside)
        case "SECRET":
            return inside
        case "BINARY":
            return _binary(inside)
        case "STRUCTURE" | "ERROR":
            return _unstructured(inside)
    raise ValueError(f"there is no kind of value {kind!r}")


def _unstructured(inside: Any) -> Any:
    if not isinstance(inside, dict) or len(inside) != 1:
        raise ValueError("a structure has one name")
    fields = next(iter(inside.values()))
    if not isinstance(fields, dict):
        raise ValueError("a structure has fields")
    return {str(name): plain(one) for name, one in fields.items()}


def _binary(inside: Any) -> bytes:
    try:
        return base64.b64decode(inside)
    except (binascii.Error, TypeError, ValueError) as exc:
        raise ValueError("a binary value is text in base64") from exc
