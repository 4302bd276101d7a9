"""Sizes, durations, names and addresses as people write them, parsed to plain numbers and checked strings."""

from __future__ import annotations

import ipaddress
import re
import secrets
from typing import Annotated

from pydantic import AfterValidator

from ramet.errors import UsageError

MIB = 1 << 20
GIB = 1 << 30

_SIZE = re.compile(r"^(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?:i?B)?$", re.IGNORECASE)
_SIZE_FACTOR = {"": MIB, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}
_DURATION = re.compile(r"^(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)?$")
_DURATION_FACTOR = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# What libvirt, systemd and DNS labels agree on; short enough for a Unix socket's path and a tap's name.
_NAME = re.compile(r"^[a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$")
_MAC = re.compile(r"^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$")


def parse_size_bytes(text: str) -> int:
    """'512M', '2G', '1.5 GiB', '64K' to bytes; a bare number is MiB, as in QEMU's -m."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size.", hint="Write it like 512M or 2G.")
    size = int(float(match["number"]) * _SIZE_FACTOR[match["unit"].upper()])
    if size <= 0:
        raise UsageError(f"A size must be more than nothing, not {text!r}.")
    return size


def parse_size_mib(text: str) -> int:
    """Like `parse_size_bytes`, in whole MiB; a size that is not one is refused."""
    size = parse_size_bytes(text)
    if size % MIB:
        raise UsageError(f"{text!r} is not a whole number of MiB.", hint="Write it like 512M or 2G.")
    return size // MIB


def parse_duration_s(text: str) -> float:
    """'30', '30s', '5m', '250ms' to seconds."""
    match = _DURATION.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a duration.", hint="Write it like 30s, 5m or 250ms.")
    return float(match["number"]) * _DURATION_FACTOR[match["unit"]]


def format_bytes(size: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def check_name(name: str) -> str:
    """A name of a VM, image or port group; raises ValueError with the rule."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a usable name: letters, digits, '.', '_' and '-' (not first or last), at most 63"
        )
    return name


def check_mac(mac: str) -> str:
    """A unicast MAC address, lower case with colons."""
    mac = mac.lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError(f"{mac!r} is not a unicast MAC address like 52:54:00:12:34:56")
    return mac


def check_cidr(cidr: str) -> str:
    """An IPv4 network with room for a gateway and a guest, in canonical form."""
    network = ipaddress.IPv4Network(cidr, strict=False)
    if network.prefixlen > 29:
        raise ValueError(f"{cidr} is too small: /29 or wider is needed")
    return str(network)


def new_id() -> str:
    """A fresh identifier: 12 hex digits, 48 random bits; short enough for tap and socket names."""
    return secrets.token_hex(6)


def new_mac() -> str:
    """A fresh MAC address under 52:54:00, the prefix QEMU uses for its guests."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


Name = Annotated[str, AfterValidator(check_name)]
Mac = Annotated[str, AfterValidator(check_mac)]
Cidr = Annotated[str, AfterValidator(check_cidr)]
