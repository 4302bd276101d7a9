"""Disks as QEMU sees them: for every layer a file node and, on top of it, a qcow2 node with its backing spelled out.

The same descriptions serve the command line (``-blockdev``) and the monitor (``blockdev-add``, ``blockdev-reopen``).
Nothing is ever taken from a backing file string: those name files that QEMU may not open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.model.machine import Disk

_MAX_NODE_NAME = 31
"""QEMU's BDRV node names are char[32]."""

WRITABLE_SUFFIX = ":rw"


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One layer of a disk. Only the topmost layer of a chain may be writable."""

    id: str
    path: Path
    writable: bool


@dataclass(frozen=True, slots=True)
class DiskChain:
    """A disk and its layers, topmost first."""

    disk: Disk
    layers: tuple[LayerFile, ...]

    @property
    def top(self) -> LayerFile:
        return self.layers[0]

    def with_backing(self) -> tuple[tuple[LayerFile, str | None], ...]:
        """Each layer with its parent's id, bottom first: the order in which nodes are made."""
        parents = (*(layer.id for layer in self.layers[1:]), None)
        return tuple(reversed(list(zip(self.layers, parents, strict=True))))


def file_node(layer_id: str) -> str:
    """Name of the node that reads and writes the file of a layer."""
    return _node("f", layer_id)


def format_node(layer_id: str) -> str:
    """Name of the node that understands a layer: what devices and other layers refer to."""
    return _node("q", layer_id)


def _node(prefix: str, layer_id: str) -> str:
    name = f"{prefix}-{layer_id}"
    if len(name) <= _MAX_NODE_NAME:
        return name
    return f"{prefix}-{hashlib.sha256(layer_id.encode()).hexdigest()[: _MAX_NODE_NAME - len(prefix) - 1]}"


def writable_opaque(layer_id: str) -> str:
    """The label, in a descriptor set, of the one descriptor that can write; the others carry the file node's name."""
    return file_node(layer_id) + WRITABLE_SUFFIX


def file_options(layer: LayerFile, fdset_id: int) -> dict[str, Any]:
    """The file node of a layer whose descriptors are in a descriptor set.

    auto-read-only stays off: with it QEMU opens both descriptors of a writable layer and, when the layer becomes a
    backing file, drops the lock of one only, so that no clone could open the layer.
    """
    return {
        "driver": "file",
        "node-name": file_node(layer.id),
        "filename": f"/dev/fdset/{fdset_id}",
        "read-only": not layer.writable,
        "auto-read-only": False,
        "aio": "threads",
        "cache": {"direct": False, "no-flush": False},
        "discard": "unmap",
    }


def format_options(layer: LayerFile, backing_id: str | None) -> dict[str, Any]:
    """The qcow2 node of a layer over the layer `backing_id`, or over nothing."""
    return {
        "driver": "qcow2",
        "node-name": format_node(layer.id),
        "file": file_node(layer.id),
        "backing": format_node(backing_id) if backing_id is not None else None,
        "read-only": not layer.writable,
        "auto-read-only": False,
        "cache": {"direct": False, "no-flush": False},
        "discard": "unmap",
        "detect-zeroes": "off",
    }


def distinct_layers(chains: Iterable[DiskChain]) -> tuple[tuple[LayerFile, str | None], ...]:
    """Every layer of several disks once, parents first: two disks may come from the same image."""
    seen: dict[str, tuple[LayerFile, str | None]] = {}
    for chain in chains:
        for layer, backing_id in chain.with_backing():
            seen.setdefault(layer.id, (layer, backing_id))
    return tuple(seen.values())
