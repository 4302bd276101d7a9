"""Which protocol answers at which path."""

from __future__ import annotations

from ramet.vsphere.core.world import World
from ramet.vsphere.guest import transfer
from ramet.vsphere.mob import app as mob
from ramet.vsphere.rest import app as rest
from ramet.vsphere.root import Root
from ramet.vsphere.vijson import app as vijson
from ramet.vsphere.wire import endpoint as soap


def make_root(world: World) -> Root:
    automation = rest.make_app(world)
    return Root(
        [
            ("/sdk", soap.make_app(world)),
            ("/sdk/vim25", vijson.make_app(world)),
            ("/api", automation),
            ("/rest", automation),
            ("/mob", mob.make_app(world)),
            (transfer.PATH, transfer.make_app(world)),
        ]
    )


def tell_port(world: World, port: int) -> None:
    """For addresses that are given out."""
    world.parts[transfer.Address] = transfer.Address(port)
