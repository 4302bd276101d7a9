"""Graphics card, VNC, and a pointer that knows where it is."""

from __future__ import annotations

from pathlib import Path

from ramet.hypervisor.arguments import pci
from ramet.hypervisor.arguments.options import json_option
from ramet.model.machine import Display, Machine

DRIVERS = {Display.VGA: "VGA", Display.VIRTIO: "virtio-vga"}


def arguments(machine: Machine, vnc: Path) -> list[str]:
    """No window ever: the picture goes to a VNC server on a local socket, which QEMU binds itself."""
    if machine.display is Display.NONE:
        return ["-display", "none", "-vga", "none"]
    return [
        *("-display", "none", "-vga", "none"),
        *json_option("-device", {"driver": DRIVERS[machine.display], "id": "video0", **pci.root_slot(pci.VIDEO)}),
        *json_option("-device", {"driver": "qemu-xhci", "id": "usb", "p2": 4, "p3": 4, **pci.root_slot(pci.USB)}),
        # VNC sends absolute positions: with the PS/2 mouse alone, pointers drift apart.
        *json_option("-device", {"driver": "usb-tablet", "id": "tablet0", "bus": "usb.0", "port": "1"}),
        *("-vnc", f"unix:{str(vnc).replace(',', ',,')}"),
    ]
