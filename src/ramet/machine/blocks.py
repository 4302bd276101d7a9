"""A VM's disks inside its running QEMU: which layer each writes to, and overlays put on top."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from ramet.errors import RametError
from ramet.hypervisor.blocknodes import LayerFile, format_node
from ramet.machine.live import LiveMachine

_NODE_PREFIX = format_node("")


def layer_name(owner_id: str, disk_id: str) -> str:
    """The id of a layer that is made for a disk. It ends with the disk's own, so that QEMU's node tells the disk."""
    return f"{owner_id}-{disk_id}"


async def active_layers(live: LiveMachine) -> dict[str, str]:
    """Disk id -> the layer that QEMU writes to, asked of QEMU itself."""
    found: dict[str, str] = {}
    for device in await live.qmp.execute("query-block"):
        node = str(device.get("inserted", {}).get("node-name", ""))
        layer_id = node.removeprefix(_NODE_PREFIX)
        if layer_id != node and "-" in layer_id:
            found[layer_id.rpartition("-")[2]] = layer_id
    return found


async def follow_disks(live: LiveMachine) -> None:
    """Make the record name the layers that QEMU writes to: after a stun that was cut off, only QEMU knows."""
    active = await active_layers(live)
    await set_tops(live, {disk.id: active[disk.id] for disk in live.vm.machine.disks if disk.id in active})


async def set_tops(live: LiveMachine, tops: Mapping[str, str], **more: Any) -> None:
    """Record the topmost layers that QEMU writes to now, and what else changed with them, in one write."""
    disks = tuple(disk.changed(layer=tops.get(disk.id, disk.layer)) for disk in live.vm.machine.disks)
    if disks != live.vm.machine.disks or more:
        await live.change(fact=True, machine=live.vm.machine.changed(disks=disks), **more)


async def add_overlays(live: LiveMachine, overlays: Mapping[str, str]) -> None:
    """Open overlays in QEMU, over nothing yet. `overlays`: disk id -> layer id. `drop_overlays` undoes it."""
    for layer_id in overlays.values():
        await live.qmp.add_layer_node(LayerFile(layer_id, live.rooms.layers.path(layer_id), writable=True))


async def drop_overlays(live: LiveMachine, layer_ids: list[str]) -> None:
    """Close overlays that did not come to be used, and delete their files."""
    for layer_id in layer_ids:
        if live.vm.is_on:
            with contextlib.suppress(RametError):
                await live.qmp.del_node(layer_id)
        await asyncio.to_thread(live.rooms.layers.remove, layer_id)


async def seal(live: LiveMachine) -> None:
    """Layers that went under an overlay: a QEMU that runs gives up the descriptors that could still write to them."""
    for disk in live.vm.machine.disks:
        with contextlib.suppress(RametError):
            under = live.rooms.layers.layer(disk.layer).parent
            if under is not None:
                await live.qmp.seal_layer(LayerFile(under, live.rooms.layers.path(under), writable=False))
