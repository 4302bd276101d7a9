"""CD-ROM drives, on virtio-scsi: the kernels of cloud images have that driver, and none for SATA."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.hypervisor.arguments import pci
from ramet.hypervisor.arguments.options import json_option


def arguments(fdset_ids: Sequence[int]) -> list[str]:
    """A controller and a drive for each disc, when there is any."""
    if not fdset_ids:
        return []
    argv = json_option("-device", {"driver": "virtio-scsi-pci", "id": "scsi0", **pci.root_slot(pci.SCSI)})
    for index, fdset_id in enumerate(fdset_ids):
        name = f"cdrom{index}"
        argv += json_option(
            "-blockdev",
            {
                "driver": "file",
                "node-name": f"{name}-file",
                "filename": f"/dev/fdset/{fdset_id}",
                "read-only": True,
                "auto-read-only": False,
            },
        )
        argv += json_option(
            "-blockdev", {"driver": "raw", "node-name": f"{name}-raw", "file": f"{name}-file", "read-only": True}
        )
        argv += json_option(
            "-device",
            {
                "driver": "scsi-cd",
                "id": name,
                "bus": "scsi0.0",
                "scsi-id": index,
                "drive": f"{name}-raw",
                "bootindex": 40 + index,
            },
        )
    return argv
