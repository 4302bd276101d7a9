"""kill -9 of the daemon at every step of both workflows: the source goes on, and the inventory is true again."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.api import Client
from ramet.errors import RametError
from ramet.machine.steps import CLONE_STEPS, FREEZE_STEPS, FROZEN_CLONE_STEPS, IDENTITY_STEPS, THAW_STEPS
from ramet.model.host import Task, TaskState
from ramet.model.identity import IdentityState
from ramet.model.machine import VmState
from ramet.model.requests import BuildImage, CloneVm, CreateVm, DiskRequest, Exec, NicRequest
from tests.guest.leaks import left_behind


class Daemon:
    """`ramet serve` in a process of its own, killed and started again as often as a test likes."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    def start(self, kill_at: str | None = None) -> Client:
        env = {**os.environ, **({"RAMET_KILL_AT": kill_at} if kill_at else {})}
        read, write = os.pipe()
        log = (self.state_dir.parent / "serve.log").open("ab")
        argv = [sys.executable, "-P", "-m", "ramet.serve", "--state", str(self.state_dir), "--ready-fd", str(write)]
        with log:
            self._process = subprocess.Popen(argv, env=env, pass_fds=[write], stdout=log, stderr=log)
        os.close(write)
        with os.fdopen(read, "rb") as ready:
            assert ready.read(1), (self.state_dir.parent / "serve.log").read_text()[-2000:]
        self._client = Client.connect(self.state_dir, start_daemon=False)
        return self._client

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def wait_killed(self) -> None:
        self._hang_up()
        assert self._process is not None
        assert self._process.wait(60) == -signal.SIGKILL

    def kill(self) -> None:
        self._hang_up()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)

    def stop(self) -> None:
        """Gracefully; VMs go on."""
        self._hang_up()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    directory = Path(tempfile.mkdtemp(prefix="rk-", dir="/tmp"))
    directory.chmod(0o755)
    daemon = Daemon(directory / "s")
    client = daemon.start()
    finish(client, client.build_image(BuildImage(recipe="micro")))
    make(client, "source")
    daemon.stop()
    yield daemon
    daemon.kill()
    client = daemon.start()
    for vm in client.list_vms():
        finish(client, client.remove_vm(vm.name, force=True))
    daemon.stop()
    left = left_behind(daemon.state_dir)
    shutil.rmtree(directory, ignore_errors=True)
    assert not left, left


def finish(client: Client, task: Task) -> Task:
    ended = client.wait_task(task.id)
    assert ended.state is TaskState.SUCCESS, ended.error
    return ended


def until_killed(client: Client, task: Task) -> None:
    """Like `finish`, for a daemon that is about to die: the client's own wait would give it time to come back."""
    while not task.state.is_final:
        task = client.get_task(task.id, wait_s=20.0)
    assert task.state is TaskState.SUCCESS, task.error


def make(client: Client, name: str) -> None:
    request = CreateVm(
        name=name,
        image="micro",
        memory_mib=192,
        nics=(NicRequest(network=None),),
        disks=(DiskRequest(size_mib=64),),
        start=True,
    )
    finish(client, client.create_vm(request))
    sh(client, name, "mke2fs -q /dev/vda >/dev/null 2>&1; mkdir -p /d; mount /dev/vda /d; echo 0 > /d/n; sync", 120)


def sh(client: Client, name: str, script: str, timeout_s: float = 30) -> str:
    result = client.exec_in_vm(name, Exec(argv=("/bin/sh", "-c", script), timeout_s=timeout_s))
    assert result.exit_code == 0
    return base64.b64decode(result.stdout_base64).decode().strip()


def is_whole(client: Client, name: str) -> None:
    """Running, its disk readable and writable, and what it wrote last is there."""
    assert client.show_vm(name).state is VmState.RUNNING
    number = int(sh(client, name, "echo 3 > /proc/sys/vm/drop_caches; cat /d/n"))
    sh(client, name, f"echo {number + 1} > /d/n; sync")
    assert sh(client, name, "cat /d/n") == str(number + 1)


def inventory_is_true(client: Client, daemon: Daemon, allowed: set[str]) -> None:
    """Every VM that is listed answers; nothing else of the operation is left, running or on disk."""
    vms = client.list_vms()
    assert {vm.name for vm in vms} <= allowed
    layers = {layer.id for vm in vms for disk in vm.disks for layer in disk.chain}
    on_disk = {path.stem for path in (daemon.state_dir / "layers").glob("*.qcow2")}
    assert on_disk == layers
    running = {vm.id for vm in vms if vm.pid}
    directories = {path.name for path in (daemon.state_dir / "run").iterdir() if path.is_dir()} - {"native"}
    assert directories == running
    assert {path.name for path in (daemon.state_dir / "vms").iterdir()} <= {vm.id for vm in vms}
    for vm in vms:
        if vm.state is VmState.RUNNING:
            is_whole(client, vm.name)


def remove_clones(client: Client) -> None:
    for vm in client.list_vms():
        if vm.name != "source":
            finish(client, client.remove_vm(vm.name, force=True))


@pytest.mark.parametrize("step", CLONE_STEPS)
def test_killed_while_cloning_a_running_vm(daemon: Daemon, step: str) -> None:
    client = daemon.start(kill_at=step)
    sh(client, "source", "echo 7 > /d/n; sync")
    with pytest.raises(RametError):
        until_killed(client, client.clone_vm("source", CloneVm(names=("kid",), bare=True)))
    daemon.wait_killed()
    client = daemon.start()
    is_whole(client, "source")
    inventory_is_true(client, daemon, {"source", "kid"})
    remove_clones(client)
    finish(client, client.clone_vm("source", CloneVm(names=("kid",), bare=True)))
    is_whole(client, "kid")
    remove_clones(client)
    daemon.stop()


def freeze_clone_and_thaw(client: Client) -> None:
    until_killed(client, client.freeze_vm("source"))
    until_killed(client, client.clone_vm("source", CloneVm(names=("kid",), bare=True)))
    until_killed(client, client.thaw_vm("source"))


@pytest.mark.parametrize("step", [*FREEZE_STEPS, *FROZEN_CLONE_STEPS, *THAW_STEPS])
def test_killed_while_freezing_cloning_the_frozen_or_thawing(daemon: Daemon, step: str) -> None:
    client = daemon.start(kill_at=step)
    with pytest.raises(RametError):
        freeze_clone_and_thaw(client)
    daemon.wait_killed()
    client = daemon.start()
    if client.show_vm("source").frozen:
        finish(client, client.clone_vm("source", CloneVm(names=("second",), bare=True)))
        finish(client, client.thaw_vm("source"))
    is_whole(client, "source")
    inventory_is_true(client, daemon, {"source", "kid", "second"})
    assert not list((daemon.state_dir / "moments").iterdir())
    remove_clones(client)
    daemon.stop()


@pytest.mark.parametrize("step", IDENTITY_STEPS)
def test_killed_while_a_clone_becomes_itself(daemon: Daemon, step: str) -> None:
    """It stays off the network until the next daemon has heard its guest acknowledge."""
    client = daemon.start(kill_at=step)
    with pytest.raises(RametError):
        until_killed(client, client.clone_vm("source", CloneVm(names=("kid",))))
    daemon.wait_killed()
    client = daemon.start()
    for task in client.list_tasks():
        if task.kind == "host.identities":
            finish(client, task)
    kid = client.show_vm("kid")
    assert kid.identity.state is IdentityState.ACKNOWLEDGED
    assert sh(client, "kid", "hostname") == "kid"
    assert sh(client, "kid", "cat /sys/class/net/eth0/carrier") == "1"
    assert sh(client, "kid", "cat /sys/class/net/eth0/address") == kid.nics[0].mac
    is_whole(client, "source")
    remove_clones(client)
    daemon.stop()
