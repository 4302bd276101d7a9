"""Where a soak takes place: a daemon of its own, killed and started as often as it pleases, in a temporary folder.

In the end all of it is gone, whatever happened; the user's own daemon and state are never touched.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ramet.api.client import Client
from ramet.bench import stock
from ramet.errors import DeadlineError, PeerError, RametError
from ramet.model.host import Task
from ramet.model.requests import CreateNetwork
from ramet.model.trying import TRY_NETWORK
from ramet.testing import memcheck

OPERATION_S = 150.0
"""What lasts longer hangs."""
_READY_S = 120.0
_END_S = 60.0
_BOUNDS = (
    *("--task-history", "60", "--event-history", "300"),
    *("--chain-bound", "4"),
    *("--log-quota-bytes", "262144", "--console-quota-bytes", "16384", "--rotate-every-s", "2"),
)
"""Short, so that what fills up to a bound has done so when the measuring begins."""

Tell = Callable[[str], None]


@dataclass
class Stage:
    """The soak's daemon. `client` is another object after each of its deaths."""

    state_dir: Path
    checker: Path
    """The memory checker, a program for guests."""
    tell: Tell
    privileged: bool = False
    """There are port groups."""
    deaths: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _client: Client | None = field(default=None)

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.state_dir.parent / "serve.log"

    def start(self) -> None:
        """Returns when the daemon answers. PeerError when it does not come up."""
        ready_r, ready_w = os.pipe()
        argv = [sys.executable, "-P", "-m", "ramet.serve", "--state", str(self.state_dir), *_BOUNDS]
        with self.log.open("ab") as log, os.fdopen(ready_r, "rb") as ready:
            self._process = subprocess.Popen(
                [*argv, "--ready-fd", str(ready_w)], pass_fds=[ready_w], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, env=_environment(),
            )  # fmt: skip
            os.close(ready_w)
            if not select.select([ready], [], [], _READY_S)[0] or not ready.read(1):
                raise PeerError(f"The soak's daemon did not start: {_last_line(self.log)}")
        self._client = Client(self.state_dir / "run" / "api.sock")

    def kill(self) -> None:
        """kill -9; its VMs go on."""
        self._end(signal.SIGKILL)
        self.deaths += 1

    def stop(self) -> None:
        """Gracefully; its VMs go on."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._client is not None:
            self._client.close()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_END_S)
                raise DeadlineError(f"The daemon did not end within {_END_S:.0f} s of SIGTERM.") from None

    def finish(self, task: Task) -> Task:
        """A task when it has ended, however. DeadlineError when it hangs."""
        return self.client.wait_task(task, timeout_s=OPERATION_S)

    def until(self, true: Callable[[], bool], what: str, timeout_s: float = OPERATION_S) -> None:
        """DeadlineError when it does not come true."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                raise DeadlineError(f"It does not come true within {timeout_s:.0f} s: {what}.")
            time.sleep(0.1)

    def clear(self) -> None:
        """Remove every VM and pool; raises what keeps one from going."""
        for pool in self.client.list_pools():
            self.client.remove_pool(pool.vm)
        for vm in self.client.list_vms():
            self.client.finish_task(self.client.remove_vm(vm.name, True), timeout_s=OPERATION_S)


Furnish = Callable[[Path], None]


def _furnish(state_dir: Path) -> None:
    stock.furnish(state_dir, {stock.MICRO})


@contextlib.contextmanager
def own_stage(tell: Tell, furnish: Furnish = _furnish) -> Iterator[Stage]:
    """A stage whose daemon runs; `furnish` puts the micro guest into a state folder that no daemon serves yet."""
    folder = _temporary_folder()
    stage = Stage(folder / "s", folder, tell)
    try:
        stage.checker = memcheck.build(folder)
        tell("guest and daemon")
        furnish(stage.state_dir)
        stage.start()
        stage.client.doctor()  # looks for a working accelerator, which is not to be part of a first start
        if furnish is _furnish:
            stock.remember(stage.state_dir)
        stage.privileged = stage.client.host_view().privileged
        if stage.privileged:
            stage.client.create_network(CreateNetwork(name="lab", cidr="10.77.31.0/24", dhcp=True))
            stage.client.create_network(CreateNetwork(name="copies", cidr="10.77.32.0/24", dhcp=True, fenced=True))
            stage.client.create_network(CreateNetwork(name=TRY_NETWORK, isolated=True))  # else the first trial makes it
        yield stage
    finally:
        _end(stage)
        shutil.rmtree(folder, ignore_errors=True)


def _end(stage: Stage) -> None:
    """With its VMs, also when it was just killed, or does not answer."""
    with contextlib.suppress(RametError, OSError):
        if stage._process is not None and stage._process.poll() is not None:
            stage.start()
        stage.clear()
    with contextlib.suppress(RametError, OSError):
        stage.stop()


def _temporary_folder() -> Path:
    """On a disk, as /tmp is memory on some systems, unless TMPDIR says where; short, as sockets live below it."""
    base = "/var/tmp" if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="rsoak-", dir=base))
    folder.chmod(0o755)  # QEMU's own user passes through
    return folder


def _environment() -> dict[str, str]:
    """Without what would lead to the user's own daemon, or set up ours otherwise."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAMET_")}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing."
