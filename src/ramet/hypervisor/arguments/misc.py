"""What is left: identity, random numbers, migration, and how QEMU itself behaves."""

from __future__ import annotations

from ramet.hypervisor.arguments import pci
from ramet.hypervisor.arguments.options import json_option, listed
from ramet.hypervisor.version import SANDBOX, Qemu
from ramet.model.machine import Machine


def process_name(machine: Machine) -> str:
    """As ps and top show it; the kernel keeps 15 bytes."""
    return f"ramet:{machine.name}"[:15]


def behaviour(machine: Machine) -> list[str]:
    """No defaults, no configuration files. The process is named after the VM: the command line of a forked QEMU, as ps
    shows it, is its ancestor's, and its name is all that tells them apart."""
    return [
        *("-nodefaults", "-no-user-config"),
        *listed("-name", guest=machine.name, process=process_name(machine), debug_threads="on"),
        *listed("-msg", timestamp="on"),
    ]


def identity(machine: Machine) -> list[str]:
    return [
        *("-uuid", machine.uuid),
        *listed("-smbios", type=1, manufacturer="Ramet", product="Ramet VM", serial=machine.uuid, uuid=machine.uuid),
    ]


def random_generator() -> list[str]:
    device = {"driver": "virtio-rng-pci", "id": "rng0", "rng": "random0", **pci.root_slot(pci.RANDOM)}
    return [
        *json_option("-object", {"qom-type": "rng-builtin", "id": "random0"}),
        *json_option("-device", device),
    ]


def generation(qemu: Qemu, guid: str | None) -> list[str]:
    """The VM generation id (Microsoft's, by ACPI). Another one in a clone: on loading a state QEMU writes it into the
    guest's memory and notifies, upon which Linux 5.18 and later (CONFIG_VMGENID) reseed the kernel's random generator.
    """
    if guid is None or "vmgenid" not in qemu.devices:
        return []
    return listed("-device", "vmgenid", id="generation", guid=guid)


def migration(qemu: Qemu) -> list[str]:
    argv: list[str] = []
    for setting in qemu.migration_globals:
        argv += ["-global", setting]
    return argv


def sandbox() -> list[str]:
    """Only for a QEMU that is launched: a fork inherits the filter, and a second one would stack on it."""
    return ["-sandbox", SANDBOX]
