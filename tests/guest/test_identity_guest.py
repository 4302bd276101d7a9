"""A clone's guest takes on its identity: bare clones of a busybox guest with a NIC of each model."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ramet.errors import GuestError
from ramet.guest.agent import Agent
from ramet.guest.identity import apply, freeze_hooks
from ramet.host.service import Host
from ramet.machine.live import LiveMachine
from ramet.model.identity import Acknowledgement, Part, Plan, PlannedNic, TcpPolicy
from ramet.model.machine import NicModel
from ramet.model.requests import NicChange, NicRequest
from tests.guest.conftest import Guests

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Only the first has a port group: several NICs in one network confuse every kernel's ARP.
NICS = (
    NicRequest(model=NicModel.E1000E),
    NicRequest(model=NicModel.VIRTIO, network=None),
    NicRequest(model=NicModel.VMXNET3, network=None),
)
NETWORK_PARTS = (Part.TCP, Part.NICS, Part.ADDRESS)
LISTEN = """
timeout 30 sh -c 'until ip -4 -o addr | grep -v 127.0.0.1 | grep -q inet; do sleep 0.1; done'
(nc -l -p 7000 >/run/received; echo $? >/run/nc.ended) >/dev/null 2>&1 &
timeout 20 sh -c 'until netstat -lnt | grep -q :7000; do sleep 0.05; done'
"""
CONNECTIONS = "cat /proc/net/tcp /proc/net/tcp6 | grep -c ':1B58 .* 0[1-5] '"


def live_of(host: Host, name: str) -> LiveMachine:
    return host.floor.find(name)


def plan_of(clone: LiveMachine, source: LiveMachine, **more: object) -> Plan:
    """The second NIC has an address of its own, the others ask for one."""
    static = {"address": "10.99.0.5/24", "gateway": None}
    nics = [
        PlannedNic(id=nic.id, mac=nic.mac, old_mac=old.mac, **(static if number == 1 else {}))
        for number, (nic, old) in enumerate(zip(clone.vm.machine.nics, source.vm.machine.nics, strict=True))
    ]
    return Plan(hostname=clone.name, domain="example.org", **{"nics": nics, **more})


async def identify(host: Host, name: str, **more: object) -> Acknowledgement:
    clone = live_of(host, name)
    return await apply(clone.agent, plan_of(clone, live_of(host, "parent"), **more), entropy=os.urandom(64))


async def macs(guests: Guests, name: str) -> dict[str, str]:
    """Interface -> MAC, as the guest has it."""
    lines = await guests.sh(name, "for n in /sys/class/net/eth*; do echo ${n##*/} $(cat $n/address); done")
    return dict(line.split() for line in lines.splitlines())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def parent(host: Host) -> AsyncIterator[str]:
    guests = Guests(host)
    if "default" not in {network.name for network in await host.list_networks()}:
        pytest.skip("port groups need privileges that are missing here")
    await guests.boot("parent", memory_mib=160, nics=NICS)
    await guests.sh("parent", LISTEN)
    with await host.open_stream("tcp", "parent", 7000) as connection:
        connection.sendall(b"hello\n")
        await guests.sh("parent", "timeout 20 sh -c 'until grep -q hello /run/received; do sleep 0.05; done'")
        yield "parent"
    await guests.remove_all()


async def test_a_clone_becomes_a_machine_of_its_own(host: Host, guests: Guests, parent: str) -> None:
    before = await macs(guests, parent)
    await guests.clone(parent, "one", "two", bare=True)
    told = [await identify(host, name) for name in ("one", "two")]

    for name, said in zip(("one", "two"), told, strict=True):
        clone, source = live_of(host, name), live_of(host, parent)
        fresh = {old.mac: nic.mac for old, nic in zip(source.vm.machine.nics, clone.vm.machine.nics, strict=True)}
        assert set(said.done) == set(Part)
        assert said.random == "reseeded"
        assert said.tcp_killed == 1
        assert not said.warnings
        assert await macs(guests, name) == {interface: fresh[mac] for interface, mac in before.items()}
        assert said.addresses == {clone.vm.machine.nics[1].id: "10.99.0.5/24"}
        assert said.hostname == name == await guests.sh(name, "hostname")
        assert f"127.0.1.1\t{name}.example.org {name}" in await guests.sh(name, "cat /etc/hosts")
        assert said.machine_id == await guests.sh(name, "cat /etc/machine-id")
        assert said.generation == await guests.sh(name, "cat /run/ramet/generation")
        ended = "timeout 20 sh -c 'until [ -s /run/nc.ended ]; do sleep 0.1; done'; cat /run/nc.ended"
        assert (await guests.sh(name, ended)).isdigit()  # its program was told
    assert told[0].machine_id != told[1].machine_id
    draws = {await guests.sh(name, "head -c 16 /dev/urandom | base64") for name in ("one", "two", parent)}
    assert len(draws) == 3
    # The source's connection is as it was.
    assert await guests.sh(parent, f"[ ! -e /run/nc.ended ]; {CONNECTIONS}") == "1"


async def test_a_clone_asks_for_an_address_when_its_links_come_up(host: Host, guests: Guests, parent: str) -> None:
    await guests.clone(parent, "asks", bare=True)
    await identify(host, "asks")
    clone = live_of(host, "asks")
    source = live_of(host, parent)
    name = {mac: interface for interface, mac in (await macs(guests, parent)).items()}[source.vm.machine.nics[0].mac]
    show = f"ip -4 -o addr show dev {name}"
    theirs = await guests.sh(parent, show)
    assert await guests.sh("asks", show) == ""
    await host.change_nic("asks", NicChange(id=clone.vm.machine.nics[0].id, connected=True))
    mine = await guests.sh("asks", f"until {show} | grep inet; do sleep 0.05; done")
    assert mine.split()[3] != theirs.split()[3]


async def test_the_clock_is_right_however_wrong_it_was(host: Host, guests: Guests, parent: str) -> None:
    await guests.clone(parent, "late", bare=True)
    agent = live_of(host, "late").agent
    for wrong in ("2020-01-01 00:00:00", "2035-01-01 00:00:00"):
        await guests.sh("late", f"date -s '{wrong}'")
        said = await identify(host, "late", parts=(Part.CLOCK,))
        assert said.clock_error_ms is not None
        assert abs(said.clock_error_ms) < 100
        before = time.time()
        guest = await agent.command("guest-get-time") / 1e9
        assert before - 0.1 < guest < time.time() + 0.1


async def test_again_nothing_changes(host: Host, guests: Guests, parent: str) -> None:
    await guests.clone(parent, "again", bare=True)
    clone = live_of(host, "again")
    plan = plan_of(clone, live_of(host, parent))
    first = await apply(clone.agent, plan, entropy=os.urandom(64))
    addresses = await guests.sh("again", "ip -4 addr show dev eth1")
    second = await apply(clone.agent, plan, entropy=os.urandom(64))
    assert (second.machine_id, second.addresses, second.done) == (first.machine_id, first.addresses, tuple(Part))
    assert await guests.sh("again", "ip -4 addr show dev eth1") == addresses
    # A clone of the clone, with another plan, is somebody else.
    third = await apply(clone.agent, plan.changed(generation=Plan(hostname="x").generation), entropy=os.urandom(64))
    assert third.machine_id != first.machine_id


@pytest.mark.parametrize("policy", [TcpPolicy.KEEP, TcpPolicy.DROP])
async def test_connections_can_be_left(host: Host, guests: Guests, parent: str, policy: TcpPolicy) -> None:
    await guests.clone(parent, "left", bare=True)
    said = await identify(host, "left", tcp=policy)
    assert said.tcp_killed == 0
    assert await guests.sh("left", f"[ ! -e /run/nc.ended ]; {CONNECTIONS}") == "1"
    await guests.remove("left")


async def test_parts_that_are_left_out_stay(host: Host, guests: Guests, parent: str) -> None:
    before, hosts = await macs(guests, parent), await guests.sh(parent, "hostname; cat /etc/hosts")
    await guests.clone(parent, "same", bare=True)
    parts = tuple(part for part in Part if part not in (*NETWORK_PARTS, Part.HOSTNAME))
    said = await identify(host, "same", parts=parts)
    assert set(said.done) == set(parts)
    assert await macs(guests, "same") == before
    assert await guests.sh("same", "hostname; cat /etc/hosts") == hosts
    assert said.hostname == ""


async def write_hook(guests: Guests, name: str, path: str, text: str) -> None:
    await guests.sh(name, f"printf '%s\\n' '#!/bin/sh' '{text}' >/etc/ramet/{path}; chmod +x /etc/ramet/{path}")


async def test_hooks_run_in_order_with_what_they_need_to_know(host: Host, guests: Guests, parent: str) -> None:
    await guests.clone(parent, "hooked", bare=True)
    await write_hook(guests, "hooked", "clone.d/20-b", "echo b $RAMET_HOSTNAME $(hostname) >>/run/hooks")
    await write_hook(guests, "hooked", "clone.d/10-a", "echo a $RAMET_GENERATION ${RAMET_SEED:-none} >>/run/hooks")
    await guests.sh("hooked", "echo not a program >/etc/ramet/clone.d/README")
    said = await identify(host, "hooked")
    ran = await guests.sh("hooked", "cat /run/hooks")
    assert ran == f"a {said.generation} none\nb hooked hooked"


async def test_a_hook_that_fails_or_hangs_is_no_acknowledgement(host: Host, guests: Guests, parent: str) -> None:
    await guests.clone(parent, "stuck", bare=True)
    await write_hook(guests, "stuck", "clone.d/10-fails", "echo no such database; exit 3")
    with pytest.raises(GuestError, match=r"hooks: .*10-fails ended with status 3: no such database"):
        await identify(host, "stuck")
    await write_hook(guests, "stuck", "clone.d/10-fails", "sleep 4711 & sleep 4711")
    with pytest.raises(GuestError, match=r"10-fails did not end within 1 s"):
        await identify(host, "stuck", parts=(Part.HOOKS,), hooks_timeout_s=1)
    assert await guests.sh("stuck", "ps | grep -c '[s]leep 4711'", check=False) == "0"
    await guests.sh("stuck", "rm /etc/ramet/clone.d/*")
    assert set((await identify(host, "stuck")).done) == set(Part)


async def test_freeze_hooks(host: Host, guests: Guests, parent: str) -> None:
    await guests.clone(parent, "cold", bare=True)
    agent: Agent = live_of(host, "cold").agent
    assert not await freeze_hooks(agent, "freeze", 5)
    await write_hook(guests, "cold", "freeze.d/10-a", "echo a $1 >>/run/hooks")
    await write_hook(guests, "cold", "freeze.d/20-b", "echo b $1 >>/run/hooks; [ ! -e /run/fail ]")
    assert await freeze_hooks(agent, "freeze", 5)
    said = await identify(host, "cold", thaw_hooks=True)
    assert not said.warnings
    assert await guests.sh("cold", "cat /run/hooks; rm /run/hooks; touch /run/fail") == (
        "a freeze\nb freeze\na thaw\nb thaw"
    )
    with pytest.raises(GuestError, match="20-b ended with status 1"):
        await freeze_hooks(agent, "freeze", 5)
    assert await guests.sh("cold", "cat /run/hooks") == "a freeze\nb freeze\na thaw\nb thaw"
    with pytest.raises(GuestError, match="20-b"):
        await freeze_hooks(agent, "thaw", 5)


async def test_a_program_that_ran_before_sees_the_sign(host: Host, guests: Guests, parent: str) -> None:
    """The file is there from the start, and stays the same file: for those who have it open, mapped or watched."""
    await guests.clone(parent, "sees", bare=True)
    before = await guests.sh("sees", "stat -c '%i %s' /run/ramet/generation; cat /run/ramet/generation")
    program = "exec 3</run/ramet/generation; until [ -e /run/go ]; do sleep 0.05; done; cat <&3 >/run/seen"
    await guests.sh("sees", f"({program}) >/dev/null 2>&1 &")
    said = await identify(host, "sees", parts=(Part.RANDOM,))
    after = await guests.sh("sees", "stat -c '%i %s' /run/ramet/generation; cat /run/ramet/generation")
    assert before.splitlines()[0] == after.splitlines()[0]
    assert said.generation == after.splitlines()[1] != before.splitlines()[1]
    seen = "touch /run/go; timeout 20 sh -c 'until [ -s /run/seen ]; do sleep 0.05; done'; cat /run/seen"
    assert await guests.sh("sees", seen) == said.generation


async def test_a_guest_that_does_not_find_its_nics(host: Host, guests: Guests, parent: str) -> None:
    await guests.clone(parent, "lost", bare=True)
    nics = (PlannedNic(id="net7", mac="52:54:00:aa:aa:aa", old_mac="52:54:00:bb:bb:bb"),)
    with pytest.raises(GuestError, match=r"at nics: .* not 52:54:00:aa:aa:aa"):
        await identify(host, "lost", nics=nics)
