"""Page sharing switched on, kept and undone, with made-up processes and a made-up kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio

from ramet.errors import BusyError, CapacityError, ForkError, PrivilegeError, RametError, UnsupportedError
from ramet.host import sharing
from ramet.host.inventory import Inventory
from ramet.host.locks import VmLocks
from ramet.host.sharing import PACE, SETTING, SharingDesk
from ramet.host.sqlite_store import SqliteStore
from ramet.host.tasks import TaskManager
from ramet.hypervisor.fork import LibraryInfo
from ramet.memory.admission import Admission
from ramet.memory.ksm import KsmCounters
from ramet.model.host import Task, TaskState
from ramet.model.sharing import PageSharing, SetPageSharing
from ramet.model.units import GIB, MIB

ON, OFF = SetPageSharing(mode=PageSharing.HOST), SetPageSharing(mode=PageSharing.OFF)
BEFORE = {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 20}


class FakeKsm:
    """A kernel that has merged `merged` bytes of every process whose memory it may merge."""

    def __init__(self) -> None:
        self.values = dict(BEFORE)
        self.turned: list[dict[str, int]] = []
        self.problem: str | None = None
        self.exists = True
        self.merged: dict[int, int] = {}

    @property
    def is_running(self) -> bool:
        return self.values["run"] == 1

    def knobs(self) -> dict[str, int]:
        return dict(self.values)

    def turn(self, knobs: dict[str, int]) -> None:
        self.turned.append(dict(knobs))
        self.values |= knobs

    def cpu_s(self) -> float:
        return 3.0

    def counters(self) -> KsmCounters:
        if not self.exists:
            raise FileNotFoundError
        return KsmCounters(self.is_running, MIB, 3 * MIB, 2 * MIB, 5, 100, 20, 4.5)

    def merged_bytes(self, pid: int) -> int:
        return self.merged.get(pid, 0)

    def profit_bytes(self, pid: int) -> int:
        return self.merged.get(pid, 0) // 2


class House:
    """A floor with processes behind sockets: name -> whether it is marked as mergeable."""

    def __init__(self, root: Path, inventory: Inventory, tasks: TaskManager) -> None:
        self.available = 8 * GIB
        self.events: list[str] = []
        self.marked: dict[str, bool] = {}
        self.refuses: dict[str, RametError] = {}
        self.asked: list[tuple[str, bool]] = []
        self.ksm = FakeKsm()
        self.locks = VmLocks()
        self.tasks = tasks
        self._root = root
        book = SimpleNamespace(emit=lambda kind, message, vm=None, **fields: self.events.append(f"{kind}: {message}"))
        admission = Admission(reserve_bytes=0, available=lambda: self.available)
        rooms = SimpleNamespace(paths=SimpleNamespace(run=root), admission=admission, book=book)
        self.machines: dict[str, Any] = {}
        self.floor = cast("Any", SimpleNamespace(rooms=rooms, inventory=inventory, machines=self.machines))
        self.desk = self.restarted()

    def restarted(self) -> SharingDesk:
        """Another daemon over the same inventory."""
        self.desk = SharingDesk(self.floor, self.tasks, self.locks, ksm=cast("Any", self.ksm), ask=self.ask)
        return self.desk

    def add(self, name: str, merging: bool = False, vm: bool = True) -> None:
        (self._root / name).mkdir()
        (self._root / name / "fork").touch()
        self.marked[name] = merging
        if vm:
            self.machines[name] = SimpleNamespace(name=name.upper())

    def ask(self, socket: Path, merge: bool | None) -> LibraryInfo:
        name = socket.parent.name
        if merge is not None:
            if name in self.refuses:
                raise self.refuses[name]
            self.asked.append((name, merge))
            self.marked[name] = merge
        pid = sorted(self.marked).index(name) + 1
        return LibraryInfo(1, pid, 4096, GIB, 0, 0, self.marked[name])

    async def set(self, request: SetPageSharing) -> Task:
        task = await self.desk.set(request)
        return await self.tasks.wait(task.id, 10)


@pytest_asyncio.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(sharing, "FORGET_S", 0.0)
    store = await SqliteStore.open(tmp_path / "inventory.db")
    (tmp_path / "run").mkdir()
    try:
        async with Inventory.open(store) as inventory, TaskManager.open(store) as tasks:
            yield House(tmp_path / "run", inventory, tasks)
    finally:
        await store.aclose()


async def test_on_marks_every_process_and_runs_ksmd_at_a_modest_pace(house: House) -> None:
    house.add("a")
    house.add("m-held", vm=False)
    (house.floor.rooms.paths.run / "native").mkdir()
    assert (await house.set(ON)).state is TaskState.SUCCESS
    assert house.marked == {"a": True, "m-held": True}
    assert house.ksm.values == {**PACE, "run": 1}
    assert house.desk.mode is PageSharing.HOST


async def test_a_vm_that_comes_later_is_marked_when_it_is_seen(house: House) -> None:
    await house.set(ON)
    house.add("late")
    await house.desk._look()
    await house.desk._look()
    assert house.asked == [("late", True)]


async def test_while_it_is_off_nobody_is_asked_anything(house: House) -> None:
    house.add("a")
    house.desk._ask = lambda *_: pytest.fail("asked")
    await house.desk._look()
    assert (await house.set(OFF)).state is TaskState.SUCCESS


async def test_off_unmerges_each_and_puts_the_kernel_back(house: House) -> None:
    house.add("a")
    await house.set(ON)
    assert (await house.set(OFF)).state is TaskState.SUCCESS
    assert house.marked == {"a": False}
    assert house.ksm.values == BEFORE
    assert list(house.ksm.turned[1]) == ["run"]  # it stops before its pace changes
    assert house.floor.inventory.setting(SETTING) is None


async def test_what_ran_before_goes_on_running(house: House) -> None:
    house.ksm.values = {"run": 1, "pages_to_scan": 7, "sleep_millisecs": 9}
    house.add("a")
    await house.set(ON)
    assert not (await house.desk.view()).started_here
    await house.set(OFF)
    assert house.ksm.values == {"run": 1, "pages_to_scan": 7, "sleep_millisecs": 9}


async def test_what_somebody_turned_meanwhile_stays(house: House) -> None:
    await house.set(ON)
    house.ksm.values["pages_to_scan"] = 4000
    await house.set(OFF)
    assert house.ksm.values == {**BEFORE, "pages_to_scan": 4000}


async def test_the_next_daemon_knows_what_to_put_back(house: House) -> None:
    await house.set(ON)
    house.restarted()
    await house.desk._look()
    await house.set(ON)  # again: what was before is not what it is now
    await house.set(OFF)
    assert house.ksm.values == BEFORE


async def test_after_a_reboot_it_is_on_again_and_the_kernels_own_are_looked_at_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.set(ON)
    monkeypatch.setattr(sharing, "boot_id", lambda: "another")
    house.ksm.values = {**BEFORE, "pages_to_scan": 64}
    house.restarted()
    await house.desk._look()
    assert house.ksm.values == {**PACE, "run": 1}
    await house.set(OFF)
    assert house.ksm.values == {**BEFORE, "pages_to_scan": 64}


async def test_off_needs_memory_and_says_how_much_is_missing(house: House) -> None:
    house.add("a")
    await house.set(ON)
    house.ksm.merged, house.available = {1: 3 * GIB}, 2 * GIB
    with pytest.raises(CapacityError, match="Unmerging takes up to 3 GiB of memory, and 1 GiB is missing"):
        await house.set(OFF)
    assert house.desk.mode is PageSharing.HOST
    assert house.marked == {"a": True}


async def test_off_that_fails_half_way_is_finished_later(house: House) -> None:
    for name in ("a", "b"):
        house.add(name)
    await house.set(ON)
    house.refuses["b"] = ForkError("The VM could not be forked: page merging off: Cannot allocate memory.")
    task = await house.set(OFF)
    assert task.error is not None
    assert task.error["message"] == "The pages of 'B' could not be unmerged: Cannot allocate memory."
    view = await house.desk.view()
    assert (view.mode, view.unmerging) == (PageSharing.OFF, True)
    assert house.ksm.is_running
    house.refuses.clear()
    await house.restarted()._look()
    assert house.marked == {"a": False, "b": False}
    assert house.ksm.values == BEFORE


async def test_a_vm_that_is_busy_is_not_unmerged_in_the_middle_of_that(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "LOCK_PATIENCE_S", 0.0)
    house.add("a")
    await house.set(ON)
    async with house.locks.hold("a", "clone"):
        task = await house.set(OFF)
    assert task.error is not None
    assert task.error["code"] == BusyError.code
    assert house.marked == {"a": True}


async def test_a_kernel_without_it_is_one_sentence(house: House) -> None:
    house.ksm.problem, house.ksm.exists = "This host's kernel has no page merging (CONFIG_KSM)", False
    house.ksm.values["run"] = 0
    with pytest.raises(UnsupportedError, match=r"no page merging \(CONFIG_KSM\)\."):
        await house.desk.set(ON)
    view = await house.desk.view()
    assert (view.mode, view.problem) == (PageSharing.OFF, "This host's kernel has no page merging (CONFIG_KSM).")


async def test_without_the_right_it_works_where_ksmd_runs_already(house: House) -> None:
    house.ksm.problem = "Page merging is the kernel's, and only root may start it"
    with pytest.raises(PrivilegeError, match="only root"):
        await house.desk.set(ON)
    house.ksm.values["run"] = 1
    house.add("a")
    assert (await house.set(ON)).state is TaskState.SUCCESS
    assert house.marked == {"a": True}
    assert house.ksm.turned == [{}]


async def test_that_somebody_stopped_ksmd_is_told_once(house: House) -> None:
    await house.set(ON)
    house.ksm.values["run"] = 0
    for _ in range(3):
        await house.desk._look()
    assert [event for event in house.events if "stopped ksmd" in event] == [
        "host.warning: Page sharing: Somebody else has stopped ksmd: no pages are merged."
    ]


async def test_gain_and_cost_are_told_for_the_host_and_each_vm(house: House) -> None:
    house.add("a")
    house.add("b")
    await house.set(ON)
    house.ksm.merged = {1: 40 * MIB, 2: 20 * MIB}
    view = await house.desk.view()
    assert (view.saved_bytes, view.shared_bytes, view.profit_bytes) == (3 * MIB, MIB, 2 * MIB)
    assert (view.cpu_s, view.unmerge_bytes, view.started_here) == (1.5, 60 * MIB, True)
    assert [(vm.name, vm.merged_bytes, vm.profit_bytes) for vm in view.vms] == [
        ("A", 40 * MIB, 20 * MIB),
        ("B", 20 * MIB, 10 * MIB),
    ]


async def test_a_record_that_is_damaged_is_told_and_ends_nothing(house: House) -> None:
    await house.floor.inventory.put_setting(SETTING, {"mode": "lineage"})
    await house.desk._look()
    await house.desk._look()
    assert house.events == ["host.warning: Page sharing: ValidationError; the daemon's log says more."]
