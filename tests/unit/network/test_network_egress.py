"""Egress rules: how they are ordered and written, and that packets keep to them, live."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from ramet.errors import DeadlineError, NotFoundError
from ramet.host.stock import changed_network
from ramet.model.host import EgressRule, Network
from ramet.model.requests import ChangeNetwork
from ramet.network import egress
from tests.unit.network.network_kit import Lab, Room, needs_privilege

HTTPS = EgressRule(cidr="10.0.0.0/8", protocol="tcp", ports=(443, 443))
OUT = Network(name="out", cidr="10.96.0.0/24", dhcp=True, nat=True)


def test_rules_are_read_back_as_they_were_written() -> None:
    assert HTTPS.text == "10.0.0.0/8:443/tcp"
    assert EgressRule(protocol="udp", ports=(5000, 5010)).text == "0.0.0.0/0:5000-5010/udp"
    assert EgressRule(cidr="192.0.2.9/24", protocol="icmp").text == "192.0.2.0/24/icmp"
    for wrong in (
        {"ports": (1, 2)},
        {"protocol": "tcp", "ports": (2, 1)},
        {"protocol": "tcp", "ports": (0, 1)},
        {"protocol": "icmp", "ports": (8, 8)},
        {"cidr": "10.0.0.0/40"},
        {"cidr": "x"},
    ):
        with pytest.raises(ValidationError):
            EgressRule.model_validate(wrong)


def test_denials_come_before_permissions_and_the_default_last() -> None:
    rules = (HTTPS, EgressRule(action="deny", cidr="10.1.0.0/16"))
    lines = egress.routed(OUT.changed(egress_default="deny", egress=rules), "P")
    assert [line.split()[-1] == "accept" for line in lines] == [False, True, False]
    assert lines[1] == "P ip daddr 10.0.0.0/8 tcp dport 443 accept"
    assert egress.routed(OUT, "P") == ["P accept"]


def test_changes_add_remove_and_clear_rules() -> None:
    deny = EgressRule(action="deny", cidr="10.1.0.0/16")
    one = changed_network(OUT, ChangeNetwork(egress_default="deny", add_rules=(HTTPS, deny, HTTPS)))
    assert one.egress == (HTTPS, deny)
    assert changed_network(one, ChangeNetwork(remove_rules=(deny,))).egress == (HTTPS,)
    assert changed_network(one, ChangeNetwork(clear_rules=True, add_rules=(deny,))).egress == (deny,)
    assert changed_network(one, ChangeNetwork(nat=False)).nat is False
    with pytest.raises(NotFoundError, match="443/tcp"):
        changed_network(OUT, ChangeNetwork(remove_rules=(HTTPS,)))


@needs_privilege
async def test_what_leaves_by_nat_keeps_to_the_rules_at_once(tmp_path: Path) -> None:
    async with Room() as host, Room() as world:
        await host.join(world, "wan", "198.51.100.1/24", "198.51.100.2/24")
        await world.run("ip", "addr", "add", "198.51.100.3/24", "dev", "wan")
        await host.run("ip", "route", "add", "default", "via", "198.51.100.2")
        async with Lab(tmp_path, outside=host) as lab, Ports(world, 80, 443):

            async def allowed(guest: Room) -> set[str]:
                found = set()
                for address in ("198.51.100.2", "198.51.100.3"):
                    for port in (80, 443):
                        if await reaches_port(guest, address, port):
                            found.add(f"{address[-1]}:{port}")
                return found

            await lab.networks.ensure(OUT)
            guest, other = await lab.guest("out"), await lab.guest("out")
            await guest.dhcp()
            mate = (await other.dhcp())["ip"]
            assert await allowed(guest) == {"2:80", "2:443", "3:80", "3:443"}
            two = EgressRule(cidr="198.51.100.2/32")
            rules = (EgressRule(protocol="tcp", ports=(400, 500)), two)
            await lab.networks.ensure(OUT.changed(egress_default="deny", egress=rules))
            assert await allowed(guest) == {"2:80", "2:443", "3:443"}
            assert await guest.reaches(mate)
            denied = two.changed(action="deny")
            await lab.networks.ensure(OUT.changed(egress_default="deny", egress=(*rules, denied)))
            assert await allowed(guest) == {"3:443"}
            await lab.networks.ensure(OUT.changed(egress=(denied,)))
            assert await allowed(guest) == {"3:80", "3:443"}
            # A connection that is open when its rule goes is cut, not only the next one.
            await lab.networks.ensure(OUT)
            with await guest.thread.connect_tcp("198.51.100.2", 80, 2.0) as stream:
                await lab.networks.ensure(OUT.changed(egress_default="deny"))
                with pytest.raises((OSError, TimeoutError)):
                    await answer_to(stream)


async def answer_to(stream: socket.socket) -> bytes:
    async with asyncio.timeout(3):
        await asyncio.get_running_loop().sock_sendall(stream, b"x")
        return await asyncio.get_running_loop().sock_recv(stream, 1)


async def reaches_port(guest: Room, address: str, port: int) -> bool:
    try:
        (await guest.thread.connect_tcp(address, port, 1.0)).close()
    except (OSError, DeadlineError):
        return False
    return True


class Ports:
    """Accepts on ports of every address in a room, by the kernel's queue alone."""

    def __init__(self, room: Room, *ports: int) -> None:
        self._room = room
        self._ports = ports
        self._sockets: list[socket.socket] = []

    async def __aenter__(self) -> None:
        for port in self._ports:
            self._sockets.append(await self._room.thread.run(socket.create_server, ("0.0.0.0", port)))

    async def __aexit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()
