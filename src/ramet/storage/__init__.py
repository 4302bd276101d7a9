"""Disks: qcow2 layers in one directory, their chains, flattening, import and export."""

from ramet.storage.flatten import DEFAULT_BOUND, FlattenPlan, flatten, plan_flatten
from ramet.storage.images import ExportFormat, ImportedDisk, adopt_disk, export, grow, import_file
from ramet.storage.layers import Layer, LayerStore
from ramet.storage.qcow2 import Header, is_pristine, read_header, set_backing_name, write_empty_overlay
from ramet.storage.runner import Limits, Progress, ToolResult, in_thread, run_tool

__all__ = [
    "DEFAULT_BOUND",
    "ExportFormat",
    "FlattenPlan",
    "Header",
    "ImportedDisk",
    "Layer",
    "LayerStore",
    "Limits",
    "Progress",
    "ToolResult",
    "adopt_disk",
    "export",
    "flatten",
    "grow",
    "import_file",
    "in_thread",
    "is_pristine",
    "plan_flatten",
    "read_header",
    "run_tool",
    "set_backing_name",
    "write_empty_overlay",
]
