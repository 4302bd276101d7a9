"""How managed objects are named. Most ids follow from what they stand for, so nothing about them is kept.

vm_moid("3f00…") -> "vm-69269232549888"     vm_id("vm-69269232549888") -> "3f00…"
task_moid(task_id), folder_moid(folder_id), network_moid(name), nic_key(nic), disk_key(disk)
VM_FOLDER, HOST, …                          those of the fixed objects
"""

from __future__ import annotations

import hashlib
import uuid

from ramet.model.machine import Disk, Nic, Vm

SERVICE_INSTANCE = "ServiceInstance"
ROOT_FOLDER = "group-d1"
DATACENTER = "datacenter-2"
VM_FOLDER = "group-v3"
HOST_FOLDER = "group-h4"
DATASTORE_FOLDER = "group-s5"
NETWORK_FOLDER = "group-n6"
COMPUTE_RESOURCE = "domain-s7"
RESOURCE_POOL = "resgroup-8"
HOST = "host-9"
DATASTORE = "datastore-10"
ENVIRONMENT_BROWSER = "envbrowser-7"
DATASTORE_BROWSER = "datastoreBrowser-datastore-10"
TASK_MANAGER = "TaskManager"
HOST_OPTIONS = "EsxHostAdvSettings-9"

DATACENTER_NAME = "ramet"
DATASTORE_NAME = "ramet"

PCI, IDE_FIRST, PS2, SIO, KEYBOARD, POINTING, VIDEO = 100, 200, 300, 400, 600, 700, 500
SCSI_FIRST, DISK_FIRST, CDROM_FIRST, NIC_FIRST, SERIAL = 1000, 2000, 3000, 4000, 9000
"""Keys of virtual devices, as the original counts them."""

_ID_DIGITS = 12
_INSTANCES = uuid.UUID("6f1d2a34-0d6c-5c57-9d53-5b0a0c6e7a11")


def vm_moid(vm_id: str) -> str:
    return f"vm-{int(vm_id, 16)}"


def vm_id(moid: str) -> str | None:
    """The id of the VM that a moid stands for; None when it stands for none."""
    return _id_of(moid, "vm-")


def task_moid(task_id: str) -> str:
    return f"task-{int(task_id, 16)}"


def task_id(moid: str) -> str | None:
    return _id_of(moid, "task-")


def folder_moid(folder_id: str) -> str:
    """Of a VM folder that somebody made."""
    return f"group-v{int(folder_id, 16)}"


def network_moid(name: str) -> str:
    return f"network-{int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], 'big')}"


def instance_uuid(vm: Vm) -> str:
    """What tells a VM from all others, its copies included, unless a client has set another."""
    return str(uuid.uuid5(_INSTANCES, vm.id))


def nic_key(nic: Nic) -> int:
    return NIC_FIRST + nic.index


def disk_key(disk: Disk) -> int:
    return DISK_FIRST + disk.index


def _id_of(moid: str, prefix: str) -> str | None:
    number = moid.removeprefix(prefix)
    if not moid.startswith(prefix) or not (number.isascii() and number.isdigit()) or len(number) > 15:
        return None
    found = f"{int(number):0{_ID_DIGITS}x}"
    return found if len(found) == _ID_DIGITS else None
