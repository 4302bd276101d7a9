"""kill -9 of the daemon while clones are in fences: they stay reachable, and what ended meanwhile leaves no fence."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from ramet.api import Client
from ramet.errors import RametError
from ramet.model.requests import BuildImage, CloneVm, CreateNetwork, CreateVm, NicChange, NicRequest
from ramet.network import privilege
from ramet.network.services import find_running
from tests.guest.daemon_kit import Daemon, finish, own_daemon, sh
from tests.guest.test_fenced_clones import fences

pytestmark = pytest.mark.skipif(privilege.find_problem() is not None, reason=str(privilege.find_problem()))


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with own_daemon("rf-") as daemon:
        yield daemon


def address_of(client: Client, name: str) -> str:
    [nic] = client.show_vm(name).nics
    return nic.addresses[0] if nic.addresses else ""


def answers(client: Client, name: str) -> bool:
    with contextlib.suppress(RametError):
        return sh(client, name, "echo here") == "here"
    return False


def until(condition: Callable[[], object]) -> None:
    """For a guest that boots."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_fences_outlive_the_daemon_and_not_their_guests(daemon: Daemon) -> None:
    client = daemon.start()
    finish(client, client.build_image(BuildImage(recipe="micro")))
    client.create_network(CreateNetwork(name="lab", cidr="10.77.11.0/24", dhcp=True))
    client.create_network(CreateNetwork(name="copies", cidr="10.77.12.0/24", dhcp=True, fenced=True))
    request = CreateVm(name="tier", image="micro", memory_mib=128, nics=(NicRequest(network="lab"),), start=True)
    finish(client, client.create_vm(request))
    until(lambda: address_of(client, "tier"))
    until(lambda: answers(client, "tier"))
    into = NicChange(id="net0", network="copies")
    finish(client, client.clone_vm("tier", CloneVm(names=("one", "two"), nics=(into,))))
    before = {name: address_of(client, name) for name in ("tier", "one", "two")}
    assert len(set(before.values())) == 3
    daemon.kill()
    assert len(fences(daemon.state_dir)) == 2
    client = daemon.start()
    assert {name: address_of(client, name) for name in before} == before
    assert sh(client, "one", "ping -c 1 -W 2 10.77.11.1 > /dev/null && echo reached") == "reached"
    # One ends while no daemon looks, another is removed; each takes its fence along.
    pid = client.show_vm("one").pid
    assert pid
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    client = daemon.start()
    [left] = fences(daemon.state_dir)
    assert address_of(client, "two") == before["two"]
    assert len(find_running("dnsmasq", f"--conf-file={daemon.state_dir}/network/fence-")) == 1
    finish(client, client.start_vm("one"))
    assert len(fences(daemon.state_dir)) == 2
    for name in ("one", "two"):
        finish(client, client.remove_vm(name, force=True))
    assert fences(daemon.state_dir) == []
    assert left
    client.remove_network("copies")
    assert find_running("dnsmasq", f"--conf-file={daemon.state_dir}/network/fence-") == {}
