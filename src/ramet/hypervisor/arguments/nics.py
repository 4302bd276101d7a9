"""Network cards and what they are plugged into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ramet.hypervisor.arguments import pci
from ramet.hypervisor.arguments.options import json_option
from ramet.model.machine import Nic, NicModel

DRIVERS = {NicModel.VIRTIO: "virtio-net-pci", NicModel.E1000E: "e1000e", NicModel.VMXNET3: "vmxnet3"}


@dataclass(frozen=True, slots=True)
class NicBackend:
    """What a NIC is plugged into on the host: a tap, or, without one, QEMU's user-mode network."""

    nic_id: str
    tap_fd: int | None


def netdev_id(nic_id: str) -> str:
    return f"host-{nic_id}"


def netdev(nic_id: str, tap: str | None) -> dict[str, Any]:
    """The host side of a NIC. `tap`: number or name of a descriptor, None for user mode.

    vhost stays off: it would read guest RAM through the file that QEMU believes it to be, and that file is empty.
    """
    common: dict[str, Any] = {"id": netdev_id(nic_id)}
    if tap is None:
        return {"type": "user", **common, "ipv6": False}
    return {"type": "tap", **common, "fd": tap, "vhost": False}


def device(nic: Nic) -> dict[str, Any]:
    """The card, for ``-device`` and ``device_add`` alike. No option ROM: nothing boots from the network."""
    properties: dict[str, Any] = {
        "driver": DRIVERS[nic.model],
        "id": nic.id,
        "netdev": netdev_id(nic.id),
        "mac": nic.mac,
        "romfile": "",
        **pci.nic_slot(nic.index),
    }
    if nic.model is NicModel.VIRTIO:
        # A clone must not tell the network, on its first run, that its source's address moved to it.
        properties["guest_announce"] = False
    return properties


def arguments(nics: Iterable[Nic], taps: dict[str, int | None]) -> list[str]:
    """``-netdev`` and ``-device`` of every NIC; `taps`: descriptor number by NIC id, None for user mode."""
    argv: list[str] = []
    for nic in nics:
        tap = taps[nic.id]
        argv += json_option("-netdev", netdev(nic.id, None if tap is None else str(tap)))
        argv += json_option("-device", device(nic))
    return argv
