"""Ids of VMs: 12 hex digits that stand for a number of 31 bits.

Tools for vSphere know a VM as `vm-NUMBER`, and some keep the number as an int of C: libvirt's driver refuses larger
ones. So the first 8 digits are the number, and the other 4 follow from them, which tells such an id from those with 48
random bits that were given out before.

    new_vm_id() -> "3f00a1b2c2ba"
    vm_number("3f00a1b2c2ba") -> 1057006002      # None of an id of before
    numbered_vm_id(1057006002) -> "3f00a1b2c2ba"
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Final

VM_NUMBERS: Final = range(1 << 31)


def new_vm_id(is_taken: Callable[[str], bool] = lambda _: False) -> str:
    """A fresh one. By chance one of 2^31 others has it: say which are taken."""
    while True:
        vm_id = numbered_vm_id(secrets.randbelow(VM_NUMBERS.stop))
        if not is_taken(vm_id):
            return vm_id


def numbered_vm_id(number: int) -> str:
    """Raises ValueError for a number that is none of VM_NUMBERS."""
    if number not in VM_NUMBERS:
        raise ValueError(f"{number} is not a number of 31 bits")
    head = f"{number:08x}"
    return head + hashlib.sha256(head.encode()).hexdigest()[:4]


def vm_number(vm_id: str) -> int | None:
    """None of an id that stands for no number."""
    number = int(vm_id[:8], 16)
    return number if number in VM_NUMBERS and numbered_vm_id(number) == vm_id else None
