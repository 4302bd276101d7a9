"""Fences: guests with the same MAC and IP address many times over, each reached by an address of its own."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ramet.errors import ConflictError, ToolError, UsageError
from ramet.model.host import Network
from ramet.model.machine import Inside, Nic
from ramet.network import services
from ramet.network.fences import placement
from tests.unit.network.network_kit import Guest, Lab, Room, needs_privilege, traces
from tests.unit.network.test_network_services import Listener, becomes, connects, running

MAC = "52:54:00:00:00:07"
LAB = Network(name="lab", cidr="10.99.0.0/24", dhcp=True)
COPIES = Network(name="copies", cidr="10.98.0.0/24", dhcp=True, fenced=True)
INSIDE = Inside(network="lab", cidr="10.99.0.0/24")


def fenced_nic(mac: str = MAC, fence: str | None = None, inside: Inside = INSIDE) -> Nic:
    return Nic(id="net0", mac=mac, network="copies", fence=fence, inside=inside)


def reached_at(lab: Lab, guest: Guest) -> str | None:
    """The guest's translated address."""
    return lab.networks._fences.translated().get(guest.port)


async def clone_of(lab: Lab, mac: str, address: str | None, nic: Nic) -> Guest:
    """What a fenced clone is, before it knows that it is one: the source's MAC, and its address."""
    guest = await lab.guest(address=address)
    await guest.set_mac(mac)
    await guest.plug("copies", nic)
    return guest


async def source_in(lab: Lab) -> tuple[Guest, str]:
    source = await lab.guest()
    await source.set_mac(MAC)
    await source.plug("lab")
    return source, (await source.dhcp())["ip"]


@needs_privilege
async def test_the_same_addresses_live_in_many_fences_at_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for network in (LAB, COPIES):
            await lab.networks.ensure(network)
        source, address = await source_in(lab)
        copies = [await clone_of(lab, MAC, f"{address}/24", fenced_nic()) for _ in range(3)]
        outer = [reached_at(lab, copy) for copy in copies]
        assert outer == ["10.98.0.2", "10.98.0.3", "10.98.0.4"]
        for copy, own in zip(copies, outer, strict=True):
            assert own is not None
            assert await copy.reaches("10.99.0.1")  # the gateway, as in the source's network
            with await copy.thread.run(socket.create_server, (address, 80)) as server:
                server.setblocking(False)
                with await lab.networks.connect_tcp(own, 80, 5.0):
                    near, peer = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(server), 5)
                    near.close()
                    assert peer[0] == "10.99.0.1"  # which it can answer without a default route
        # The real one is where it was, and nobody else has its address.
        witness = await lab.guest("lab", "10.99.0.250/24")
        assert await witness.reaches(address)
        assert (await lab.networks.leases("lab"))[MAC].address == address
        assert await source.reaches("10.99.0.1")
        known = await lab.networks.addresses()
        assert known[MAC] == address
        assert lab.networks.addresses_of("000000001", [fenced_nic()], known) == {"net0": "10.98.0.2"}


@needs_privilege
async def test_fences_reach_neither_one_another_nor_anything_else(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for network in (LAB, COPIES):
            await lab.networks.ensure(network)
        _, address = await source_in(lab)
        one, two = [await clone_of(lab, MAC, f"{address}/24", fenced_nic()) for _ in range(2)]
        other = await lab.guest("lab", "10.99.0.250/24")
        assert await other.reaches("10.99.0.1")
        await one.run("ip", "route", "add", "default", "via", "10.99.0.1")
        there = reached_at(lab, two)
        assert there is not None
        with await two.thread.run(socket.create_server, (address, 80)):
            assert not await connects(one, there)
            assert not await one.reaches(there)
        assert not await one.reaches("10.98.0.1")
        assert not await one.reaches("10.99.0.250")


@needs_privilege
async def test_a_copy_of_a_system_of_several_machines_shares_a_fence(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        back = Inside(network="back", cidr="10.97.0.0/24")
        for network in (LAB, COPIES):
            await lab.networks.ensure(network)
        other_mac = "52:54:00:00:00:08"
        web, base = [], []
        for name in ("first", "second"):
            web.append(await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic(fence=name)))
            base.append(await clone_of(lab, other_mac, "10.99.0.60/24", fenced_nic(other_mac, name)))
        deep = await clone_of(lab, MAC, "10.97.0.50/24", fenced_nic(fence="first", inside=back))
        for number in range(2):
            with await base[number].thread.run(socket.create_server, ("10.99.0.60", 5432)):
                (await web[number].thread.connect_tcp("10.99.0.60", 5432, 2.0)).close()
                with pytest.raises(ConnectionRefusedError):
                    await web[1 - number].thread.connect_tcp("10.99.0.60", 5432, 2.0)
        assert await deep.reaches("10.97.0.1")
        assert not await deep.reaches("10.99.0.50")
        with pytest.raises(ConflictError, match="in this fence already"):
            await clone_of(lab, MAC, None, fenced_nic(fence="first"))
        for inside, word in (
            (Inside(network="wide", cidr="10.99.0.0/16"), "port group 'lab'"),
            (Inside(network="wide", cidr="10.98.0.0/16"), "fenced port group"),
            (Inside(network="lab", cidr="10.50.0.0/24"), "port group 'lab'"),
        ):
            with pytest.raises(ConflictError, match=word):
                await clone_of(lab, "52:54:00:00:00:09", None, fenced_nic("52:54:00:00:00:09", "first", inside))


@needs_privilege
async def test_dhcp_in_a_fence_renews_what_the_source_was_given(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for network in (LAB, COPIES):
            await lab.networks.ensure(network)
        _, address = await source_in(lab)
        copy = await clone_of(lab, MAC, None, fenced_nic())
        assert (await copy.dhcp())["ip"] == address
        # A machine that came with an address that nobody here knew asks for it again, and it is translated.
        mac = "52:54:00:00:00:0a"
        stranger = await clone_of(lab, mac, None, fenced_nic(mac))
        assert reached_at(lab, stranger) is None
        assert (await stranger.dhcp("-r", "10.99.0.77"))["ip"] == "10.99.0.77"
        await lab.networks.addresses()
        outer = reached_at(lab, stranger)
        assert outer is not None
        with await stranger.thread.run(socket.create_server, ("10.99.0.77", 80)):
            await lab.networks.wait_for_tcp(outer, 80, 5.0)


@needs_privilege
async def test_what_was_learnt_and_could_not_be_built_is_learnt_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Lab(tmp_path) as lab:
        for network in (LAB, COPIES.changed(dhcp=False)):
            await lab.networks.ensure(network)
        copy = await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic())
        assert await copy.reaches("10.99.0.1")

        async def fail(fence: object) -> None:
            raise ToolError("nft is out of order.")

        with monkeypatch.context() as broken:
            broken.setattr(lab.networks._fences, "_build", fail)
            assert MAC not in await lab.networks.addresses()
            assert reached_at(lab, copy) is None
        learning = asyncio.create_task(lab.networks.addresses())
        await becomes(lambda: reached_at(lab, copy) is not None)
        learning.cancel()  # it is noted, and being built
        await asyncio.wait({learning})
        with await copy.thread.run(socket.create_server, ("10.99.0.50", 80)):
            await lab.networks.wait_for_tcp("10.98.0.2", 80, 5.0)


@needs_privilege
async def test_a_static_address_is_learnt_from_the_wire_or_the_guest(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for network in (LAB, COPIES.changed(dhcp=False)):
            await lab.networks.ensure(network)
        speaking = await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic())
        assert await speaking.reaches("10.99.0.1")
        silent = await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic(fence="quiet"))
        await lab.networks.addresses()
        assert reached_at(lab, speaking) == "10.98.0.2"
        vm_id = silent.port.split("-")[1]
        await lab.networks.told_address(vm_id, fenced_nic(fence="quiet"), "10.99.0.50")
        with await silent.thread.run(socket.create_server, ("10.99.0.50", 80)):
            await lab.networks.wait_for_tcp("10.98.0.3", 80, 5.0)


@needs_privilege
async def test_a_fence_lets_out_where_the_port_group_does(tmp_path: Path) -> None:
    async with Room() as host, Room() as world:
        await host.join(world, "wan", "198.51.100.1/24", "198.51.100.2/24")
        await host.run("ip", "route", "add", "default", "via", "198.51.100.2")
        async with Lab(tmp_path, outside=host) as lab, Listener(world, "198.51.100.2"):
            open_, closed = COPIES.changed(nat=True), COPIES
            for network in (LAB, open_):
                await lab.networks.ensure(network)
            await source_in(lab)
            copies = [await clone_of(lab, MAC, None, fenced_nic()) for _ in range(2)]
            for copy in copies:
                given = await copy.dhcp()
                assert given["router"] == given["dns"] == "10.99.0.1"
                assert await connects(copy, "198.51.100.2")
            await lab.networks.ensure(open_.changed(egress_default="deny"))
            assert not await connects(copies[0], "198.51.100.2")
            await lab.networks.ensure(open_)
            assert await connects(copies[0], "198.51.100.2")
            await lab.networks.ensure(closed)
            assert not await connects(copies[0], "198.51.100.2")
            assert (await copies[0].dhcp())["router"] == ""


@needs_privilege
async def test_fences_go_with_their_members_and_with_the_port_group(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        for network in (LAB, COPIES):
            await networks.ensure(network)
        one = await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic())
        two = await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic())
        prefix = f"{networks.namespace.name}-"
        assert len(traces(f"/run/netns/{prefix}")) >= 2
        assert len(services.find_running("dnsmasq", f"--conf-file={tmp_path}/network/fence-")) == 2
        vm_id = one.port.split("-")[1]
        await networks.release_nic(vm_id, fenced_nic())
        await networks.release_nic(vm_id, fenced_nic())
        assert len(services.find_running("dnsmasq", f"--conf-file={tmp_path}/network/fence-")) == 1
        # Out of the fence, and into an ordinary port group, live.
        await two.plug(None)
        assert not await two.reaches("10.99.0.1")
        await two.plug("copies", fenced_nic())
        assert await two.reaches("10.99.0.1")
        await two.plug("lab")
        assert await two.reaches("10.99.0.1")
        assert traces(prefix, f"{tmp_path}/network/fence-") == []
        await two.plug("copies", fenced_nic())
        await networks.remove("copies")
        assert traces(prefix, f"{tmp_path}/network/fence-") == []
        assert not list(tmp_path.glob("network/fence-*"))
        await two.plug("lab")  # its cable outlived the port group
        assert await two.reaches("10.99.0.1")


@needs_privilege
async def test_a_restarted_daemon_finds_its_fences(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for network in (LAB, COPIES):
            await lab.networks.ensure(network)
        copy = await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic())
        gone = await clone_of(lab, MAC, "10.99.0.50/24", fenced_nic())
        assert await copy.reaches("10.99.0.1")
        await lab.networks.addresses()
        mark = f"--conf-file={tmp_path}/network/fence-"
        before = set(services.find_running("dnsmasq", mark))
        await lab.restart()
        await lab.networks.restore([LAB, COPIES])
        assert set(services.find_running("dnsmasq", mark)) == before
        with await copy.thread.run(socket.create_server, ("10.99.0.50", 80)):
            await lab.networks.wait_for_tcp("10.98.0.2", 80, 5.0)
        await lab.networks.collect({copy.port}, {"lab", "copies"}, {copy.port})
        assert reached_at(lab, gone) is None
        assert len(services.find_running("dnsmasq", mark)) == 1
        [left] = running_fences(lab)
        await lab.networks.collect(set(), {"lab", "copies"}, {copy.port})
        assert running_fences(lab) == []
        assert left
        # The VM is off and keeps its address for when it comes back.
        assert lab.networks._fences.translated()[copy.port] == "10.98.0.2"
        await becomes(lambda: not services.find_running("dnsmasq", mark))
        assert running("dnsmasq", lab)


def running_fences(lab: Lab) -> list[str]:
    return list({path for path in traces(f"{lab.networks.namespace.name}-") if path.startswith("/run/netns/")})


def test_a_record_says_where_a_nic_came_from() -> None:
    nic = Nic(id="net0", network="lab")
    assert placement(nic, LAB, COPIES, "x") == {"fence": "x", "inside": INSIDE}
    assert placement(nic.changed(inside=INSIDE), COPIES, COPIES, None) == {"fence": None, "inside": INSIDE}
    assert placement(nic.changed(inside=INSIDE), COPIES, LAB, None) == {"fence": None, "inside": None}
    assert placement(nic, None, COPIES, None) == {"fence": None, "inside": None}
    with pytest.raises(UsageError, match="not fenced"):
        placement(nic, LAB, LAB, "x")
