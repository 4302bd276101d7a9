"""Ids of managed objects lead back to what they stand for, and to nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.model.machine import Disk, Machine, Nic, Vm
from ramet.model.vm_ids import VM_NUMBERS, new_vm_id, numbered_vm_id, vm_number
from ramet.vsphere import ids

HEX = st.text("0123456789abcdef", min_size=12, max_size=12)


@given(HEX)
def test_every_id_has_its_moid(one: str) -> None:
    assert ids.vm_id(ids.vm_moid(one)) == one
    assert ids.task_id(ids.task_moid(one)) == one
    assert ids.vm_id(ids.task_moid(one)) is None


@given(st.integers(0, 2**31 - 1))
def test_a_vm_has_a_number_that_an_int_of_c_holds(number: int) -> None:
    one = numbered_vm_id(number)
    assert ids.vm_moid(one) == f"vm-{number}"
    assert ids.vm_id(f"vm-{number}") == one


def test_a_new_id_has_a_number_and_is_not_taken() -> None:
    asked: list[str] = []

    def is_taken(one: str) -> bool:
        asked.append(one)
        return len(asked) < 3

    assert new_vm_id(is_taken) == asked[2]
    assert len(set(asked)) == 3
    assert all(vm_number(one) in VM_NUMBERS for one in asked)


@pytest.mark.parametrize("number", [-1, 2**31])
def test_there_are_no_other_numbers(number: int) -> None:
    with pytest.raises(ValueError, match="31 bits"):
        numbered_vm_id(number)


@pytest.mark.parametrize(
    "moid",
    ["", "vm-", "vm--1", "vm-x", "vm-1.5", "vm-٣", "vm-" + "9" * 40, "task-1", "VM-1", "vm-999999999999999",
     f"vm-{16**12 + 2**31}"],
)
def test_what_is_no_moid_of_a_vm_stands_for_none(moid: str) -> None:
    assert ids.vm_id(moid) is None


@given(st.text(min_size=1, max_size=63))
def test_a_network_has_one_moid_that_looks_like_one(name: str) -> None:
    kind, _, number = ids.network_moid(name).partition("-")
    assert kind == "network"
    assert number.isdigit()
    assert ids.network_moid(name) == ids.network_moid(name)


def test_keys_of_devices_are_the_originals() -> None:
    assert ids.nic_key(Nic(id="net3")) == 4003
    assert ids.disk_key(Disk(id="disk1", layer="x", size_bytes=1)) == 2001


def test_copies_of_a_machine_are_told_apart() -> None:
    machine = Machine(name="same")
    one, other = Vm(machine=machine), Vm(machine=machine)
    assert ids.instance_uuid(one) == ids.instance_uuid(one)
    assert ids.instance_uuid(one) != ids.instance_uuid(other)
