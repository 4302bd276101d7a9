"""Copies of VMs that are off, and what is left when one is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ramet.errors import CapacityError, ConflictError, DeadlineError, NotFoundError, StateError, UsageError, from_dict
from ramet.host.copying import Shaping
from ramet.host.journal import Journal
from ramet.host.service import Host
from ramet.host.sqlite_store import SqliteStore
from ramet.host.tasks import TaskHandle
from ramet.machine import steps
from ramet.model.host import TaskState
from ramet.model.machine import Vm, VmState
from ramet.model.requests import ChangeVm, CopyVm
from tests.vsphere.kit import record_vm


async def copied(host: Host, source: str, request: CopyVm, shaping: Shaping | None = None) -> Vm:
    task = await host.tasks.wait((await host.copy_vm(source, request, shaping=shaping)).id, 30.0)
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


# -- copies that are reshaped before anybody sees them -----------------------------------------------------------------


class Shaper:
    """Reshapes a copy, and stops in the middle of it until it is told to go on."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.id = host.floor.rooms.book.new_vm_id()
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    @property
    def shaping(self) -> Shaping:
        return Shaping(self.id, self._shape)

    async def _shape(self, _: TaskHandle) -> None:
        await self._host.change_vm(self.id, ChangeVm(vcpus=2))
        self.reached.set()
        await self.go_on.wait()


def emitted(host: Host) -> list[str]:
    return [event.kind for event in host.events.recent() if event.vm_name == "copy"]


async def test_a_copy_is_nobodys_before_it_is_whole(host: Host) -> None:
    await record_vm(host, "golden")
    shaper = Shaper(host)
    copying = asyncio.create_task(copied(host, "golden", CopyVm(name="copy"), shaper.shaping))
    async with asyncio.timeout(30):
        await shaper.reached.wait()
    assert [vm.name for vm in await host.list_vms()] == ["golden"]
    for ref in ("copy", shaper.id[:6]):
        with pytest.raises(NotFoundError):
            await host.start_vm(ref)
    with pytest.raises(ConflictError):
        await host.copy_vm("golden", CopyVm(name="copy"))
    assert emitted(host) == []
    shaper.go_on.set()
    vm = await copying
    assert (vm.id, vm.machine.vcpus, vm.provisional) == (shaper.id, 2, False)
    assert [vm.name for vm in await host.list_vms()] == ["copy", "golden"]
    assert emitted(host) == ["vm.created"]


@pytest.mark.parametrize("linked", [True, False])
async def test_a_copy_whose_shaping_is_cancelled_is_gone(host: Host, linked: bool) -> None:
    await record_vm(host, "golden")
    before = set(host.floor.rooms.layers.ids())
    shaper = Shaper(host)
    task = await host.copy_vm("golden", CopyVm(name="copy", linked=linked), shaping=shaper.shaping)
    async with asyncio.timeout(30):
        await shaper.reached.wait()
    await host.tasks.cancel(task.id)
    ended = await host.tasks.wait(task.id, 30.0)
    assert ended.state is TaskState.CANCELLED
    await nothing_is_left_of_it(host, before)


async def test_a_copy_that_is_cancelled_before_it_is_shaped_is_gone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is recorded; what was written down of its making is being erased."""
    await record_vm(host, "golden")
    before = set(host.floor.rooms.layers.ids())
    erase, erasing, go_on = Journal.erase, asyncio.Event(), asyncio.Event()

    async def slow(self: Journal, entry_id: str) -> None:
        await erase(self, entry_id)
        erasing.set()
        await go_on.wait()

    monkeypatch.setattr(Journal, "erase", slow)
    shaper = Shaper(host)
    task = await host.copy_vm("golden", CopyVm(name="copy"), shaping=shaper.shaping)
    async with asyncio.timeout(30):
        await erasing.wait()
    monkeypatch.setattr(Journal, "erase", erase)
    assert shaper.id in host.floor.machines
    await host.tasks.cancel(task.id)
    assert (await host.tasks.wait(task.id, 30.0)).state is TaskState.CANCELLED
    await nothing_is_left_of_it(host, before)


async def test_a_copy_that_fills_the_disk_gives_it_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written by then, not even of what is to be removed."""
    await record_vm(host, "golden")
    before = set(host.floor.rooms.layers.ids())
    put_all, full = SqliteStore.put_all, False

    async def refused(self: SqliteStore, changes: Sequence[Any]) -> int:
        if full:
            raise CapacityError("The disk is full.")
        return await put_all(self, changes)

    monkeypatch.setattr(SqliteStore, "put_all", refused)
    shaper = Shaper(host)
    task = await host.copy_vm("golden", CopyVm(name="copy", linked=False), shaping=shaper.shaping)
    async with asyncio.timeout(30):
        await shaper.reached.wait()
    full = True
    shaper.go_on.set()
    ended = await host.tasks.wait(task.id, 30.0)
    assert (ended.state, ended.error is not None) == (TaskState.ERROR, True)
    assert set(host.floor.rooms.layers.ids()) == before
    assert [live.name for live in host.floor.machines.values()] == ["golden"]


async def nothing_is_left_of_it(host: Host, layers: set[str]) -> None:
    assert [live.name for live in host.floor.machines.values()] == ["golden"]
    assert [vm.name for vm in host.floor.inventory.vms()] == ["golden"]
    assert host.floor.inventory.journal.all() == []
    assert emitted(host) == []
    used = {layer.id for layer in host.floor.rooms.layers.chain(host.floor.find("golden").vm.machine.disks[0].layer)}
    assert set(host.floor.rooms.layers.ids()) == used >= layers
    assert (await copied(host, "golden", CopyVm(name="copy"))).name == "copy", "its name is free"


async def test_a_copy_that_cannot_be_settled_is_gone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await record_vm(host, "golden")
    before = set(host.floor.rooms.layers.ids())

    def fail(reached: str) -> None:
        if reached == steps.SETTLE_STEPS[0]:
            raise CapacityError("The disk is full.")

    monkeypatch.setattr(steps, "inject", fail)
    shaper = Shaper(host)
    shaper.go_on.set()
    with pytest.raises(CapacityError):
        await copied(host, "golden", CopyVm(name="copy"), shaper.shaping)
    monkeypatch.setattr(steps, "inject", None)
    await nothing_is_left_of_it(host, before)


async def test_what_fails_once_it_is_settled_leaves_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was seen: somebody may have taken it."""
    await record_vm(host, "golden")

    def fail(reached: str) -> None:
        if reached == steps.SETTLE_STEPS[1]:
            raise CapacityError("The disk is full.")

    monkeypatch.setattr(steps, "inject", fail)
    shaper = Shaper(host)
    shaper.go_on.set()
    with pytest.raises(CapacityError):
        await copied(host, "golden", CopyVm(name="copy"), shaper.shaping)
    assert host.floor.find("copy").vm.provisional is False
