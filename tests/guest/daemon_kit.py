"""A daemon of a test's own, killed and started again; and what must be true of its VMs afterwards."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ramet.api import Client
from ramet.model.host import Task, TaskState
from ramet.model.machine import VmState
from ramet.model.requests import Exec
from tests.guest.leaks import left_behind

WAIT_S = 120.0


class Daemon:
    """`ramet serve` in a process of its own, killed and started again as often as a test likes."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    def start(self, kill_at: str | None = None) -> Client:
        env = {**os.environ, **({"RAMET_FAULT": f"{kill_at}:kill"} if kill_at else {})}
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

    def refuses(self) -> str:
        """Why it does not start."""
        argv = [sys.executable, "-P", "-m", "ramet.serve", "--state", str(self.state_dir)]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert ended.returncode == 1, ended
        return ended.stderr.splitlines()[-1]

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


@contextlib.contextmanager
def own_daemon(prefix: str) -> Iterator[Daemon]:
    """A daemon that is not started yet, with a state folder of its own.

    In the end its VMs and their files are gone, also when the body failed; what else is left is a failure.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    directory.chmod(0o755)
    daemon = Daemon(directory / "s")
    try:
        yield daemon
    finally:
        daemon.kill()
        client = daemon.start()
        for vm in client.list_vms():
            finish(client, client.remove_vm(vm.name, force=True))
        until(lambda: not client.list_pools())  # their members go by themselves
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


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.1)
