"""A VM's days: it is suspended, changed, restarted from inside and stopped in every way there is, and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.errors import ConflictError, DeadlineError, QemuError, StateError, UsageError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.hypervisor.process import find_user
from ramet.model.machine import VmState
from ramet.model.requests import ChangeVm, CloneVm, CreateVm, Exec, NicRequest, StopVm
from tests.guest.conftest import BOOT_TIMEOUT_S, Guests
from tests.guest.machine_kit import WAIT_S, furnish, state_folder, wait_state

pytestmark = pytest.mark.asyncio(loop_scope="session")

MOUNT = "mkdir -p /d; mount /dev/vda /d"
TICK = "n=$(grep -c tick /run/memcheck); until [ $(grep -c tick /run/memcheck) -gt $n ]; do sleep 0.1; done"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(host: Host, checker: Path) -> AsyncIterator[str]:
    """A guest with a file system on its disk and a program that checks its memory all the time."""
    guests = Guests(host)
    await guests.boot("worker", memory_mib=160, disk_mib=64, cpu_limit_percent=250)
    await guests.push("worker", checker, "/bin/memcheck")
    await guests.sh("worker", "mke2fs -q /dev/vda >/dev/null 2>&1; " + MOUNT)
    await guests.sh("worker", "echo kept > /d/f; sync")
    await guests.sh(
        "worker", "(/bin/memcheck 24 > /run/memcheck 2>&1 &) ; until grep -q tick /run/memcheck; do :; done"
    )
    yield "worker"
    await guests.remove_all()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def cpu_limit(host: Host, name: str) -> str | None:
    """Quota and period as the kernel has them, of the group that the process is in."""
    for line in Path(f"/proc/{(await host.show_vm(name)).pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" and (file := Path(f"/sys/fs/cgroup{path}/cpu.max")).exists():
            return file.read_text().strip()
        if "cpu" in controllers.split(",") and path != "/":
            group = Path(f"/sys/fs/cgroup/{controllers}{path}")
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            return f"{'max' if quota == '-1' else quota} {(group / 'cpu.cfs_period_us').read_text().strip()}"
    return None


async def state_of(host: Host, name: str) -> VmState:
    return (await host.show_vm(name)).state


# -- what a process may ------------------------------------------------------------------------------------------------


async def test_source_and_clone_are_confined(host: Host, guests: Guests, worker: str) -> None:
    await guests.clone(worker, "inmate")
    scores = []
    for name in (worker, "inmate"):
        pid = (await host.show_vm(name)).pid
        assert pid is not None
        status = status_of(pid)
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0
        user = find_user(host.settings.qemu_user)
        assert {int(uid) for uid in status["Uid"].split()} == {user.uid if user else os.geteuid()}
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if line.startswith("Max core file size")).split()[4] == "0"
        scores.append(int(Path(f"/proc/{pid}/oom_score_adj").read_text()))
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert own < scores[0] < scores[1]


async def test_the_limit_of_processors_holds_in_the_kernel(host: Host, guests: Guests, worker: str) -> None:
    before = await cpu_limit(host, worker)
    if before is None:
        pytest.skip("this host has no control groups for processors")
    assert before == "250000 100000"
    await guests.clone(worker, "sharer")
    assert await cpu_limit(host, "sharer") == "250000 100000"
    await host.change_vm(worker, ChangeVm(cpu_limit_percent=300))
    assert await cpu_limit(host, worker) == "300000 100000"
    await host.change_vm(worker, ChangeVm(cpu_limit_percent=0))
    assert await cpu_limit(host, worker) == "max 100000"
    assert await cpu_limit(host, "sharer") == "250000 100000"


# -- changes -----------------------------------------------------------------------------------------------------------


async def test_names_and_keys_change_while_the_guest_runs(host: Host, guests: Guests, worker: str) -> None:
    get = "vmware-rpctool 'info-get guestinfo.colour' 2>&1; echo $?"
    assert await guests.sh(worker, get) == "No value found\n1"
    await host.change_vm(worker, ChangeVm(set_config={"guestinfo.Colour": "dark green"}))
    assert await guests.sh(worker, get) == "dark green\n0"
    await guests.sh(worker, "vmware-rpctool 'info-set guestinfo.answer from the guest'")
    assert (await host.show_vm(worker)).machine.extra_config["guestinfo.answer"] == "from the guest"
    await host.change_vm(worker, ChangeVm(unset_config=("guestinfo.colour",)))
    assert await guests.sh(worker, get) == "No value found\n1"
    with pytest.raises(UsageError, match=r"guestinfo\.colour"):
        await host.change_vm(worker, ChangeVm(unset_config=("guestinfo.colour",)))
    with pytest.raises(UsageError, match="not a usable configuration key"):
        await host.change_vm(worker, ChangeVm(set_config={"with blank": "x"}))
    before = await host.show_vm(worker)
    view = await host.change_vm(worker, ChangeVm(name="labourer"))
    assert (view.name, view.id, view.pid) == ("labourer", before.id, before.pid)
    assert await guests.sh("labourer", "echo here") == "here"
    await host.change_vm("labourer", ChangeVm(name=worker))
    with pytest.raises(StateError, match="Stop it first"):
        await host.change_vm(worker, ChangeVm(memory_mib=256))
    with pytest.raises(StateError, match="Stop it first"):
        await host.change_vm(worker, ChangeVm(vcpus=2))
    await finish(host, await host.create_vm(CreateVm(name="taken", image="micro", nics=())))
    with pytest.raises(ConflictError, match="taken"):
        await host.change_vm(worker, ChangeVm(name="taken"))
    await guests.remove("taken")


# -- suspend and resume ------------------------------------------------------------------------------------------------


async def test_a_suspended_guest_goes_on_where_it_was(host: Host, guests: Guests, worker: str) -> None:
    await guests.sh(worker, "date -s '2001-02-03 04:05:06'")
    before = await guests.sh(worker, "head -c 8M /dev/urandom > /run/blob; md5sum < /run/blob")
    await finish(host, await host.suspend_vm(worker))
    view = await host.show_vm(worker)
    assert (view.state, view.pid) == (VmState.SUSPENDED, None)
    saved = host.settings.state_dir / "vms" / view.id / "suspended.state"
    assert saved.stat().st_size > 24 << 20
    with pytest.raises(StateError, match="suspended"):
        await host.clone_vm(worker, CloneVm(names=("x",)))
    with pytest.raises(StateError, match="suspended"):
        await host.exec_in_vm(worker, Exec(argv=("true",)))
    await finish(host, await host.resume_vm(worker))
    assert await state_of(host, worker) is VmState.RUNNING
    assert not saved.exists()
    assert await guests.sh(worker, "md5sum < /run/blob") == before
    assert abs(int(await guests.sh(worker, "date +%s")) - time.time()) < 30
    await guests.sh(worker, TICK)
    assert "BAD" not in await guests.sh(worker, "cat /run/memcheck")
    assert await guests.sh(worker, "echo 3 > /proc/sys/vm/drop_caches; cat /d/f") == "kept"
    # It can be cloned as before, and its clone can be suspended too.
    await guests.clone(worker, "sleeper")
    await finish(host, await host.suspend_vm("sleeper"))
    await finish(host, await host.start_vm("sleeper"))
    assert await guests.sh("sleeper", "md5sum < /run/blob") == before
    await guests.sh("sleeper", TICK)
    assert "BAD" not in await guests.sh("sleeper", "cat /run/memcheck")
    # A state that cannot be loaded is kept until its owner says otherwise.
    await finish(host, await host.suspend_vm("sleeper"))
    saved = saved.parents[1] / (await host.show_vm("sleeper")).id / saved.name
    os.truncate(saved, saved.stat().st_size // 2)
    with pytest.raises(QemuError, match="'ramet vm stop --hard' discards it"):
        await finish(host, await host.resume_vm("sleeper"))
    assert await state_of(host, "sleeper") is VmState.SUSPENDED
    await finish(host, await host.stop_vm("sleeper", StopVm(hard=True)))
    assert not saved.exists()
    assert await state_of(host, "sleeper") is VmState.OFF


# -- restart and stop --------------------------------------------------------------------------------------------------


async def test_a_guest_restarts_itself_and_so_does_its_clone(host: Host, guests: Guests, worker: str) -> None:
    await guests.clone(worker, "twin")
    for name in ("twin", worker):
        since = host.events.last_seq
        await guests.sh(name, "touch /run/this-boot; sync; (sleep 0.2; reboot -f) >/dev/null 2>&1 &")
        await wait_state(host, name, VmState.RUNNING, await wait_state(host, name, VmState.OFF, since))
        await host.wait_agent(name, BOOT_TIMEOUT_S)
        assert await guests.sh(name, f"ls /run/this-boot 2>/dev/null; {MOUNT}; cat /d/f") == "kept"
        mac = (await host.show_vm(name)).nics[0].mac
        assert await guests.sh(name, "cat /sys/class/net/eth0/address") == mac
    # Launched anew, it can be cloned again.
    await guests.clone("twin", "twins-child")
    assert await guests.sh("twins-child", "cat /d/f") == "kept"
    # A restart from outside ends a freeze; and what powers itself off stays off.
    await finish(host, await host.freeze_vm("twins-child"))
    await finish(host, await host.restart_vm("twins-child"))
    view = await host.show_vm("twins-child")
    assert (view.state, view.frozen) == (VmState.RUNNING, False)
    assert not list((host.settings.state_dir / "moments").iterdir())
    await host.wait_agent("twins-child", BOOT_TIMEOUT_S)
    assert await guests.sh("twins-child", f"{MOUNT}; cat /d/f") == "kept"
    since = host.events.last_seq
    await guests.sh("twins-child", "(sleep 0.2; poweroff -f) >/dev/null 2>&1 &")
    await wait_state(host, "twins-child", VmState.OFF, since)
    await finish(host, await host.restart_vm(worker, hard=True))
    await host.wait_agent(worker, BOOT_TIMEOUT_S)
    await guests.sh(worker, MOUNT)
    assert await state_of(host, "twins-child") is VmState.OFF


async def test_a_guest_is_stopped_by_its_agent_by_its_button_or_at_once(
    host: Host, guests: Guests, worker: str, checker: Path
) -> None:
    await guests.sh(worker, "echo agent > /d/f")  # not synced: the clean stop does that
    await finish(host, await host.stop_vm(worker, StopVm(timeout_s=60)))
    view = await host.show_vm(worker)
    assert (view.state, view.pid, view.memory) == (VmState.OFF, None, None)
    await host.change_vm(worker, ChangeVm(memory_mib=224, vcpus=2))
    await finish(host, await host.start_vm(worker))
    await host.wait_agent(worker, BOOT_TIMEOUT_S)
    assert await guests.sh(worker, "nproc") == "2"
    assert int(await guests.sh(worker, "awk '/MemTotal/ { print $2 }' /proc/meminfo")) > 170 * 1024
    assert await guests.sh(worker, f"{MOUNT}; cat /d/f") == "agent"
    # Two processors, both busy with memory, survive a clone.
    await guests.push(worker, checker, "/bin/memcheck")
    for out in ("/run/memcheck", "/run/second"):
        await guests.sh(worker, f"(/bin/memcheck 24 > {out} 2>&1 &) ; until grep -q tick {out}; do sleep 0.05; done")
    await guests.clone(worker, "pair")
    for name in ("pair", worker):
        await guests.sh(name, TICK)
        assert "BAD" not in await guests.sh(name, "cat /run/memcheck /run/second")
    assert await guests.sh("pair", "nproc; taskset 1 echo a; taskset 2 echo b") == "2\na\nb"
    # A guest that does not listen runs on, until its power is cut.
    await guests.sh("pair", "echo hard > /d/f; sync; ln -sf /bin/true /sbin/shutdown; killall acpid")
    with pytest.raises(DeadlineError, match="runs on"):
        await finish(host, await host.stop_vm("pair", StopVm(timeout_s=2)))
    assert await guests.sh("pair", "echo alive") == "alive"
    await finish(host, await host.stop_vm("pair", StopVm(hard=True)))
    assert await state_of(host, "pair") is VmState.OFF
    with pytest.raises(StateError, match="off already"):
        await host.stop_vm("pair", StopVm())
    # Without an agent the power button is all there is.
    await guests.sh(worker, "echo button > /d/f; ln -sf /bin/false /etc/micro/agent")
    await guests.sh(worker, "(sleep 0.3; killall qemu-ga) >/dev/null 2>&1 &")
    await finish(host, await host.stop_vm(worker, StopVm(timeout_s=60)))
    assert await state_of(host, worker) is VmState.OFF


async def test_what_guests_did_while_no_daemon_listened(host: Host) -> None:
    """One restarts itself, one powers off, one just runs; and one that is off starts with the daemon."""
    with state_folder() as path:
        settings = await furnish(host, path)
        async with Host.open(settings) as first:
            guests = Guests(first)
            await guests.boot("restarts", memory_mib=128)
            await guests.sh("restarts", "echo kept > /run/token")
            await guests.clone("restarts", "ends", "stays")
            eager = CreateVm(name="eager", image="micro", memory_mib=128, nics=(NicRequest(network=None),))
            await finish(first, await first.create_vm(eager.changed(autostart=True)))
            pids = {vm.name: vm.pid for vm in await first.list_vms()}
            for name, command in (("restarts", "reboot"), ("ends", "poweroff")):
                await guests.sh(name, f"(sleep 3; {command} -f) >/dev/null 2>&1 &")
            since = first.events.last_seq
        await processes_ended(pids["restarts"], pids["ends"])
        async with Host.open(settings) as second:
            try:
                guests = Guests(second)
                assert await state_of(second, "ends") is VmState.OFF
                assert (await second.show_vm("stays")).pid == pids["stays"]
                assert await guests.sh("stays", "cat /run/token") == "kept"
                for name in ("restarts", "eager"):
                    await wait_state(second, name, VmState.RUNNING, since)
                await second.wait_agent("restarts", BOOT_TIMEOUT_S)
                assert await guests.sh("restarts", "cat /run/token 2>/dev/null || echo fresh") == "fresh"
                ids = [vm.id for vm in await second.list_vms()]
            finally:
                await second.stop_all_vms()
        groups = {path.name for path in Path("/sys/fs/cgroup").glob("**/lineage-*/vm-*")}
        assert not groups & {f"vm-{vm_id}" for vm_id in ids}


async def processes_ended(*pids: int | None) -> None:
    """Until none of them runs. They are this process's children, or init's: a zombie has ended, too."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError), os.fdopen(os.pidfd_open(pid or 0)) as pidfd:
            readable, _, _ = await asyncio.to_thread(select.select, [pidfd], [], [], WAIT_S)
            assert readable
