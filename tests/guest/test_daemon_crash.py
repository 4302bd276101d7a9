"""kill -9 of the daemon at every step of both workflows: the source goes on, and the inventory is true again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ramet.api import Client
from ramet.errors import DeadlineError, RametError
from ramet.host.copies import read_copies
from ramet.machine.steps import (
    CLONE_STEPS,
    COPY_STEPS,
    FREEZE_STEPS,
    FROZEN_CLONE_STEPS,
    IDENTITY_STEPS,
    THAW_STEPS,
    ZYGOTE_STEPS,
)
from ramet.model.identity import IdentityState
from ramet.model.requests import BuildImage, CloneVm, CopyVm, CreateVm, DiskRequest, NicRequest
from tests.guest.daemon_kit import Daemon, finish, inventory_is_true, is_whole, own_daemon, sh, until, until_killed


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with own_daemon("rk-") as daemon:
        client = daemon.start()
        finish(client, client.build_image(BuildImage(recipe="micro")))
        make(client, "source")
        daemon.stop()
        yield daemon


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
    until(lambda: answers(client, name))
    sh(client, name, "mke2fs -q /dev/vda >/dev/null 2>&1; mkdir -p /d; mount /dev/vda /d; echo 0 > /d/n; sync", 120)


def answers(client: Client, name: str) -> bool:
    """A guest that boots beside others takes its time."""
    with contextlib.suppress(DeadlineError):
        return sh(client, name, "echo yes") == "yes"
    return False


def remove_clones(client: Client) -> None:
    for vm in client.list_vms():
        if vm.name != "source":
            finish(client, client.remove_vm(vm.name, force=True))


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("step", [*COPY_STEPS, "clone.stopped", "clone.taken"])
def test_killed_while_copying_the_disks_of_a_running_vm(daemon: Daemon, step: str, linked: bool) -> None:
    """The stun of a copy goes by the steps of a clone's."""
    client = daemon.start(kill_at=step)
    sh(client, "source", "echo 7 > /d/n; sync")
    with pytest.raises(RametError):
        until_killed(client, client.copy_vm("source", CopyVm(name="copy", linked=linked)))
    daemon.wait_killed()
    client = daemon.start()
    is_whole(client, "source")
    inventory_is_true(client, daemon, {"source", "copy"})
    assert ("copy" in {vm.name for vm in client.list_vms()}) is (step == "copy.recorded")
    remove_clones(client)
    finish(client, client.copy_vm("source", CopyVm(name="copy", linked=linked)))
    remove_clones(client)
    inventory_is_true(client, daemon, {"source"})
    daemon.stop()


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


def copied_pids(daemon: Daemon) -> dict[str, int]:
    copies = read_copies(daemon.state_dir / "records")
    vms = [copied.value for key, copied in copies.items() if key.startswith("vm/")]
    return {vm["machine"]["name"]: vm["process"]["pid"] for vm in vms if vm["process"] is not None}


@pytest.mark.parametrize("damage", ["overwritten", "gone"])
def test_a_vm_runs_on_while_the_inventory_is_repaired(daemon: Daemon, damage: str) -> None:
    client = daemon.start()
    finish(client, client.clone_vm("source", CloneVm(names=("kid",), bare=True)))
    pids = {vm.name: vm.pid for vm in client.list_vms()}
    until(lambda: copied_pids(daemon) == pids)  # the copies of records are a moment behind
    daemon.kill()
    inventory = daemon.state_dir / "inventory.db"
    if damage == "gone":
        inventory.unlink()
    else:
        inventory.write_bytes(os.urandom(inventory.stat().st_size))
    assert "ramet doctor --repair" in daemon.refuses()
    argv = [sys.executable, "-P", "-m", "ramet.cli", "doctor", "--repair", "--state", str(daemon.state_dir)]
    printed = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "kid, source" in printed
    client = daemon.start()
    assert {vm.name: vm.pid for vm in client.list_vms()} == pids
    is_whole(client, "source")
    is_whole(client, "kid")
    inventory_is_true(client, daemon, {"source", "kid"})
    shutil.rmtree(next(daemon.state_dir.glob("damaged-*")))
    remove_clones(client)
    daemon.stop()


def freeze_clone_and_thaw(client: Client) -> None:
    until_killed(client, client.freeze_vm("source"))
    until_killed(client, client.clone_vm("source", CloneVm(names=("kid",), bare=True)))
    until_killed(client, client.thaw_vm("source"))


@pytest.mark.parametrize("step", [*FREEZE_STEPS, *ZYGOTE_STEPS, *FROZEN_CLONE_STEPS, *THAW_STEPS])
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
