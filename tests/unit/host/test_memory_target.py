"""A VM's memory target: what may be asked, and what becomes of it when the VM's memory changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ramet.errors import UsageError
from ramet.host.vms import _changes
from ramet.machine.balloon import wanted_bytes
from ramet.machine.live import LiveMachine
from ramet.model.machine import Machine
from ramet.model.requests import ChangeVm
from ramet.model.units import MIB


def live(target_mib: int | None = None) -> LiveMachine:
    machine = Machine(name="web", memory_mib=512, memory_target_mib=target_mib)
    return cast("LiveMachine", SimpleNamespace(name="web", vm=SimpleNamespace(machine=machine)))


def changed(one: LiveMachine, **request: Any) -> Machine:
    return one.vm.machine.changed(**_changes(one, ChangeVm(**request)))


def test_a_target_is_what_the_guest_is_to_have() -> None:
    assert wanted_bytes(live()) == 512 * MIB
    assert wanted_bytes(live(200)) == 200 * MIB


def test_a_target_is_set_lifted_and_kept() -> None:
    assert changed(live(), memory_target_mib=200).memory_target_mib == 200
    assert changed(live(200), memory_target_mib=0).memory_target_mib is None
    assert changed(live(200), name="db").memory_target_mib == 200


def test_it_is_never_more_than_the_vm_has() -> None:
    with pytest.raises(UsageError, match="has 512 MiB; a target can only be less"):
        changed(live(), memory_target_mib=600)
    with pytest.raises(UsageError, match="has 256 MiB"):
        changed(live(), memory_mib=256, memory_target_mib=300)
    assert changed(live(), memory_mib=1024, memory_target_mib=600).memory_target_mib == 600


def test_memory_that_shrinks_to_the_target_needs_none() -> None:
    assert changed(live(256), memory_mib=256).memory_target_mib is None
    assert changed(live(256), memory_mib=300).memory_target_mib == 256
