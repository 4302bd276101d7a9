"""A laboratory: one `Networks`, namespaces that play guests and the outside, and a proof that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import pytest

from ramet.errors import ToolError
from ramet.model.machine import Nic
from ramet.network import privilege
from ramet.network.links import Links
from ramet.network.manager import Networks
from ramet.network.namespace import NAMES, Namespace, NamespaceThread, run_tool

needs_privilege = pytest.mark.skipif(privilege.find_problem() is not None, reason=str(privilege.find_problem()))

UDHCPC_SCRIPT = str(Path(__file__).with_name("udhcpc.sh"))


def traces(*marks: str) -> list[str]:
    """What is left on the host of anything that carries one of the marks: names, mounts, processes.

    Other tests and daemons may run beside this one: theirs do not count.
    """
    names = [str(path) for path in NAMES.glob("*")]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [*names, *mounts, *_command_lines()]
    return [text for text in found if any(mark in text for mark in marks)]


def _command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                found.append((entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "))
    return found


class Room:
    """A namespace with a thread in it, that plays a guest or the outside."""

    def __init__(self) -> None:
        self.namespace = Namespace(f"ramet-test-{secrets.token_hex(4)}")
        self.thread = NamespaceThread(self.namespace)

    async def __aenter__(self) -> Self:
        self.namespace.ensure()
        await self.thread.start()
        await self.run("ip", "link", "set", "lo", "up")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.thread.close()
        self.namespace.remove()
        assert traces(self.namespace.name) == []

    async def run(self, *argv: str, timeout_s: float = 15.0) -> str:
        """Output of a program run inside."""
        return await self.thread.run(run_tool, argv, "", timeout_s, timeout_s=timeout_s + 5)

    async def reaches(self, address: str) -> bool:
        """One echo, answered within a second."""
        try:
            await self.run("busybox", "ping", "-c", "1", "-W", "1", address)
        except ToolError:
            return False
        return True

    async def join(self, other: Room, name: str, address: str, other_address: str) -> None:
        """A cable to another room: interface `name` at both ends."""
        await self.run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", other.namespace.name)
        for room, own in ((self, address), (other, other_address)):
            await room.run("ip", "addr", "add", own, "dev", name)
            await room.run("ip", "link", "set", name, "up")


class Guest(Room):
    """A room with one interface, eth0, whose other end is a port in the networks' namespace."""

    def __init__(self, networks: Networks, number: int) -> None:
        super().__init__()
        self.port = f"rt-{number:09}-0"
        self._networks = networks

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.cable("add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace.name)
        await self.run("ip", "link", "set", "eth0", "up")
        return self

    async def cable(self, *arguments: str) -> None:
        await self._networks._thread.run(run_tool, ["ip", "link", *arguments], "", 10.0)

    async def plug(self, network: str | None, nic: Nic | None = None) -> None:
        """Into a port group, or out of any. A veth that changes its namespace is down for a moment, as a tap is not:
        the kernel tells the other end up to a second later."""
        await self._networks.attach(self.port, network, nic)
        async with asyncio.timeout(10):
            while network is not None and not await self.thread.netlink(Links.is_up, "eth0"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def mac(self) -> str:
        return (await self.run("ip", "-br", "link", "show", "eth0")).split()[2]

    async def set_mac(self, mac: str) -> None:
        await self.run("ip", "link", "set", "eth0", "address", mac)

    async def set_address(self, address: str) -> None:
        await self.run("ip", "addr", "add", address, "dev", "eth0")

    async def dhcp(self, *options: str) -> dict[str, str]:
        """What udhcpc, an ordinary client, is given; it also sets it. Keys as its script sees them."""
        client = ("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "12", "-T", "1", "-s", UDHCPC_SCRIPT)
        text = await self.run(*client, *options)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


class Lab:
    """`async with Lab(tmp_path) as lab`: everything made through it is ended, and the proof is taken, on leaving."""

    def __init__(self, state_dir: Path, outside: Room | None = None) -> None:
        self.state_dir = state_dir
        self._outside = outside
        self._stack = AsyncExitStack()
        self._guests = 0

    async def __aenter__(self) -> Self:
        self._own_namespace = os.readlink("/proc/self/ns/net")
        self.networks = await self.start()
        return self

    async def start(self) -> Networks:
        """What a daemon does when it starts; a second call plays a restart."""
        networks = Networks(self.state_dir, outside=self._outside.thread if self._outside else None)
        await networks.start()
        assert networks.privileged, networks.problem
        return networks

    async def restart(self) -> None:
        await self.networks.close()
        self.networks = await self.start()

    async def guest(self, network: str | None = None, address: str | None = None) -> Guest:
        guest = await self._stack.enter_async_context(Guest(self.networks, self._guests))
        self._guests += 1
        if network is not None:
            await guest.plug(network)
        if address is not None:
            await guest.set_address(address)
        return guest

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        await self.networks.close(remove_namespace=True)
        assert os.readlink("/proc/self/ns/net") == self._own_namespace
        assert traces(str(self.state_dir), self.networks.namespace.name) == []


VNET_HEADER = bytes(10)


def arp_request(mac: str, sender: str, target: str) -> bytes:
    """An Ethernet frame that asks who has `target`."""
    own = bytes.fromhex(mac.replace(":", ""))
    addresses = [bytes(int(part) for part in text.split(".")) for text in (sender, target)]
    body = bytes.fromhex("0001080006040001") + own + addresses[0] + bytes(6) + addresses[1]
    return b"\xff" * 6 + own + bytes.fromhex("0806") + body


async def exchange(fd: int, mac: str, sender: str, target: str, timeout_s: float = 1.0) -> list[bytes]:
    """Ask for `target` by ARP through a tap's descriptor, as a guest's card would; the frames up to the answer."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()
    frames: list[bytes] = []
    own, asked = bytes.fromhex(mac.replace(":", "")), bytes(int(part) for part in target.split("."))

    def read() -> None:
        frames.append(frame := os.read(fd, 65536)[len(VNET_HEADER) :])
        is_reply = frame[0:6] == own and frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02"
        if is_reply and frame[28:32] == asked and not answered.done():
            answered.set_result(None)

    loop.add_reader(fd, read)
    try:
        os.write(fd, VNET_HEADER + arp_request(mac, sender, target))
        async with asyncio.timeout(timeout_s):
            await answered
    finally:
        loop.remove_reader(fd)
    return frames


async def is_answered(fd: int, mac: str, sender: str, target: str, timeout_s: float = 1.0) -> bool:
    try:
        return bool(await exchange(fd, mac, sender, target, timeout_s))
    except TimeoutError:
        return False
