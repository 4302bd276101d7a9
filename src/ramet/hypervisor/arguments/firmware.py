"""BIOS or UEFI, and direct kernel boot."""

from __future__ import annotations

from ramet.hypervisor.arguments.options import json_option, listed
from ramet.hypervisor.blocknodes import DiskChain, format_node
from ramet.model.machine import Machine

CODE_NODE = "firmware-code"


def code(fdset_id: int) -> list[str]:
    """The firmware's code, read-only, shared by all. Its variables are the disk ``efivars``."""
    return [
        *json_option(
            "-blockdev",
            {
                "driver": "file",
                "node-name": f"{CODE_NODE}-file",
                "filename": f"/dev/fdset/{fdset_id}",
                "read-only": True,
                "auto-read-only": False,
            },
        ),
        *json_option(
            "-blockdev",
            {"driver": "raw", "node-name": CODE_NODE, "file": f"{CODE_NODE}-file", "read-only": True},
        ),
    ]


def flash(variables: DiskChain) -> dict[str, str]:
    """Properties of the board that name the two flash images."""
    return {"pflash0": CODE_NODE, "pflash1": format_node(variables.top.id)}


def boot_order() -> list[str]:
    """Only what was given a place in the order: never the network."""
    return listed("-boot", menu="off", strict="on")


def kernel(machine: Machine, kernel_path: str, initrd_path: str | None) -> list[str]:
    """Direct kernel boot. A forked QEMU goes without: the blobs would stay in its heap, and it boots nothing."""
    assert machine.kernel is not None
    argv = ["-kernel", kernel_path]
    if initrd_path is not None:
        argv += ["-initrd", initrd_path]
    if machine.kernel.append:
        argv += ["-append", machine.kernel.append]
    return argv
