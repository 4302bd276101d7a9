"""Where every device sits on the PCI bus. Fixed for all machines, so that a clone's hardware is its source's.

On q35 a device can be plugged into, or out of, a running guest only behind a PCIe root port. Eight ports are there from
the start, each bound to one id: they cost a guest about a quarter of a second of boot under emulation, and more would
cost more. Devices with higher ids come and go while the VM is off. They have ports, too, made only for them: a guest
finds what is on the root bus before what is behind ports, and a fifth disk there would become its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramet.hypervisor.arguments.options import json_option
from ramet.model.machine import Machine

VIDEO = 0x01
CHANNELS = 0x02
RANDOM = 0x03
BALLOON = 0x04
SCSI = 0x05
USB = 0x06
_PORTS = 0x07
_MORE_NIC_PORTS = 0x08
_MORE_DISK_PORTS = 0x09
_FUNCTIONS = 8

HOTPLUG_NICS = 4
"""net0 to net3 sit behind a port that is always there."""
HOTPLUG_DISKS = 4
"""disk0 to disk3 do."""

_CHASSIS_OF_MORE_NICS = 1 + HOTPLUG_NICS + HOTPLUG_DISKS
_CHASSIS_OF_MORE_DISKS = 64
"""Any number that no other port has."""


def root_ports(machine: Machine) -> list[str]:
    """The eight root ports that are always there, functions of one slot, and those of devices with higher ids.

    Without a first function a guest does not look for the others of a slot, so there are ports for gaps as well.
    """
    nics = max((nic.index for nic in machine.nics), default=0)
    disks = max((disk.index for disk in machine.disks if not disk.is_efivars), default=0)
    ports = [f"port-net{n}" for n in range(HOTPLUG_NICS)] + [f"port-disk{n}" for n in range(HOTPLUG_DISKS)]
    argv = _ports(ports, _PORTS, 1)
    argv += _ports([f"port-net{n}" for n in range(HOTPLUG_NICS, nics + 1)], _MORE_NIC_PORTS, _CHASSIS_OF_MORE_NICS)
    return argv + _ports(
        [f"port-disk{n}" for n in range(HOTPLUG_DISKS, disks + 1)], _MORE_DISK_PORTS, _CHASSIS_OF_MORE_DISKS
    )


def _ports(ids: Sequence[str], first_slot: int, first_chassis: int) -> list[str]:
    argv: list[str] = []
    for index, port in enumerate(ids):
        slot, function = divmod(index, _FUNCTIONS)
        argv += json_option(
            "-device",
            {
                "driver": "pcie-root-port",
                "id": port,
                "bus": "pcie.0",
                "addr": f"{first_slot + slot:#x}.{function}",
                "multifunction": True,
                "chassis": first_chassis + index,
                "slot": first_chassis + index,
                # I/O space is 64 KiB for the whole machine, and firmware would give each empty port 4 of them.
                "io-reserve": 0,
            },
        )
    return argv


def root_slot(slot: int) -> dict[str, Any]:
    """Where a built-in device sits."""
    return {"bus": "pcie.0", "addr": f"{slot:#x}"}


def nic_slot(index: int) -> dict[str, Any]:
    return {"bus": f"port-net{index}", "addr": "0x0"}


def disk_slot(index: int) -> dict[str, Any]:
    return {"bus": f"port-disk{index}", "addr": "0x0"}
