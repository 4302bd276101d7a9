"""Disks: block nodes over descriptor sets, and virtio-blk devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ramet.hypervisor.arguments import pci
from ramet.hypervisor.arguments.options import json_option
from ramet.hypervisor.blocknodes import DiskChain, distinct_layers, file_options, format_node, format_options


def nodes(chains: Iterable[DiskChain], fdset_ids: Mapping[str, int]) -> list[str]:
    """``-blockdev`` for every layer, parents first. `fdset_ids`: descriptor set of each layer id."""
    argv: list[str] = []
    for layer, backing_id in distinct_layers(chains):
        argv += json_option("-blockdev", file_options(layer, fdset_ids[layer.id]))
        argv += json_option("-blockdev", format_options(layer, backing_id))
    return argv


def devices(chains: Iterable[DiskChain]) -> list[str]:
    argv: list[str] = []
    for chain in chains:
        if not chain.disk.is_efivars:
            argv += json_option("-device", device(chain))
    return argv


def device(chain: DiskChain) -> dict[str, Any]:
    """The virtio-blk device of a disk, for ``-device`` and ``device_add`` alike.

    A full or failing host stops the guest (werror), instead of showing it a broken disk: it goes on when there is room.
    """
    index = chain.disk.index
    return {
        "driver": "virtio-blk-pci",
        "id": chain.disk.id,
        "drive": format_node(chain.top.id),
        "serial": chain.disk.id,
        "write-cache": "on",
        "werror": "stop",
        "rerror": "stop",
        "bootindex": 10 + index,
        **pci.disk_slot(index),
    }
