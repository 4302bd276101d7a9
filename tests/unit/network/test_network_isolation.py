"""Who reaches whom: port groups, gateways, moved and guarded ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ramet.errors import ToolError
from ramet.model.host import Network
from ramet.network.firewall import Guard
from tests.unit.network.network_kit import Lab, Room, exchange, is_answered, needs_privilege
from tests.unit.network.test_network_services import Listener, connects

pytestmark = needs_privilege

MAC = "52:54:00:00:00:01"


async def test_port_groups_never_reach_each_other(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        await lab.networks.ensure(Network(name="b", cidr="10.99.1.0/24"))
        one = await lab.guest("a", "10.99.0.11/24")
        other = await lab.guest("b", "10.99.1.11/24")
        await one.run("ip", "route", "add", "default", "via", "10.99.0.1")
        await other.run("ip", "route", "add", "default", "via", "10.99.1.1")
        assert await one.reaches("10.99.0.1")
        assert not await one.reaches("10.99.1.11")
        assert not await one.reaches("10.99.1.1")


async def test_an_isolated_port_group_has_its_members_only(tmp_path: Path) -> None:
    """Not the gateway, not the namespace's other addresses, no other port group, not the world behind its NAT: also
    when the guest routes there by hand, or speaks in another's name."""
    async with Room() as host, Room() as world:
        await host.join(world, "wan", "198.51.100.1/24", "198.51.100.2/24")
        await host.run("ip", "route", "add", "default", "via", "198.51.100.2")
        async with Lab(tmp_path, outside=host) as lab, Listener(world, "198.51.100.2"):
            await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24", dhcp=True, isolated=True))
            await lab.networks.ensure(Network(name="b", cidr="10.99.1.0/24", dhcp=True, nat=True))
            one, two, other = await lab.guest("a"), await lab.guest("a"), await lab.guest("b", "10.99.1.11/24")
            given = [await guest.dhcp() for guest in (one, two)]
            assert given[0]["router"] == ""
            assert await one.reaches(given[1]["ip"])
            with await two.thread.run(socket.create_server, (given[1]["ip"], 80)):
                assert await connects(one, given[1]["ip"])
            await one.run("ip", "route", "add", "default", "via", "10.99.0.1")
            for address in ("10.99.0.1", "10.99.1.1", "10.99.1.11", "169.254.77.2", "169.254.77.1", "198.51.100.2"):
                assert not await one.reaches(address), address
            assert not await connects(one, "198.51.100.2")
            assert not await other.reaches(given[0]["ip"])
            with pytest.raises(ToolError):  # names of the world would be a way out, too
                await one.run("busybox", "nslookup", "-type=a", "elsewhere.example", "10.99.0.1")
            await one.set_address("10.99.1.12/24")  # as a member of the other
            await one.run("ip", "route", "replace", "default", "via", "10.99.0.1", "src", "10.99.1.12")
            assert not await connects(one, "198.51.100.2")
            assert not await one.reaches("10.99.1.11")


async def test_a_tap_moves_live(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        await networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        await networks.ensure(Network(name="b", cidr="10.99.1.0/24"))
        tap = await networks.open_tap("0123456789ab", 1)
        try:
            assert not await is_answered(tap.fd, MAC, "10.99.0.11", "10.99.0.1", timeout_s=0.2)
            await networks.attach(tap.name, "a")
            assert await is_answered(tap.fd, MAC, "10.99.0.11", "10.99.0.1")
            await networks.attach(tap.name, "b")
            assert await is_answered(tap.fd, MAC, "10.99.1.11", "10.99.1.1")
            assert not await is_answered(tap.fd, MAC, "10.99.0.11", "10.99.0.1", timeout_s=0.2)
            await networks.detach(tap.name)
            assert not await is_answered(tap.fd, MAC, "10.99.1.11", "10.99.1.1", timeout_s=0.2)
        finally:
            tap.close()


async def test_the_namespace_sends_nothing_of_its_own_into_a_tap(tmp_path: Path) -> None:
    """No router solicitation, no duplicate address detection, no spanning tree: the first frame is the answer."""
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        tap = await lab.networks.open_tap("0123456789ab", 0)
        try:
            await lab.networks.attach(tap.name, "a")
            frames = await exchange(tap.fd, MAC, "10.99.0.11", "10.99.0.1")
            assert [frame[12:14].hex() for frame in frames] == ["0806"]
        finally:
            tap.close()


async def test_a_guarded_port_cannot_speak_as_its_source(tmp_path: Path) -> None:
    """The clone's port drops the source's MAC and address; the source keeps its place on the bridge."""
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        await networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        source = await lab.guest("a", "10.99.0.11/24")
        witness = await lab.guest("a", "10.99.0.12/24")
        await source.set_mac(MAC)
        assert await witness.reaches("10.99.0.11")
        tap = await networks.open_tap("0123456789ab", 0)
        try:
            await networks.set_port_guards({tap.name: Guard(frozenset({MAC}), frozenset({"10.99.0.11"}))})
            await networks.attach(tap.name, "a")
            assert not await is_answered(tap.fd, MAC, "10.99.0.13", "10.99.0.12", timeout_s=0.2)
            assert not await is_answered(tap.fd, "52:54:00:00:00:02", "10.99.0.11", "10.99.0.12", timeout_s=0.2)
            assert await is_answered(tap.fd, "52:54:00:00:00:02", "10.99.0.13", "10.99.0.12")
            assert await witness.reaches("10.99.0.11")
            await networks.set_port_guards({tap.name: Guard()})
            assert await is_answered(tap.fd, MAC, "10.99.0.13", "10.99.0.12")
        finally:
            tap.close()


async def test_guards_go_with_their_taps(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        kept, gone = [await networks.open_tap("0123456789ab", index) for index in (0, 1)]
        try:
            await networks.set_port_guards({tap.name: Guard(frozenset({MAC})) for tap in (kept, gone)})
            assert await networks.collect({kept.name}) == [gone.name]
            assert list(await networks.list_taps()) == [kept.name]
            assert await networks.port_guards() == {kept.name: Guard(frozenset({MAC}))}
        finally:
            kept.close()
            gone.close()
