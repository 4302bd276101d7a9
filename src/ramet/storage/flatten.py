"""Keeping chains short: several immutable layers become one, while everybody goes on using the old ones.

qemu-img works in a process of its own on a copy, so no lock of a running VM is touched and nothing is committed into a
layer that others share. Swapping a VM over to the result is up to the machine: `set_backing_name` for one that is off;
for one that runs, blockdev-reopen *and* change-backing-file, as the former leaves the header's name alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ramet.errors import UsageError
from ramet.model.units import new_id
from ramet.storage import qcow2, qemu_img
from ramet.storage.layers import Layer, LayerStore, full_disk, full_disk_told
from ramet.storage.runner import Progress, in_thread, run_tool

DEFAULT_BOUND = 8
_SPARE_BYTES = 64 << 20
"""Left free beside what a flattening may need: the VMs that run want to write meanwhile."""


@dataclass(frozen=True, slots=True)
class FlattenPlan:
    """Merge `layers` (immutable, topmost first) into one over `base`; then the layer above them stands on that."""

    layers: tuple[str, ...]
    base: str | None
    bytes_to_copy: int


def plan_flatten(chain: Sequence[Layer], base_depth: int, bound: int = DEFAULT_BOUND) -> FlattenPlan | None:
    """What to merge so that a VM's chain has at most `bound` layers; None when it has, or nothing can be merged.

    `chain` is topmost first and begins with the VM's own writable layer, which stays; so do the `base_depth` lowest,
    an image's own, which other VMs share. Merged is a run directly under the writable layer, since only that layer's
    backing file can be changed without touching others. It frees two places more than it must, and goes on while the
    next layer is no larger than twice what is merged already: old large layers are seldom copied again. (For a guest
    that never writes a block twice, 1000 clones copy each byte 6 times; down to half the bound it would be 20 times.)
    """
    middle = chain[1 : len(chain) - base_depth]
    if len(chain) <= bound or len(middle) < 2:
        return None
    target = max(bound - 2, base_depth + 2)
    count = min(max(len(chain) - target + 1, 2), len(middle))
    copied = sum(layer.bytes_on_disk for layer in middle[:count])
    while count < len(middle) and middle[count].bytes_on_disk <= 2 * copied:
        copied += middle[count].bytes_on_disk
        count += 1
    merged = middle[:count]
    return FlattenPlan(tuple(layer.id for layer in merged), merged[-1].parent, copied)


async def flatten(
    store: LayerStore,
    chain_ids: Sequence[str],
    base_id: str | None,
    progress: Progress | None = None,
    *,
    layer_id: str | None = None,
    timeout_s: float = qemu_img.CONVERT_TIMEOUT_S,
) -> Layer:
    """A new immutable layer that reads, over `base_id`, as the layers `chain_ids` (topmost first) do.

    With `base_id` None the ids are the whole chain, and the result has no parent. The inputs must be immutable, and
    stay as they are; this keeps them from `LayerStore.collect` meanwhile. `layer_id` lets the caller journal the
    result's name first. Cancelling ends it within seconds. On any failure nothing is left.
    Raises CapacityError before it starts when room is short, UsageError when the ids are no chain, ToolError.
    """
    if not chain_ids:
        raise UsageError("There is nothing to flatten.")
    chain = store.chain(chain_ids[0])
    deltas = _deltas(chain, chain_ids, base_id)
    _check_room(store, deltas)
    with store.hold(chain_ids[0]), store.temporary() as temporary:
        if base_id is None:
            report = qemu_img.PercentParser(progress).feed
            node = qemu_img.chain_node(store, chain)
            await qemu_img.convert(node, temporary, "qcow2", report=report, timeout_s=timeout_s)
        else:
            await _merge(store, deltas, base_id, temporary, progress, timeout_s)
        return await finish(store, temporary, layer_id)


async def finish(store: LayerStore, temporary: Path, layer_id: str | None) -> Layer:
    """Sync a finished file, give it its name, sync the name; all of it or nothing."""
    publish = partial(store.publish, temporary, layer_id or new_id(), sync=True)
    with full_disk_told(store):
        return await in_thread(publish, undo=lambda layer: store.path(layer.id).unlink())


def _deltas(chain: Sequence[Layer], chain_ids: Sequence[str], base_id: str | None) -> Sequence[Layer]:
    found = [layer.id for layer in chain]
    wanted = [*chain_ids, *([base_id] if base_id is not None else [])]
    if wanted != (found[: len(wanted)] if base_id is not None else found):
        raise UsageError(f"The layers {', '.join(chain_ids)} are no chain over {base_id or 'nothing'}.")
    return chain[: len(chain_ids)]


def _check_room(store: LayerStore, deltas: Sequence[Layer]) -> None:
    needed = sum(layer.bytes_on_disk for layer in deltas) + _SPARE_BYTES
    if store.free_bytes() < needed:
        raise full_disk(store, needed)


async def _merge(
    store: LayerStore,
    deltas: Sequence[Layer],
    base_id: str,
    temporary: Path,
    progress: Progress | None,
    timeout_s: float,
) -> None:
    """Copy the topmost delta, and let qemu-img rebase pull in what the lower ones hold."""
    copied = 100.0 * deltas[0].bytes_on_disk / (sum(layer.bytes_on_disk for layer in deltas) or 1)
    source = str(store.path(deltas[0].id))
    copy = ["cp", "--reflink=auto", "--sparse=auto", source, str(temporary)]
    await qemu_img.told(run_tool(copy, timeout_s=timeout_s, limits=qemu_img.BACKGROUND))
    if progress is not None:
        progress(copied)
    with store.temporary() as bridge:
        _write_bridge(store, bridge, deltas)
        qcow2.set_backing_name(temporary, bridge.name)
        report = qemu_img.PercentParser(progress, copied).feed
        await qemu_img.rebase(temporary, store.path(base_id).name, report=report, timeout_s=timeout_s)


def _write_bridge(store: LayerStore, bridge: Path, deltas: Sequence[Layer]) -> None:
    """An empty layer, of the topmost one's size, between it and the next.

    A disk may have grown from layer to layer, and releases of `qemu-img rebase` before its fix of 2023 loop for ever
    where the overlay is longer than its backing file.
    """
    under = store.path(deltas[0].parent or "").name
    fd = os.open(bridge, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        qcow2.write_empty_overlay(fd, deltas[0].size_bytes, under)
    finally:
        os.close(fd)
