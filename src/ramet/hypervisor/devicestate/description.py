"""The JSON at the end of a migration stream (QEMU calls it vmdescription): which fields each section has, and how long.

Sections carry no length of their own, so this is the only way to tell where one ends. QEMU writes it, but a state file
lies on a disk, so every number is bounded before it is believed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ramet.errors import DamagedError

MAX_DESCRIPTION_BYTES = 16 << 20
_MAX_DEVICES = 4096
_MAX_DEPTH = 32
_MAX_BYTES = 1 << 31

_EOF_AND_DESCRIPTION = b"\x00\x06"  # QEMU_VM_EOF, QEMU_VM_VMDESCRIPTION
_SUBSECTION_HEADER_BYTES = 6  # marker, length of the name, version; the name itself comes on top


def damaged(what: str) -> DamagedError:
    """The one error of this package."""
    return DamagedError(f"The device state is damaged: {what}.", hint="Take a new moment of the source.")


@dataclass(frozen=True, slots=True)
class FieldSpan:
    """A field of a section: `count` elements of `size` bytes, `offset` bytes after the payload's start."""

    name: str
    type: str
    offset: int
    size: int
    count: int

    @property
    def length(self) -> int:
        return self.size * self.count


@dataclass(frozen=True, slots=True)
class Device:
    """What one section holds. `length` is its payload in bytes, subsections included."""

    name: str
    instance_id: int
    vmsd_name: str
    """Empty for a section that QEMU saves by hand, such as that of user-mode networking (slirp)."""
    fields: tuple[FieldSpan, ...]
    length: int

    def find(self, name: str) -> FieldSpan | None:
        """The first top-level field of that name."""
        return next((field for field in self.fields if field.name == name), None)


@dataclass(frozen=True, slots=True)
class Description:
    """`start` is the offset of the marker that ends the sections."""

    page_size_bytes: int
    devices: tuple[Device, ...]
    start: int


def read_description(stream: bytes) -> Description:
    """Find and parse the description at the end of `stream`. Raises DamagedError."""
    start = _find_start(stream)
    try:
        parsed = json.loads(stream[start + 6 :])
    except (ValueError, RecursionError) as exc:
        raise damaged("its description is not JSON") from exc
    if not isinstance(parsed, dict):
        raise damaged("its description is not an object")
    page_size = _number(parsed, "page_size", 1 << 21)
    if page_size < 512 or page_size & (page_size - 1):
        raise damaged(f"its pages would have {page_size} bytes")
    devices = _items(parsed, "devices", _MAX_DEVICES)
    return Description(page_size, tuple(_device(device) for device in devices), start)


def _find_start(stream: bytes) -> int:
    """JSON has no NUL bytes, so the last marker whose length reaches exactly to the end is the right one."""
    floor = max(0, len(stream) - MAX_DESCRIPTION_BYTES)
    at = stream.rfind(_EOF_AND_DESCRIPTION, floor)
    # The length itself may look like a marker (00 06 xx xx), hence more than one look; more than four cannot be.
    for _ in range(4):
        if at < 0:
            break
        if int.from_bytes(stream[at + 2 : at + 6], "big") == len(stream) - at - 6:
            return at
        at = stream.rfind(_EOF_AND_DESCRIPTION, floor, at + 1)
    raise damaged("it has no description at its end")


def _device(raw: dict[str, Any]) -> Device:
    fields, length = _fields(raw)
    length += _subsections_length(raw, 0)
    if length > _MAX_BYTES:
        raise damaged("a section would be larger than 2 GiB")
    instance_id = _number(raw, "instance_id", (1 << 32) - 1)
    vmsd_name = _text(raw, "vmsd_name") if "vmsd_name" in raw else ""
    return Device(_text(raw, "name"), instance_id, vmsd_name, fields, length)


def _fields(raw: dict[str, Any]) -> tuple[tuple[FieldSpan, ...], int]:
    spans, offset = [], 0
    for field in _items(raw, "fields", 1 << 16):
        count = _number(field, "array_len", 1 << 24) if "array_len" in field else 1
        span = FieldSpan(_text(field, "name"), _text(field, "type"), offset, _number(field, "size", _MAX_BYTES), count)
        spans.append(span)
        offset += span.length
    return tuple(spans), offset


def _subsections_length(raw: dict[str, Any], depth: int) -> int:
    if "subsections" not in raw:
        return 0
    if depth > _MAX_DEPTH:
        raise damaged("its subsections are nested too deep")
    total = 0
    for subsection in _items(raw, "subsections", 1 << 12):
        _, length = _fields(subsection)
        name = _text(subsection, "vmsd_name").encode()
        total += _SUBSECTION_HEADER_BYTES + len(name) + length + _subsections_length(subsection, depth + 1)
    return total


def _number(raw: dict[str, Any], key: str, most: int) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise damaged(f"its description has no usable {key!r}")
    return value


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable():
        raise damaged(f"its description has no usable {key!r}")
    return value


def _items(raw: dict[str, Any], key: str, most: int) -> list[dict[str, Any]]:
    value = raw.get(key)
    if not isinstance(value, list) or len(value) > most or not all(isinstance(item, dict) for item in value):
        raise damaged(f"its description has no usable {key!r}")
    return value
