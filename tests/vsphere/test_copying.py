"""Copies of VMs that are off, and what is left when one is cut off."""

from __future__ import annotations

import pytest

from ramet.errors import CapacityError, ConflictError, DeadlineError, StateError, UsageError, from_dict
from ramet.host.service import Host
from ramet.machine import steps
from ramet.model.machine import Vm, VmState
from ramet.model.requests import CopyVm
from tests.vsphere.kit import record_vm


async def copied(host: Host, source: str, request: CopyVm) -> Vm:
    task = await host.tasks.wait((await host.copy_vm(source, request)).id, 30.0)
    if not task.state.is_final:
        raise DeadlineError("It takes too long.")
    if task.error is not None:
        raise from_dict(task.error)
    return host.floor.find(request.name).vm


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("step", steps.COPY_STEPS)
async def test_a_copy_that_fails_leaves_its_source_and_nothing_else(
    host: Host, step: str, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_vm(host, "golden", extra_config={"guestinfo.ramet.hostname": "golden"})

    def fail(reached: str) -> None:
        if reached == step:
            raise CapacityError("The disk is full.")

    monkeypatch.setattr(steps, "inject", fail)
    with pytest.raises(CapacityError):
        await copied(host, "golden", CopyVm(name="copy", linked=linked))
    monkeypatch.setattr(steps, "inject", None)
    assert [live.name for live in host.floor.shown()] == ["golden"]
    assert host.floor.inventory.journal.all() == []
    layers = host.floor.rooms.layers
    disk = host.floor.find("golden").vm.machine.disks[0]
    assert set(layers.ids()) == {layer.id for layer in layers.chain(disk.layer)}
    vm = await copied(host, "golden", CopyVm(name="copy", linked=linked, set_config={"a": "b"}, vcpus=2))
    assert vm.machine.extra_config == {"guestinfo.ramet.hostname": "copy", "a": "b"}
    assert (vm.machine.vcpus, vm.lineage) == (2, None)


async def test_copies_of_copies_share_what_nobody_writes_to(host: Host) -> None:
    await record_vm(host, "golden")
    first = await copied(host, "golden", CopyVm(name="first"))
    second = await copied(host, "golden", CopyVm(name="second"))
    layers = host.floor.rooms.layers
    (one, two) = ([layer.id for layer in layers.chain(vm.machine.disks[0].layer)] for vm in (first, second))
    assert one[1:] == two[1:]
    assert layers.depth(host.floor.find("golden").vm.machine.disks[0].layer) == 2, "an unwritten overlay serves again"


async def test_only_what_is_off_is_copied_and_under_a_name_that_is_free(host: Host) -> None:
    await record_vm(host, "golden")
    live = host.floor.find("golden")
    with pytest.raises(ConflictError):
        await host.copy_vm("golden", CopyVm(name="golden"))
    await live.change(state=VmState.SUSPENDED)
    with pytest.raises(StateError, match="suspended"):
        await host.copy_vm("golden", CopyVm(name="copy"))
    await live.change(state=VmState.OFF)
    with pytest.raises(UsageError, match="configuration key"):
        await host.copy_vm("golden", CopyVm(name="copy", set_config={"a b": ""}))
