"""The room through its door, with real bridges, taps, dnsmasq and guests that are namespaces."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ramet.errors import BusyError, ConflictError, DeadlineError, NotFoundError, PrivilegeError, UsageError
from ramet.model.host import Network
from ramet.network import privilege
from ramet.network.manager import Networks
from ramet.network.namespace import run_tool
from tests.unit.network.network_kit import Lab, needs_privilege


@needs_privilege
async def test_guests_of_one_port_group_reach_each_other(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        one = await lab.guest("a", "10.99.0.11/24")
        two = await lab.guest("a", "10.99.0.12/24")
        assert await one.reaches("10.99.0.12")
        assert await two.reaches("10.99.0.1")


@needs_privilege
async def test_dhcp_hands_out_an_address_and_takes_it_back(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        await networks.ensure(Network(name="a", cidr="10.99.0.0/24", dhcp=True))
        guest = await lab.guest("a")
        given = await guest.dhcp()
        mac = await guest.mac()
        assert (await networks.leases("a"))[mac].address == given["ip"]
        assert await networks.address_of(mac) == given["ip"]
        assert given["dns"] == "10.99.0.1"
        assert given["router"] == ""
        await networks.release(mac)
        async with asyncio.timeout(5):
            while mac in await networks.leases("a"):  # noqa: ASYNC110 - dnsmasq tells nobody
                await asyncio.sleep(0.01)


@needs_privilege
async def test_connect_tcp_reaches_a_guest(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        await networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        guest = await lab.guest("a", "10.99.0.11/24")
        with await guest.thread.run(socket.create_server, ("10.99.0.11", 80)):
            await networks.wait_for_tcp("10.99.0.11", 80, 5.0)
            with await networks.connect_tcp("10.99.0.11", 80, 5.0) as near:
                assert near.getpeername() == ("10.99.0.11", 80)
                assert not near.getblocking()
        with pytest.raises(ConnectionRefusedError):
            await networks.connect_tcp("10.99.0.11", 81, 5.0)
        with pytest.raises(DeadlineError):
            await networks.connect_tcp("10.99.0.13", 80, 0.2)
        with pytest.raises(DeadlineError):
            await networks.wait_for_tcp("10.99.0.11", 81, 0.2)


_LOSE_THE_FIRST = """table ip first {
    chain in {
        type filter hook input priority 0;
        tcp dport 80 quota 60 bytes drop
    }
}"""


@needs_privilege
async def test_who_connects_before_a_guest_has_its_address_does_not_wait_for_the_kernel(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        guest = await lab.guest("a", "10.99.0.11/24")
        await guest.thread.run(run_tool, ["nft", "-f", "-"], _LOSE_THE_FIRST, 5.0)
        with await guest.thread.run(socket.create_server, ("10.99.0.11", 80)):
            (await lab.networks.connect_tcp("10.99.0.11", 80, 0.9)).close()  # the kernel would ask again after 1 s


@needs_privilege
async def test_a_guest_that_has_no_address_yet_is_asked_for_it_ten_times_a_second(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        network = await lab.networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        assert network.bridge is not None
        path = Path("/proc/sys/net/ipv4/neigh") / network.bridge / "retrans_time_ms"
        assert (await lab.networks._thread.run(path.read_text)).strip() == "100"


@needs_privilege
async def test_a_tap_is_opened_moved_and_gone_with_its_descriptor(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        first = await networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        second = await networks.ensure(Network(name="b", cidr="10.99.1.0/24"))
        tap = await networks.open_tap("0123456789ab", 0)
        assert tap.name == "rt-012345678-0"
        assert await networks.list_taps() == {tap.name: None}
        with pytest.raises(BusyError):
            await networks.open_tap("0123456789ab", 0)
        await networks.attach(tap.name, "a")
        assert await networks.list_taps() == {tap.name: first.bridge}
        await networks.attach(tap.name, "b")
        assert await networks.list_taps() == {tap.name: second.bridge}
        await networks.detach(tap.name)
        assert await networks.list_taps() == {tap.name: None}
        tap.close()
        assert await networks.list_taps() == {}
        await networks.detach(tap.name)
        with pytest.raises(NotFoundError):
            await networks.attach(tap.name, "a")


@needs_privilege
async def test_refusals_change_nothing(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        networks = lab.networks
        await networks.ensure(Network(name="a", cidr="10.99.0.0/24"))
        with pytest.raises(ConflictError, match="overlaps"):
            await networks.ensure(Network(name="b", cidr="10.99.0.0/16"))
        with pytest.raises(UsageError):
            await networks.ensure(Network(name="b", nat=True, isolated=True))
        with pytest.raises(UsageError):
            await networks.ensure(Network(name="user"))
        with pytest.raises(NotFoundError):
            await networks.attach("rt-nothing-0", "b")
        assert set(networks.groups) == {"a"}


async def test_without_privilege_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege, "find_problem", lambda: "The daemon lacks CAP_NET_ADMIN.")
    networks = Networks(tmp_path)
    await networks.start()
    assert not networks.privileged
    with pytest.raises(PrivilegeError, match="sudo ramet serve"):
        await networks.open_tap("0123456789ab", 0)
    with pytest.raises(PrivilegeError):
        await networks.ensure(Network(name="a"))
    await networks.close(remove_namespace=True)
