"""Where clients reach this server, for what is given out to them: addresses of files, tickets to consoles.

    world.parts[Address] = Address(port, sha1, sha256)      # by whoever opens it
    asked_at(world, call) -> ("esx1.example.com", 8443)     # where the caller asked: by a name, or through a tunnel
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.world import World

HTTPS = 443
_NAMED = re.compile(r"(\[[0-9a-f:.]{2,64}\]|[\w.-]{1,253})(?::([0-9]{1,5}))?", re.ASCII | re.IGNORECASE)
"""A Host header: nothing else of it gets into an address."""


@dataclass(frozen=True, slots=True)
class Address:
    port: int = HTTPS
    sha1: str | None = None
    """Of the certificate, as the API writes it: 'AB:CD:…'."""
    sha256: str | None = None


def address_of(world: World) -> Address:
    found = world.parts.get(Address)
    return found if isinstance(found, Address) else Address()


def asked_at(world: World, call: Call) -> tuple[str, int]:
    """The host, without brackets, and the port."""
    named = _NAMED.fullmatch(call.host)
    if named is None:
        return socket.gethostname(), address_of(world).port
    return named[1].strip("[]"), int(named[2] or HTTPS)
