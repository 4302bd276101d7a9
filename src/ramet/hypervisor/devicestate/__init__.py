"""A VM's device state as QEMU writes it: read what is in it, and give a clone its own network addresses."""

from ramet.hypervisor.devicestate.description import Description, Device, FieldSpan
from ramet.hypervisor.devicestate.macs import Patch, mac_patches, replace_macs
from ramet.hypervisor.devicestate.stream import DeviceState, Section, SectionKind, parse

__all__ = [
    "Description",
    "Device",
    "DeviceState",
    "FieldSpan",
    "Patch",
    "Section",
    "SectionKind",
    "mac_patches",
    "parse",
    "replace_macs",
]
