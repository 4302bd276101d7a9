"""Keeping the disks' chains of a VM short, however many clones are taken of it.

Every clone of a VM that writes adds a layer to its chain. Before a chain passes its bound, the immutable layers between
the image's own and the writable top are merged, out of process and from immutable files only, into one new layer; then
the top is given that layer as its parent, in one QMP command, outside of any stun. Nobody who still uses the old layers
is disturbed, and they are deleted when nobody does.
"""

from __future__ import annotations

from ramet.hypervisor.blocknodes import DiskChain, LayerFile, format_node
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.machine import Disk
from ramet.model.units import new_id
from ramet.storage.flatten import FlattenPlan, flatten, plan_flatten
from ramet.storage.qcow2 import set_backing_name
from ramet.storage.runner import Progress


def depth(live: LiveMachine) -> int:
    """The longest chain among the VM's disks."""
    return max((live.rooms.layers.depth(disk.layer) for disk in live.vm.machine.disks), default=0)


def needs_flatten(live: LiveMachine) -> bool:
    """Whether the next moment could take a chain past its bound."""
    return depth(live) >= live.rooms.limits.chain_bound


async def shorten(live: LiveMachine, base_layers: frozenset[str], progress: Progress | None = None) -> int:
    """Flatten the VM's chains where they reach the bound. Returns how many disks were shortened.

    Needs: nobody takes a moment of the VM meanwhile (the caller holds its lock). `base_layers`, those of images, stay
    shared. On failure the chain is as it was.
    """
    done = 0
    for disk in live.vm.machine.disks:
        plan = _plan(live, disk, base_layers)
        if plan is not None:
            await _shorten_disk(live, disk, plan, progress)
            done += 1
    return done


def _plan(live: LiveMachine, disk: Disk, base_layers: frozenset[str]) -> FlattenPlan | None:
    chain = live.rooms.layers.chain(disk.layer)
    base_depth = sum(1 for layer in chain if layer.id in base_layers)
    return plan_flatten(chain, base_depth, bound=live.rooms.limits.chain_bound - 1)


async def _shorten_disk(live: LiveMachine, disk: Disk, plan: FlattenPlan, progress: Progress | None) -> None:
    layers, merged = live.rooms.layers, new_id()
    async with live.rooms.book.operation("flatten", live.id, {"disk": disk.id, "layers": [merged]}):
        reach("flatten.journalled")
        with layers.hold(*plan.layers):
            await flatten(layers, plan.layers, plan.base, progress, layer_id=merged)
            reach("flatten.merged")
            # Should this fail half way, `merged` may be in use: it is left to collection, which knows.
            await _swap(live, disk, merged)
            reach("flatten.swapped")


async def _swap(live: LiveMachine, disk: Disk, merged: str) -> None:
    if live.vm.is_on:
        await _swap_live(live, disk, merged)
    else:
        set_backing_name(live.rooms.layers.path(disk.layer), live.rooms.layers.path(merged).name)


async def _swap_live(live: LiveMachine, disk: Disk, merged: str) -> None:
    """QEMU reads through the new layer from here on; its own hand writes that into the header of the top."""
    layers = live.rooms.layers
    former = [layer.id for layer in layers.chain(disk.layer)][1:]
    chain = tuple(LayerFile(layer.id, layers.path(layer.id), writable=False) for layer in layers.chain(merged))
    top = LayerFile(disk.layer, layers.path(disk.layer), writable=True)
    await live.qmp.reopen_backing(top, DiskChain(disk, chain))
    reach("flatten.reopened")
    await live.qmp.execute(
        "change-backing-file",
        {
            "device": format_node(disk.layer),
            "image-node-name": format_node(disk.layer),
            "backing-file": layers.path(merged).name,
        },
    )
    await live.qmp.del_nodes([layer_id for layer_id in former if layer_id not in {layer.id for layer in chain}])
