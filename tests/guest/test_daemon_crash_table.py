"""kill -9 of the daemon at the steps of everything that is no clone: the next one finishes it, or undoes it.

Of each workflow one step is tried in every run of the suite; all of them by RAMET_TEST_FAULTS=all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ramet.api import Client
from ramet.errors import DeadlineError, RametError
from ramet.machine import steps
from ramet.model.machine import VmState
from ramet.model.requests import (
    AddDisk,
    BuildImage,
    CloneVm,
    CreateNetwork,
    CreateVm,
    DiskRequest,
    ImportImage,
    NicRequest,
    StopVm,
)
from ramet.model.trying import TryCommand
from tests.guest.daemon_kit import Daemon, finish, inventory_is_true, is_whole, own_daemon, sh, until, until_killed

ALL = os.environ.get("RAMET_TEST_FAULTS") == "all"
CHAIN_BOUND = "4"


def bare(client: Client, name: str = "kid") -> None:
    until_killed(client, client.clone_vm("source", CloneVm(names=(name,), bare=True)))


def new() -> CreateVm:
    return CreateVm(name="new", image="micro", memory_mib=96, nics=(NicRequest(network=None),),
                    disks=(DiskRequest(size_mib=16),))  # fmt: skip


def create(client: Client) -> None:
    until_killed(client, client.create_vm(new()))


def start(client: Client) -> None:
    until_killed(client, client.start_vm("new"))


def stop(client: Client) -> None:
    until_killed(client, client.stop_vm("kid", StopVm(timeout_s=60)))


def cut(client: Client) -> None:
    until_killed(client, client.stop_vm("kid", StopVm(hard=True)))


def suspend(client: Client) -> None:
    until_killed(client, client.suspend_vm("kid"))


def suspended(client: Client) -> None:
    bare(client)
    suspend(client)


def resume(client: Client) -> None:
    until_killed(client, client.resume_vm("kid"))


def remove(client: Client) -> None:
    until_killed(client, client.remove_vm("kid", force=True))


def flatten(client: Client) -> None:
    """Behind a clone's back, once the source's chain is long."""
    for _ in range(int(CHAIN_BOUND) + 3):
        sh(client, "source", "dd if=/dev/urandom of=/d/junk bs=64k count=4 2>/dev/null; sync")
        bare(client)
        remove(client)
        for task in client.list_tasks():
            if task.kind == "vm.shorten":
                until_killed(client, task)


def import_image(client: Client) -> None:
    with tempfile.NamedTemporaryFile(suffix=".raw") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        until_killed(client, client.import_image(ImportImage(path=file.name, name="imported")))


def network(client: Client) -> None:
    client.create_network(CreateNetwork(name="extra", cidr="10.77.31.0/24", dhcp=True))
    client.remove_network("extra")


def add_disk(client: Client) -> None:
    client.add_disk("kid", AddDisk(size_mib=16))


def add_nic(client: Client) -> None:
    client.add_nic("kid", NicRequest(network=None))


def try_command(client: Client) -> None:
    until_killed(client, client.try_command("source", TryCommand(argv=("/bin/true",), timeout_s=60)))


@dataclass(frozen=True)
class Workflow:
    steps: tuple[str, ...]
    run: Callable[[Client], None]
    before: Callable[[Client], None] | None = None


WORKFLOWS: dict[str, Workflow] = {
    "create": Workflow(steps.CREATE_STEPS, create),
    "start": Workflow(steps.START_STEPS, start, create),
    "stop": Workflow(steps.STOP_STEPS[:1], stop, bare),
    "cut the power": Workflow(steps.STOP_STEPS[1:], cut, bare),
    "suspend": Workflow(steps.SUSPEND_STEPS, suspend, bare),
    "resume": Workflow(steps.START_STEPS, resume, suspended),
    "remove": Workflow(steps.REMOVE_STEPS, remove, bare),
    "flatten": Workflow(steps.FLATTEN_STEPS, flatten),
    "import": Workflow(steps.IMPORT_STEPS, import_image),
    "port group": Workflow(steps.NETWORK_STEPS, network),
    "plug a disk": Workflow(steps.DISK_STEPS, add_disk, bare),
    "plug a NIC": Workflow(steps.NIC_STEPS, add_nic, bare),
    "try": Workflow(steps.TRY_STEPS, try_command),
}

USUAL = ("start.launched", "suspend.written", "remove.forgotten", "flatten.reopened", "network.made", "try.looked")


def cases() -> Iterator[tuple[str, str]]:
    for name, flow in WORKFLOWS.items():
        for step in flow.steps:
            if ALL or (step in USUAL and name != "resume"):
                yield name, step


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with pytest.MonkeyPatch.context() as patch, own_daemon("rs-") as daemon:
        patch.setenv("RAMET_CHAIN_BOUND", CHAIN_BOUND)
        client = daemon.start()
        finish(client, client.build_image(BuildImage(recipe="micro")))
        request = CreateVm(name="source", image="micro", memory_mib=192, nics=(NicRequest(network=None),),
                           disks=(DiskRequest(size_mib=64),), start=True)  # fmt: skip
        finish(client, client.create_vm(request))
        until(lambda: answers(client, "source"))
        sh(client, "source", "mke2fs -q /dev/vda >/dev/null 2>&1; mkdir -p /d; mount /dev/vda /d; echo 0 > /d/n; sync")
        daemon.stop()
        yield daemon


def answers(client: Client, name: str) -> bool:
    """A guest that boots beside others takes its time."""
    with contextlib.suppress(DeadlineError):
        return sh(client, name, "echo yes") == "yes"
    return False


def clear(client: Client) -> None:
    for vm in client.list_vms():
        if vm.name != "source":
            finish(client, client.remove_vm(vm.name, force=True))
    for image in client.list_images():
        if image.name == "imported":
            client.remove_image("imported")
    for group in client.list_networks():
        if group.name in ("extra", "ramet-try"):
            client.remove_network(group.name)


def nothing_is_left(client: Client, daemon: Daemon) -> None:
    """Layers are VMs' or images'; what is off has no process; what runs is whole; nothing else is there."""
    imported = any(image.name == "imported" for image in client.list_images())
    if imported:
        client.remove_image("imported")
    for vm in client.list_vms():
        assert vm.state in (VmState.OFF, VmState.SUSPENDED, VmState.RUNNING), (vm.name, vm.state)
        if vm.name == "new":  # it boots, and has no disk that is written to
            finish(client, client.remove_vm("new", force=True))
    until(lambda: not [vm for vm in client.list_vms() if vm.name not in ("source", "kid")])  # a trial's clone
    inventory_is_true(client, daemon, {"source", "kid"})


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "step"), list(cases()), ids=str)
def test_killed_at(daemon: Daemon, name: str, step: str) -> None:
    flow = WORKFLOWS[name]
    if name == "port group" and os.geteuid() != 0:
        pytest.skip("port groups need root")
    daemon.kill()  # one that a failed case left
    client = daemon.start()
    if flow.before is not None:
        flow.before(client)
    daemon.stop()
    client = daemon.start(kill_at=step)
    with pytest.raises(RametError):
        flow.run(client)
    daemon.wait_killed()
    client = daemon.start()
    is_whole(client, "source")
    nothing_is_left(client, daemon)
    for vm in client.list_vms():  # what was cut off can be done now
        if vm.name == "kid" and vm.state is not VmState.RUNNING:
            suspended_before = vm.state is VmState.SUSPENDED
            finish(client, client.resume_vm("kid") if suspended_before else client.start_vm("kid"))
            if suspended_before:
                is_whole(client, "kid")
    clear(client)
    daemon.stop()
