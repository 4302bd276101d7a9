"""Which protocol answers at which path."""

from __future__ import annotations

from ramet.vsphere.access.address import Address
from ramet.vsphere.console import app as console
from ramet.vsphere.console.consoles import PATH as CONSOLES
from ramet.vsphere.core.world import World
from ramet.vsphere.files import app as files
from ramet.vsphere.guest import transfer
from ramet.vsphere.mob import app as mob
from ramet.vsphere.rest import app as rest
from ramet.vsphere.root import Root
from ramet.vsphere.vijson import app as vijson
from ramet.vsphere.wire import endpoint as soap


def make_root(world: World) -> Root:
    automation, read = rest.make_app(world), files.make_app(world)
    return Root(
        [
            ("/sdk", soap.make_app(world)),
            ("/sdk/vim25", vijson.make_app(world)),
            ("/api", automation),
            ("/rest", automation),
            ("/mob", mob.make_app(world)),
            (transfer.PATH, transfer.make_app(world)),
            (CONSOLES, console.make_app(world)),
            (files.FOLDER, read),
            (files.SCREEN, read),
        ]
    )


def tell_address(world: World, port: int, sha1: str, sha256: str) -> None:
    """For addresses that are given out: the port, and the certificate's fingerprints."""
    world.parts[Address] = Address(port, sha1, sha256)
