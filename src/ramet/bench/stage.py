"""Where a bench takes place: a temporary state folder with a daemon of its own, and QEMUs started by hand beside it.

Nothing of it is left afterwards, whatever happened; the user's own daemon and state are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ramet.api.client import Client
from ramet.bench import stock
from ramet.bench.hand.machine import Pattern
from ramet.bench.shell import DaemonShell, Shell
from ramet.errors import DeadlineError, PeerError, RametError
from ramet.hypervisor.native import NativePaths, install_native
from ramet.hypervisor.version import Qemu, find_qemu
from ramet.machine.paths import StatePaths
from ramet.model.host import Task
from ramet.model.machine import Accelerator
from ramet.model.pool import SetPool
from ramet.model.requests import CloneVm, CreateVm, DiskRequest, ImportImage, NicRequest
from ramet.model.views import CloneResult, VmView

BOOT_S = 300.0
TASK_S = 900.0
_ONE_WAIT_S = 60.0
"""The longest that the API waits for an agent."""
_READY_S = 90.0
_END_S = 120.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Guest:
    """What is booted."""

    recipe: str
    memory_mib: int
    disk_mib: int | None = None
    """A second disk; for the micro guest, which has none, its first."""
    network: str | None = None

    @property
    def text(self) -> str:
        disk = f", disk of {self.disk_mib} MiB" if self.disk_mib else ""
        return f"{self.recipe}, {self.memory_mib} MiB{disk}"


@dataclass
class Stage:
    """The bench's own daemon. `tell` is given a line for people now and then."""

    client: Client
    state_dir: Path
    qemu: Qemu
    native: NativePaths
    """A copy: what is installed may be replaced meanwhile."""
    tell: Tell
    quick: bool
    _names: int = 0
    _folders: int = field(default=0)

    def name(self, prefix: str) -> str:
        """One that no VM of this stage has had."""
        self._names += 1
        return f"{prefix}{self._names}"

    # -- VMs of the daemon -------------------------------------------------------------------------------------------

    def finish(self, task: Task) -> list[CloneResult]:
        """Wait for a task; a clone's results. Raises its error."""
        result = self.client.finish_task(task, timeout_s=TASK_S)
        return [CloneResult.model_validate(one) for one in result] if task.kind == "clone" else []

    @contextlib.contextmanager
    def booted(self, name: str, guest: Guest) -> Iterator[VmView]:
        """A VM whose agent answers; removed in the end."""
        self._need(guest.recipe)
        request = CreateVm(
            name=name,
            image=guest.recipe,
            memory_mib=guest.memory_mib,
            disks=(DiskRequest(size_mib=guest.disk_mib),) if guest.disk_mib else (),
            nics=(NicRequest(network=self._network(guest.network)),),
            start=True,
        )
        self.finish(self.client.create_vm(request))
        try:
            view = self.client.show_vm(name)
            self.wait_answer(view.id)
            yield view
        finally:
            self.remove(name)

    def _network(self, wanted: str | None) -> str | None:
        return wanted if self.client.host_view().privileged else "user"

    def _need(self, recipe: str) -> None:
        if any(image.name == recipe for image in self.client.list_images()):
            return
        self.tell(f"taking in the {recipe} guest")
        disk = stock.built(recipe).disk
        self.finish(self.client.import_image(ImportImage(path=str(disk), name=recipe)))

    def shell(self, vm_id: str) -> Shell:
        return DaemonShell(self.client, vm_id)

    def wait_answer(self, vm_id: str, timeout_s: float = BOOT_S) -> None:
        """Until the guest agent answers, as every caller of the API asks it. DeadlineError."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > _ONE_WAIT_S:
            with contextlib.suppress(DeadlineError):  # it boots
                return self.client.wait_agent(vm_id, _ONE_WAIT_S)
        self.client.wait_agent(vm_id, max(left_s, 0.1))

    def clone(self, source: str, name: str, **more: object) -> CloneResult:
        """One clone, bare unless `more` says otherwise."""
        request = CloneVm.model_validate({"names": (name,), "bare": True, **more})
        (result,) = self.finish(self.client.clone_vm(source, request))
        return result

    def remove(self, name: str) -> None:
        self.finish(self.client.remove_vm(name, True))

    def freeze(self, name: str) -> None:
        self.finish(self.client.freeze_vm(name))

    @contextlib.contextmanager
    def pool(self, name: str, size: int) -> Iterator[Callable[[], None]]:
        """A pool of a frozen VM; yields what waits until it is full."""
        self.client.set_pool(name, SetPool(size=size))
        try:
            yield lambda: self._until_full(name)
        finally:
            self.client.remove_pool(name)

    def _until_full(self, name: str) -> None:
        deadline = time.monotonic() + BOOT_S
        while not any(pool.vm == name and pool.ready == pool.size for pool in self.client.list_pools()):
            if time.monotonic() > deadline:
                raise DeadlineError(f"The pool of {name} does not fill.")
            time.sleep(0.05)

    # -- beside it ---------------------------------------------------------------------------------------------------

    def pattern(self, view: VmView) -> Pattern:
        """For QEMUs by hand that are the same machine as a VM of the daemon's. Use it as a context manager."""
        self._folders += 1
        layers = StatePaths(self.state_dir).layers
        bases = {disk.id: layers / f"{disk.chain[-1].id}.qcow2" if len(disk.chain) > 1 else None for disk in view.disks}
        accelerator = Accelerator(view.accelerator or Accelerator.TCG.value)
        folder = self.state_dir.parent / f"hand{self._folders}"
        return Pattern(view.machine, self.qemu, accelerator, self.native, folder, bases)

    def command_line_ms(self, runs: int = 5) -> float:
        """What the program adds to a call of the API: median of `ramet vm ls` less the call itself."""
        argv = [sys.executable, "-P", "-m", "ramet.cli", "--state", str(self.state_dir), "vm", "ls", "-q"]
        times = []
        for _ in range(runs):
            began = time.monotonic()
            subprocess.run(argv, check=True, capture_output=True, timeout=60, env=_environment())
            ran = time.monotonic()
            self.client.list_vms()
            times.append(2 * ran - began - time.monotonic())
        return round(sorted(times)[runs // 2] * 1000, 1)


@contextlib.contextmanager
def own_stage(recipes: set[str], tell: Tell, *, quick: bool) -> Iterator[Stage]:
    """A stage, and nothing of it afterwards."""
    qemu = asyncio.run(find_qemu())
    folder = _temporary_folder()
    try:
        tell("guests and daemon")
        stock.furnish(folder / "s", recipes)
        with daemon(folder / "s") as client:
            client.doctor()  # looks for a working accelerator, which is not to be part of a boot
            stock.remember(folder / "s")
            yield Stage(client, folder / "s", qemu, install_native(folder / "native"), tell, quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder() -> Path:
    """On a disk, as /tmp is memory on some systems, unless TMPDIR says where; short, as sockets live below it."""
    base = "/var/tmp" if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ramet-bench-", dir=base))
    folder.chmod(0o755)  # QEMU's own user passes through
    return folder


def _environment() -> dict[str, str]:
    """Without what would lead to the user's own daemon, or set up ours otherwise than by default."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAMET_")}


@contextlib.contextmanager
def daemon(state_dir: Path, *, clear: bool = True) -> Iterator[Client]:
    """Of a folder that is furnished; its VMs are removed in the end if `clear`.

    In a session of its own: Ctrl-C is for us, who then end it.
    """
    ready_r, ready_w = os.pipe()
    log_path = state_dir / "run" / "daemon.log"
    argv = [sys.executable, "-P", "-m", "ramet.serve", "--state", str(state_dir), "--ready-fd", str(ready_w)]
    with log_path.open("ab") as log, os.fdopen(ready_r, "rb") as ready:
        process = subprocess.Popen(
            [*argv, "--stop-vms"], pass_fds=[ready_w], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, env=_environment(),
        )  # fmt: skip
        os.close(ready_w)
        if not ready.read(1):
            process.wait(_READY_S)
            raise PeerError(f"The bench's daemon did not start: {_last_line(log_path)}")
    try:
        with Client(state_dir / "run" / "api.sock") as client:
            try:
                yield client
            finally:
                if clear:
                    _clear(client)
    finally:
        process.terminate()
        process.wait(_END_S)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing."


def _clear(client: Client) -> None:
    """Pools first, for they fill again; what fails is left to the daemon's own end."""
    with contextlib.suppress(RametError, OSError):
        for pool in client.list_pools():
            client.remove_pool(pool.vm)
        for vm in client.list_vms():
            client.wait_task(client.remove_vm(vm.name, True))
