"""Processes: born, watched, found again, ended. The program is a shell, which stands for QEMU."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ramet.errors import DeadlineError, PrivilegeError
from ramet.hypervisor.descriptors import DescriptorTable
from ramet.hypervisor.plan import LaunchPlan
from ramet.hypervisor.process import ExitStatus, QemuProcess, QemuUser, boot_id, find_user, kvm_groups
from ramet.model.machine import Accelerator, Process
from tests.unit.hypervisor.plan_kit import open_fds

WAIT_S = 20.0


def shell(directory: Path, script: str, table: DescriptorTable | None = None) -> LaunchPlan:
    return LaunchPlan(
        argv=("/bin/sh", "-c", script),
        table=table or DescriptorTable(forked=False),
        env={"PATH": "/usr/bin:/bin"},
        name="ramet:test",
        log_dir=directory,
    )


@pytest.fixture
async def born(tmp_path: Path) -> AsyncIterator[list[QemuProcess]]:
    """Processes of a test: none outlives it."""
    made: list[QemuProcess] = []
    yield made
    for process in made:
        if process.is_running:
            process.kill()
            await process.wait_exit(WAIT_S)
        process.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.002)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_the_exit_is_seen_and_reaped_though_nobody_waits(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exit 3"))
    born.append(process)
    await until(lambda: not process.is_running)
    assert process.exit_status == ExitStatus(code=3)
    assert not is_there(process.pid)


async def test_a_signal_is_told_from_an_exit(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000"))
    born.append(process)
    process.kill()
    assert await process.wait_exit(WAIT_S) == ExitStatus(signal=signal.SIGKILL)
    assert str(process.exit_status) == "killed by SIGKILL"


async def test_waiting_is_bounded(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000"))
    born.append(process)
    with pytest.raises(DeadlineError, match=r"did not end within 0\.01 s"):
        await process.wait_exit(0.01)
    assert process.is_running


async def test_what_does_not_heed_a_request_is_killed(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    born.append(process)
    await until(lambda: b"ready" in (tmp_path / "events.log").read_bytes())
    assert await process.end(grace_s=0.05) == ExitStatus(signal=signal.SIGKILL)


async def test_nothing_of_a_birth_stays_open_here(tmp_path: Path) -> None:
    before = open_fds()
    table = DescriptorTable(forked=False)
    table.ram_file(4096)
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000", table))
    assert len(open_fds()) == len(before) + 1  # the pidfd
    process.kill()
    await process.wait_exit(WAIT_S)
    process.close()
    process.close()
    assert open_fds() == before


async def test_a_launch_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_fds()
    plan = shell(tmp_path, "")
    plan.table.ram_file(4096)
    broken = LaunchPlan(("/nowhere/qemu",), plan.table, plan.env, plan.name, plan.log_dir)
    with pytest.raises(FileNotFoundError):
        await QemuProcess.launch(broken)
    assert open_fds() == before


async def test_a_child_gets_its_descriptors_and_nothing_else(tmp_path: Path, born: list[QemuProcess]) -> None:
    other = os.open("/dev/zero", os.O_RDONLY)
    try:
        table = DescriptorTable(forked=False)
        number = table.blob("given", b"the content")
        script = f"cat /proc/self/fd/{number}; echo; ls /proc/self/fd | tr '\\n' ' '; echo; env; pwd; ulimit -c"
        process = await QemuProcess.launch(shell(tmp_path, script, table))
        born.append(process)
        await process.wait_exit(WAIT_S)
    finally:
        os.close(other)
    content, fds, *rest = (tmp_path / "events.log").read_text().splitlines()
    assert content == "the content"
    assert {0, 1, 2, number} <= set(map(int, fds.split())) <= {0, 1, 2, number, number + 1, 3}
    assert "/" in rest
    assert not any(line.startswith(("HOME=", "USER=")) for line in rest)


async def test_the_reason_of_a_death_is_qemus_first_complaint(tmp_path: Path, born: list[QemuProcess]) -> None:
    (tmp_path / "qemu.log").write_text("2026-01-01T00:00:00.000001Z qemu-system-x86_64: of an earlier start\n")
    words = (
        "2026-11-22T22:20:54.556327Z qemu-system-x86_64: warning: a feature is missing",
        "2026-11-22T22:20:54.556328Z qemu-system-x86_64: -blockdev x: the disk is locked",
        "2026-11-22T22:20:54.556329Z qemu-system-x86_64: something follows from it",
    )
    script = "; ".join(f"echo '{word}' >&2" for word in words) + "; exit 1"
    process = await QemuProcess.launch(shell(tmp_path, script))
    born.append(process)
    await process.wait_exit(WAIT_S)
    assert process.exit_reason() == "-blockdev x: the disk is locked"


async def test_a_silent_death_has_a_reason_too(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exit 7"))
    born.append(process)
    await process.wait_exit(WAIT_S)
    assert process.exit_reason() == "exit code 7"


def record(process: QemuProcess) -> Process:
    return process.record(Accelerator.TCG, "7.2.22", "abcd", launched=True)


async def test_a_process_is_found_again(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000"))
    kept = Process.model_validate_json(record(process).model_dump_json())
    process.close()
    adopted = QemuProcess.adopt(kept)
    assert adopted is not None
    born.append(adopted)
    adopted.kill()
    await adopted.wait_exit(WAIT_S)
    assert not is_there(adopted.pid)
    assert QemuProcess.adopt(kept) is None


async def test_another_process_with_that_number_is_not_taken_for_it(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000"))
    born.append(process)
    right = record(process)
    before = open_fds()
    assert QemuProcess.adopt(right.changed(start_ticks=right.start_ticks - 1)) is None
    assert QemuProcess.adopt(right.changed(boot_id="another boot")) is None
    assert open_fds() == before


async def test_one_that_ended_while_nobody_looked_is_reaped(tmp_path: Path) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000"))
    kept = record(process)
    process.kill()
    process.close()
    await until(lambda: Path(f"/proc/{kept.pid}/stat").read_text().split()[2] == "Z")
    assert QemuProcess.adopt(kept) is None
    assert not is_there(kept.pid)


async def test_a_process_that_is_not_our_child_is_watched_all_the_same(tmp_path: Path, born: list[QemuProcess]) -> None:
    """As the fork of a VM that a former daemon launched: a child of init."""
    parent = await QemuProcess.launch(shell(tmp_path, "sleep 1000 & echo $!"))
    born.append(parent)
    await parent.wait_exit(WAIT_S)
    pid = int((tmp_path / "events.log").read_text())
    process = QemuProcess.from_fork(pid, os.pidfd_open(pid))
    born.append(process)
    process.terminate()
    assert await process.wait_exit(WAIT_S) == ExitStatus()
    assert str(process.exit_status) == "ended"


async def test_a_fork_that_is_gone_already_is_said(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000"))
    born.append(process)
    pidfd = os.pidfd_open(process.pid)
    process.kill()
    await process.wait_exit(WAIT_S)
    before = open_fds()
    with pytest.raises(ProcessLookupError):
        QemuProcess.from_fork(process.pid, pidfd)
    assert len(open_fds()) == len(before) - 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(
    ("gid", "mode", "groups"),
    [(7000, 0o660, [7000]), (7000, 0o666, [7000]), (7000, 0o600, []), (0, 0o600, []), (0, 0o660, [])],
)
def test_qemu_gets_the_group_that_opens_kvm_and_never_roots(
    tmp_path: Path, gid: int, mode: int, groups: list[int]
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, -1, gid)
    device.chmod(mode)
    assert kvm_groups(device) == groups


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs QEMU as another user")
async def test_qemu_is_another_user_with_no_way_back(tmp_path: Path, born: list[QemuProcess]) -> None:
    nobody = QemuUser("nobody", 65534, 65534)
    process = await QemuProcess.launch(shell(tmp_path, "exec cat /proc/self/status"), nobody)
    born.append(process)
    await process.wait_exit(WAIT_S)
    status = dict(line.split(":\t", 1) for line in (tmp_path / "events.log").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Gid"].split() == ["65534"] * 4
    assert "0" not in status["Groups"].split()
    assert int(status["CapEff"], 16) == 0
    assert (tmp_path / "qemu.log").stat().st_uid == 0


async def test_a_library_that_qemus_user_cannot_reach_is_refused(tmp_path: Path) -> None:
    """The loader would only warn, and run QEMU without it."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "vmfork.so").touch(mode=0o755)
    before = open_fds()
    plan = shell(tmp_path, "exit 0")
    plan.table.ram_file(4096)
    plan.env["LD_PRELOAD"] = str(closed / "vmfork.so")
    with pytest.raises(PrivilegeError, match=r"The user nobody may not read .*vmfork\.so\. Open "):
        await QemuProcess.launch(plan, QemuUser("nobody", 65534, 65534))
    assert open_fds() == before


async def test_the_oom_score_is_set_or_the_reason_said(tmp_path: Path, born: list[QemuProcess]) -> None:
    process = await QemuProcess.launch(shell(tmp_path, "exec sleep 1000"))
    born.append(process)
    assert process.set_oom_score(500) is None
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "500"
    process.kill()
    await process.wait_exit(WAIT_S)
    assert "cannot be set" in (process.set_oom_score(1) or "")


def test_users_that_do_not_exist_are_none() -> None:
    assert find_user("no-such-user-here") is None
    assert len(boot_id()) == 36
