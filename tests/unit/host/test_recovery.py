"""What a start makes of records whose processes are gone, many of them at a time."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.host import recovery
from ramet.host.inventory import Inventory
from ramet.host.refusing import open_inventory
from ramet.host.service import Host
from ramet.host.settings import load
from ramet.host.vm_logs import VmLogs
from ramet.hypervisor.cgroup import detect
from ramet.machine.paths import StatePaths
from ramet.model.host import JournalEntry
from ramet.model.machine import Accelerator, Machine, Process, Vm, VmState

GONE = Process(
    pid=2**22 - 1, start_ticks=1, boot_id="x", accelerator=Accelerator.TCG, qemu_version="7.2", qemu_build="x"
)
pytestmark = pytest.mark.slow


@pytest.fixture
def paths() -> Iterator[StatePaths]:
    """Short: the path of a Unix socket has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))
    folder.chmod(0o755)
    paths = StatePaths(folder)
    paths.prepare()
    yield paths
    shutil.rmtree(folder, ignore_errors=True)


def record(name: str, state: VmState, **more: object) -> Vm:
    return Vm.model_validate({"machine": Machine(name=name, memory_mib=64), "state": state, **more})


async def write(paths: StatePaths, vms: list[Vm], journal: list[JournalEntry]) -> None:
    store = await open_inventory(paths)
    try:
        async with Inventory.open(store) as inventory:
            for vm in vms:
                await inventory.put_vm(vm)
            for entry in journal:
                await inventory.journal.add(entry)
    finally:
        await store.aclose()


async def test_records_without_a_process_say_so(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_AT_ONCE", 2)
    kept = [record(f"off-{n}", VmState.OFF) for n in range(5)]
    suspended = record("suspended", VmState.SUSPENDED)
    resuming = record("resuming", VmState.STARTING)
    ran = record("ran", VmState.RUNNING, process=GONE)
    frozen = record("frozen", VmState.FROZEN, process=GONE, moment_id="0123456789ab")
    cut = record("cut", VmState.RUNNING)
    unborn = record("unborn", VmState.STARTING)
    pooled = record("pooled", VmState.READY, pool_of=frozen.id)
    reshaped = record("reshaped", VmState.OFF, provisional=True)
    entry = JournalEntry(kind="clone", vm_id=frozen.id, detail={"clones": [unborn.id]}, at=1.0)
    await write(paths, [*kept, suspended, resuming, ran, frozen, cut, unborn, pooled, reshaped], [entry])
    for vm in (suspended, resuming):
        paths.suspended_state(vm.id).parent.mkdir(parents=True)
        paths.suspended_state(vm.id).write_text("state")
    (paths.vm_run(kept[0].id) / "zygote").mkdir(parents=True)
    async with Host.open(load({"state_dir": paths.root}, env={})) as host:
        states = {live.name: live.vm.state for live in host.floor.machines.values()}
        assert states == {
            **{vm.name: VmState.OFF for vm in (*kept, ran, frozen, cut)},
            "suspended": VmState.SUSPENDED,
            "resuming": VmState.SUSPENDED,
        }
        assert all(live.vm.process is None and live.vm.moment_id is None for live in host.floor.machines.values())
        assert {vm.id for vm in host.floor.inventory.vms()} == set(host.floor.machines)
        assert not host.floor.inventory.journal.all()
    assert paths.suspended_state(suspended.id).exists()
    assert not paths.vm_run(kept[0].id).exists()


async def test_logs_are_looked_at_of_those_that_may_write(paths: StatePaths) -> None:
    """All of them once; then of VMs that are on, and once more after their end."""
    one, other = record("one", VmState.OFF), record("other", VmState.OFF)
    await write(paths, [one, other], [])
    settings = load({"state_dir": paths.root}, env={})
    async with Host.open(settings) as host:
        logs, live = VmLogs(host.floor, settings), host.floor.machines[one.id]

        def looked_at() -> set[str]:
            return {path.parent.name for path, quota in logs.due() if quota > 0}

        assert looked_at() == {one.id, other.id}
        assert looked_at() == set()
        live.vm = one.changed(process=GONE)
        assert (looked_at(), len(list(logs.due()))) == ({one.id}, 3)
        live.vm = one
        assert looked_at() == {one.id}
        assert looked_at() == set()


async def test_a_control_group_that_was_left_is_removed(paths: StatePaths) -> None:
    vm, groups = record("off", VmState.OFF), detect()
    if not groups.bases:
        pytest.skip("; ".join(groups.problems))
    await write(paths, [vm, record("other", VmState.OFF)], [])
    assert await asyncio.to_thread(groups.group(vm.id, vm.id).create) is None
    assert vm.id in groups.vms()
    async with Host.open(load({"state_dir": paths.root}, env={})):
        assert vm.id not in groups.vms()
