"""Where every device sits on the PCI bus. Fixed for all machines, so that a clone's hardware is its source's.

On q35 a device can be plugged into, or out of, a running guest only behind a PCIe root port. Eight ports are there from
the start, each bound to one id: they cost a guest about a quarter of a second of boot under emulation, and more would
cost more. Devices with higher ids sit on the root bus, and come and go while the VM is off.
"""

from __future__ import annotations

from typing import Any

from ramet.hypervisor.arguments.options import json_option

VIDEO = 0x01
CHANNELS = 0x02
RANDOM = 0x03
BALLOON = 0x04
SCSI = 0x05
USB = 0x06
_PORTS = 0x07
_FIRST_COLD_NIC = 0x08
_FIRST_COLD_DISK = 0x0C

HOTPLUG_NICS = 4
"""net0 to net3 sit behind a root port."""
HOTPLUG_DISKS = 4
"""disk0 to disk3 do."""


def root_ports() -> list[str]:
    """The eight root ports, functions of one slot."""
    argv: list[str] = []
    for index, port in enumerate(_port_ids()):
        argv += json_option(
            "-device",
            {
                "driver": "pcie-root-port",
                "id": port,
                "bus": "pcie.0",
                "addr": f"{_PORTS:#x}.{index}",
                "multifunction": True,
                "chassis": index + 1,
                "slot": index + 1,
                # I/O space is 64 KiB for the whole machine, and firmware would give each empty port 4 of them.
                "io-reserve": 0,
            },
        )
    return argv


def root_slot(slot: int) -> dict[str, Any]:
    """Where a built-in device sits."""
    return {"bus": "pcie.0", "addr": f"{slot:#x}"}


def nic_slot(index: int) -> dict[str, Any]:
    if index < HOTPLUG_NICS:
        return {"bus": f"port-net{index}", "addr": "0x0"}
    return root_slot(_FIRST_COLD_NIC + index - HOTPLUG_NICS)


def disk_slot(index: int) -> dict[str, Any]:
    if index < HOTPLUG_DISKS:
        return {"bus": f"port-disk{index}", "addr": "0x0"}
    return root_slot(_FIRST_COLD_DISK + index - HOTPLUG_DISKS)


def _port_ids() -> list[str]:
    nics = [f"port-net{index}" for index in range(HOTPLUG_NICS)]
    return [*nics, *(f"port-disk{index}" for index in range(HOTPLUG_DISKS))]
