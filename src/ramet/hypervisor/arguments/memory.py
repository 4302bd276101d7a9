"""Guest RAM and the balloon."""

from __future__ import annotations

from ramet.hypervisor.arguments import pci
from ramet.hypervisor.arguments.options import json_option, listed
from ramet.model.machine import Machine
from ramet.model.units import MIB

RAM_ID = "ram"


def ram(machine: Machine, ram_fd: int) -> list[str]:
    """Guest RAM as a shared, named file, which x-ignore-shared leaves out of the device state.

    merge=off: QEMU would offer it to KSM, which knows no domains. dump=off: no guest memory in a core dump.
    """
    backend = {
        "qom-type": "memory-backend-file",
        "id": RAM_ID,
        "size": machine.memory_mib * MIB,
        "mem-path": f"/proc/self/fd/{ram_fd}",
        "share": True,
        "merge": False,
        "dump": False,
        "prealloc": False,
    }
    return [*listed("-m", size=f"{machine.memory_mib}M"), *json_option("-object", backend)]


def balloon() -> list[str]:
    """How a guest gives memory back: what it freed, by itself (free page reporting, QEMU 5.1 and Linux 5.7), and what
    it is asked for. A guest that would have to end a program takes memory back from the balloon first (deflate-on-oom;
    its MemTotal then stays as it is).

    The state of a source that was started without these features loads: the guest of that clone has not agreed on them,
    and gets them when it boots.
    """
    device = {
        "driver": "virtio-balloon-pci",
        "id": "balloon0",
        "free-page-reporting": True,
        "deflate-on-oom": True,
        **pci.root_slot(pci.BALLOON),
    }
    return json_option("-device", device)
