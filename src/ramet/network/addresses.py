"""Choosing and checking the addresses of port groups. Pure: routes come in as text or as values."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from ramet.errors import CapacityError, ConflictError, UsageError

AUTO_PREFIX = 22
"""1,021 guests: as many as a Linux bridge has ports (1,024)."""

UPLINK_ADDRESS = IPv4Address("169.254.77.2")
UPLINK_GATEWAY = IPv4Address("169.254.77.1")
UPLINK_PREFIX = 30
LINK_LOCAL = IPv4Network("169.254.0.0/16")

_NOT_FOR_HOSTS = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("127.0.0.0/8"),
    LINK_LOCAL,
    IPv4Network("224.0.0.0/3"),
)
# The quiet middle of 10/8 first: offices, clouds and container engines begin at either end.
_PLACES = (IPv4Network("10.192.0.0/10"), IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"))
_MAX_ROUTES = 65536


def gateway_of(cidr: str) -> IPv4Address:
    """The first host of the network: the bridge's own address."""
    return IPv4Network(cidr).network_address + 1


def host_range(cidr: str) -> tuple[IPv4Address, IPv4Address]:
    """First and last address that guests may get: without network, gateway and broadcast."""
    network = IPv4Network(cidr)
    return network.network_address + 2, network.broadcast_address - 1


def parse_routes(text: str) -> list[IPv4Network]:
    """The networks in /proc/net/route (hexadecimal, in host byte order); the default route is left out.

    Lines that make no sense are passed over: this only serves to avoid clashes.
    """
    routes = []
    for line in text.splitlines()[1 : _MAX_ROUTES + 1]:
        fields = line.split()
        try:
            routes.append(_route(fields[1], fields[7]))
        except (IndexError, ValueError, OverflowError):
            continue
    return [route for route in routes if route.prefixlen]


def _route(destination: str, mask: str) -> IPv4Network:
    address, netmask = (IPv4Address(socket.ntohl(int(word, 16))) for word in (destination, mask))
    return IPv4Network((str(address), str(netmask)))


def choose_cidr(taken: Iterable[IPv4Network]) -> str:
    """The first private network of AUTO_PREFIX that overlaps nothing of `taken`, from the quiet places on.

    Raises CapacityError when there is none.
    """
    merged = list(ipaddress.collapse_addresses(taken))
    for place in _PLACES:
        found = _first_free(place, merged)
        if found is not None:
            return str(found)
    raise CapacityError("No private IPv4 network is free for a port group.", hint="Give one with --cidr.")


def _first_free(place: IPv4Network, taken: list[IPv4Network]) -> IPv4Network | None:
    """Steps over each network in the way at once: one route can cover thousands of candidates."""
    size = 1 << (32 - AUTO_PREFIX)
    start, end = int(place.network_address), int(place.broadcast_address)
    while start < end:
        candidate = IPv4Network((start, AUTO_PREFIX))
        in_the_way = next((net for net in taken if net.overlaps(candidate)), None)
        if in_the_way is None:
            return candidate
        start = -(-(int(in_the_way.broadcast_address) + 1) // size) * size
    return None


def check_free(name: str, cidr: str, others: dict[str, str]) -> None:
    """Raises ConflictError when `cidr` overlaps that of another port group (`others`: name -> CIDR),
    UsageError when it is no network for hosts at all."""
    network = IPv4Network(cidr)
    if any(network.overlaps(special) for special in _NOT_FOR_HOSTS):
        raise UsageError(f"{cidr} is reserved and cannot be a port group's network.", hint="Use one like 10.20.0.0/24.")
    for other, theirs in others.items():
        if other != name and network.overlaps(IPv4Network(theirs)):
            raise ConflictError(
                f"{cidr} overlaps {theirs} of port group {other!r}.",
                hint="Choose another --cidr, or leave it out and a free one is chosen.",
                network=other,
            )
