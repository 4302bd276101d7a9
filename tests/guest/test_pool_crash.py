"""kill -9 of the daemon at every step of a pool's clones: no orphan, the source whole, and who was taken runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from ramet.api import Client
from ramet.errors import DeadlineError, RametError
from ramet.machine.steps import POOL_DROP_STEPS, POOL_GROW_STEPS, POOL_TAKE_STEPS
from ramet.model.machine import VmState
from ramet.model.pool import PoolState, PoolView, SetPool
from ramet.model.requests import BuildImage, CloneVm, CreateVm, DiskRequest, NicRequest
from tests.guest.daemon_kit import Daemon, finish, inventory_is_true, is_whole, own_daemon, sh, until, until_killed

FREEZE = """
(
  sleep 1; vmware-rpctool "instantclone.freeze"; vmware-rpctool 'info-get guestinfo.me' > /run/me
) >/dev/null 2>&1 &
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Its state has a VM, `source`, that has frozen itself."""
    with own_daemon("rq-") as daemon:
        prepare(daemon.start())
        daemon.stop()
        yield daemon


def prepare(client: Client) -> None:
    finish(client, client.build_image(BuildImage(recipe="micro")))
    request = CreateVm(name="source", image="micro", memory_mib=192, disks=(DiskRequest(size_mib=64),), start=True)
    finish(client, client.create_vm(request.changed(nics=(NicRequest(network=None),))))
    until(lambda: answers(client))
    sh(client, "source", "mke2fs -q /dev/vda >/dev/null 2>&1; mkdir -p /d; mount /dev/vda /d; echo 0 > /d/n; sync", 120)
    sh(client, "source", FREEZE)
    until(lambda: client.show_vm("source").frozen)


def answers(client: Client) -> bool:
    """A guest that boots beside others takes its time."""
    with contextlib.suppress(DeadlineError):
        return sh(client, "source", "echo yes") == "yes"
    return False


def pool(client: Client) -> PoolView:
    return client.list_pools()[0]


def is_full(client: Client) -> bool:
    return pool(client).state is PoolState.FULL


def nothing_is_left(client: Client, daemon: Daemon, allowed: set[str]) -> None:
    """Of the pool, once it is given up; and the source is as frozen as it was."""
    assert client.show_vm("source").state is VmState.FROZEN
    until(lambda: bool(client.list_pools()))
    client.remove_pool("source")
    inventory_is_true(client, daemon, allowed)


@pytest.mark.parametrize("step", POOL_GROW_STEPS)
def test_killed_while_a_pool_grows(daemon: Daemon, step: str) -> None:
    client = daemon.start(kill_at=step)
    client.set_pool("source", SetPool(size=2))
    daemon.wait_killed()
    client = daemon.start()
    until(lambda: is_full(client))
    nothing_is_left(client, daemon, {"source"})
    daemon.stop()


@pytest.mark.parametrize("step", POOL_TAKE_STEPS)
def test_killed_while_a_clone_is_taken(daemon: Daemon, step: str) -> None:
    client = daemon.start(kill_at=step)
    client.set_pool("source", SetPool(size=2))
    until(lambda: is_full(client))
    request = CloneVm(names=("kid",), bare=True, extra_config={"guestinfo.me": "kid"})
    with pytest.raises(RametError):
        until_killed(client, client.clone_vm("source", request))
    daemon.wait_killed()
    client = daemon.start()
    assert client.show_vm("kid").state is VmState.RUNNING
    assert sh(client, "kid", "until [ -s /run/me ]; do sleep 0.1; done; cat /run/me") == "kid"
    nothing_is_left(client, daemon, {"source", "kid"})
    finish(client, client.remove_vm("kid", force=True))
    daemon.stop()


@pytest.mark.parametrize("step", POOL_DROP_STEPS)
def test_killed_while_a_pool_is_given_up(daemon: Daemon, step: str) -> None:
    client = daemon.start(kill_at=step)
    client.set_pool("source", SetPool(size=2))
    until(lambda: is_full(client))
    with pytest.raises(RametError):
        client.remove_pool("source")
    daemon.wait_killed()
    client = daemon.start()
    assert client.list_pools() == []
    client.set_pool("source", SetPool(size=1))
    until(lambda: is_full(client))
    nothing_is_left(client, daemon, {"source"})
    daemon.stop()


def test_the_source_goes_on_and_its_pool_goes(daemon: Daemon) -> None:
    client = daemon.start()
    client.set_pool("source", SetPool(size=2))
    until(lambda: is_full(client))
    finish(client, client.thaw_vm("source"))
    until(lambda: pool(client).ready == 0 and pool(client).state is PoolState.WAITING)
    is_whole(client, "source")
    client.remove_pool("source")
    inventory_is_true(client, daemon, {"source"})
    daemon.stop()
