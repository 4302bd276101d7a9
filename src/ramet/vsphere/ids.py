"""How managed objects are named. Most ids follow from what they stand for, so nothing about them is kept.

vm_moid("3f00a1b2c2ba") -> "vm-1057006002"     vm_id("vm-1057006002") -> "3f00a1b2c2ba"
task_moid(task_id), folder_moid(folder_id), network_moid(name), nic_key(nic), disk_key(disk)
VM_FOLDER, HOST, …                          those of the fixed objects
"""

from __future__ import annotations

import hashlib
import uuid

from ramet.model.machine import Disk, Nic, Vm
from ramet.model.vm_ids import VM_NUMBERS, numbered_vm_id, vm_number

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
_UNNUMBERED = 16**_ID_DIGITS
_LONGEST = len(str(2 * _UNNUMBERED))
_INSTANCES = uuid.UUID("6f1d2a34-0d6c-5c57-9d53-5b0a0c6e7a11")


def vm_moid(vm_id: str) -> str:
    """With the VM's number; of an id that stands for none, with all of it, which is larger than those."""
    number, whole = vm_number(vm_id), int(vm_id, 16)
    if number is None:
        number = whole + _UNNUMBERED if whole in VM_NUMBERS else whole
    return f"vm-{number}"


def vm_id(moid: str) -> str | None:
    """The id of the VM that a moid stands for; None when it stands for none."""
    number = _number_of(moid, "vm-")
    if number is None or number in VM_NUMBERS:
        return None if number is None else numbered_vm_id(number)
    whole = number - _UNNUMBERED if number - _UNNUMBERED in VM_NUMBERS else number
    return f"{whole:0{_ID_DIGITS}x}" if whole < _UNNUMBERED else None


def task_moid(task_id: str) -> str:
    return f"task-{int(task_id, 16)}"


def task_id(moid: str) -> str | None:
    number = _number_of(moid, "task-")
    return f"{number:0{_ID_DIGITS}x}" if number is not None and number < _UNNUMBERED else None


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


def _number_of(moid: str, prefix: str) -> int | None:
    number = moid.removeprefix(prefix)
    if not moid.startswith(prefix) or not (number.isascii() and number.isdigit()) or len(number) > _LONGEST:
        return None
    return int(number)
