"""Port groups that reach an interface of the host. The host, and the world beyond it, are namespaces of the test."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ramet.errors import ConflictError, NotFoundError, UnsupportedError, UsageError
from ramet.model.host import EgressRule, Network
from ramet.network import portgroups, uplink
from tests.unit.network.network_kit import Lab, Room, needs_privilege, traces
from tests.unit.network.test_network_egress import Ports, reaches_port

WIRE = Network(name="wire", uplink="eth1")


def test_an_uplink_is_an_interface_and_perhaps_a_vlan() -> None:
    assert uplink.parse("eth1") == uplink.Uplink("eth1")
    assert uplink.parse("eth1.100") == uplink.Uplink("eth1", 100)
    for wrong in ("eth1.0", "eth1.4095", "eth1.x"):
        with pytest.raises(UsageError, match="VLAN"):
            uplink.parse(wrong)
    for flag in ({"dhcp": True}, {"nat": True}, {"isolated": True}, {"fenced": True}, {"cidr": "10.1.0.0/24"}):
        with pytest.raises(UsageError, match="uplinked"):
            portgroups.complete(WIRE.changed(**flag), [], {})


async def host_with(world: Room, host: Room, *, bridge: bool = False) -> None:
    """A host whose eth1, or bridge with eth1 in it, leads to the world at 203.0.113.1."""
    await host.join(world, "eth1", "203.0.113.2/24", "203.0.113.1/24")
    await host.run("ip", "addr", "flush", "dev", "eth1")
    if bridge:
        await host.run("ip", "link", "add", "br0", "type", "bridge")
        await host.run("ip", "link", "set", "eth1", "master", "br0")
        await host.run("ip", "link", "set", "br0", "up")
        await host.run("ip", "addr", "add", "203.0.113.2/24", "dev", "br0")


@needs_privilege
@pytest.mark.parametrize("bridge", [False, True])
async def test_guests_are_in_the_network_beyond(tmp_path: Path, bridge: bool) -> None:
    async with Room() as host, Room() as world:
        await host_with(world, host, bridge=bridge)
        wire = WIRE.changed(uplink="br0" if bridge else "eth1")
        before = await host.run("ip", "-br", "addr")
        async with Lab(tmp_path, outside=host) as lab:
            await lab.networks.ensure(wire)
            guest = await lab.guest("wire", "203.0.113.9/24")
            assert await guest.reaches("203.0.113.1")
            assert await world.reaches("203.0.113.9")
            assert "eth1" in await host.run("ip", "-br", "link")
            if bridge:  # which goes on as it was
                assert await host.reaches("203.0.113.1")
                assert await guest.reaches("203.0.113.2")
            # A restart of the daemon finds it; removing the port group takes it away.
            await lab.restart()
            await lab.networks.restore([wire])
            assert lab.networks.warnings == []
            assert await guest.reaches("203.0.113.1")
            await lab.networks.remove("wire")
            assert not await guest.reaches("203.0.113.1")
            assert without_link_local(await host.run("ip", "-br", "addr")) == without_link_local(before)
            await lab.networks.ensure(wire)
        assert without_link_local(await host.run("ip", "-br", "addr")) == without_link_local(before)


@needs_privilege
async def test_a_bridge_of_the_host_that_was_made_anew_is_found_again(tmp_path: Path) -> None:
    async with Room() as host, Room() as world:
        await host_with(world, host, bridge=True)
        wire = WIRE.changed(uplink="br0")
        async with Lab(tmp_path, outside=host) as lab:
            await lab.networks.ensure(wire)
            guest = await lab.guest("wire", "203.0.113.9/24")
            await host.run("ip", "link", "del", "br0")
            await host.run("ip", "link", "add", "br0", "type", "bridge")
            await host.run("ip", "link", "set", "eth1", "master", "br0")
            await host.run("ip", "link", "set", "br0", "up")
            assert not await guest.reaches("203.0.113.1")
            await lab.restart()
            await lab.networks.restore([wire])
            assert lab.networks.warnings == []
            assert await guest.reaches("203.0.113.1")


def without_link_local(text: str) -> list[list[str]]:
    return [[word for word in line.split() if not word.startswith("fe80")] for line in text.splitlines()]


@needs_privilege
async def test_an_interface_with_addresses_of_the_host_is_never_taken(tmp_path: Path) -> None:
    async with Room() as host, Room() as world:
        await host.join(world, "eth1", "203.0.113.2/24", "203.0.113.1/24")
        await host.run("ip", "link", "add", "br0", "type", "bridge")
        await host.join(world, "eth2", "203.0.112.2/24", "203.0.112.1/24")
        await host.run("ip", "link", "set", "eth2", "master", "br0")
        await host.join(world, "eth3", "2001:db8::2/64", "2001:db8::1/64")
        await host.join(world, "eth4", "203.0.111.2/24", "203.0.111.1/24")
        await host.run("ip", "addr", "flush", "dev", "eth4")
        async with Lab(tmp_path, outside=host) as lab:
            for name, error, words in (
                ("eth1", ConflictError, "carries 203.0.113.2/24 of the host"),
                ("eth2", ConflictError, "is a port of br0"),
                ("eth3", ConflictError, "carries addresses"),
                ("eth9", NotFoundError, "no interface 'eth9'"),
                ("lo", UsageError, "loopback"),
            ):
                with pytest.raises(error, match=words) as refused:
                    await lab.networks.ensure(WIRE.changed(uplink=name))
                assert refused.value.hint
            assert lab.networks.groups == {}
            assert await host.reaches("203.0.113.1")
            await lab.networks.ensure(WIRE.changed(uplink="eth4"))
            with pytest.raises(ConflictError, match="'wire' already"):
                await lab.networks.ensure(Network(name="second", uplink="eth4"))
            with pytest.raises(UsageError, match="cannot be changed"):
                await lab.networks.ensure(Network(name="wire"))
            assert traces("never") == []


@needs_privilege
async def test_a_vlan_leaves_the_interface_to_the_host(tmp_path: Path) -> None:
    async with Room() as host, Room() as world:
        await host.join(world, "eth1", "203.0.113.2/24", "203.0.113.1/24")
        async with Lab(tmp_path, outside=host) as lab:
            try:
                await world.run("ip", "link", "add", "link", "eth1", "name", "v100", "type", "vlan", "id", "100")
            except Exception:
                with pytest.raises(UnsupportedError, match="8021q"):
                    await lab.networks.ensure(WIRE.changed(uplink="eth1.100"))
                assert lab.networks.groups == {}
                pytest.skip("this kernel has no VLANs; that is what was said")
            await world.run("ip", "addr", "add", "192.0.2.1/24", "dev", "v100")
            await world.run("ip", "link", "set", "v100", "up")
            await lab.networks.ensure(WIRE.changed(uplink="eth1.100"))
            guest = await lab.guest("wire", "192.0.2.9/24")
            assert await guest.reaches("192.0.2.1")
            assert await host.reaches("203.0.113.1")


@needs_privilege
async def test_frames_to_an_uplink_keep_to_the_rules(tmp_path: Path) -> None:
    async with Room() as host, Room() as world:
        await host_with(world, host)
        async with Lab(tmp_path, outside=host) as lab, Ports(world, 80, 443):
            https = EgressRule(cidr="203.0.113.0/24", protocol="tcp", ports=(443, 443))
            strict = WIRE.changed(egress_default="deny", egress=(https,))
            await lab.networks.ensure(strict)
            guest = await lab.guest("wire", "203.0.113.9/24")
            mate = await lab.guest("wire", "203.0.113.10/24")
            assert await guest.reaches("203.0.113.10")
            assert not await guest.reaches("203.0.113.1")
            assert await reaches_port(guest, "203.0.113.1", 443)
            assert not await reaches_port(guest, "203.0.113.1", 80)
            # What the world begins is answered: TCP, UDP and echoes.
            assert await world.reaches("203.0.113.9")
            with await guest.thread.run(socket.create_server, ("203.0.113.9", 22)):
                (await world.thread.connect_tcp("203.0.113.9", 22, 2.0)).close()
            assert await asked_by_udp(world, mate, "203.0.113.10")
            await lab.networks.ensure(strict.changed(egress=()))
            assert not await reaches_port(guest, "203.0.113.1", 443)
            denied = https.changed(action="deny")
            await lab.networks.ensure(WIRE.changed(egress=(denied,)))
            assert await reaches_port(guest, "203.0.113.1", 80)
            assert not await reaches_port(guest, "203.0.113.1", 443)


async def asked_by_udp(asking: Room, answering: Room, address: str) -> bool:
    """Whether a datagram is answered, of a server that knows only who asked."""

    def bound(where: tuple[str, int]) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(where)
        return sock

    loop = asyncio.get_running_loop()
    with await answering.thread.run(bound, (address, 5353)) as server, await asking.thread.run(bound, ("", 0)) as near:
        async with asyncio.timeout(3):
            await loop.sock_sendto(near, b"?", (address, 5353))
            question, who = await loop.sock_recvfrom(server, 10)
            await loop.sock_sendto(server, b"!", who)
            return question == b"?" and await loop.sock_recv(near, 10) == b"!"
