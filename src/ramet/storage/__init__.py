"""Disks: qcow2 layers in one directory, their chains, flattening, import and export."""

from ramet.storage.layers import Layer, LayerStore
from ramet.storage.qcow2 import Header, is_pristine, read_header, set_backing_name, write_empty_overlay

__all__ = [
    "Header",
    "Layer",
    "LayerStore",
    "is_pristine",
    "read_header",
    "set_backing_name",
    "write_empty_overlay",
]
