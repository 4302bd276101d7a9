"""A laboratory: one `Networks`, namespaces that play guests and the outside, and a proof that nothing is left."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import pytest

from ramet.errors import ToolError
from ramet.network import privilege
from ramet.network.manager import Networks
from ramet.network.namespace import NAMES, Namespace, NamespaceThread, run_tool

needs_privilege = pytest.mark.skipif(privilege.find_problem() is not None, reason=str(privilege.find_problem()))

SERVICES = (b"dnsmasq", b"pasta")
UDHCPC_SCRIPT = str(Path(__file__).with_name("udhcpc.sh"))


def traces() -> set[str]:
    """Everything this room could leave on the host: names, mounts, processes, and the caller's own namespace."""
    names = {f"name {path.name}" for path in NAMES.glob("ramet*")} if NAMES.exists() else set()
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    mounts = {f"mount {path}" for path in mounts if path.startswith(f"{NAMES}/ramet")}
    processes = {f"process {pid} {name!r}" for pid, name in _commands() if name in SERVICES}
    return names | mounts | processes | {os.readlink("/proc/self/ns/net")}


def _commands() -> list[tuple[str, bytes]]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else [b""]
        except OSError:
            continue
        found.append((entry.name, os.path.basename(words[0])))
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
        self.port = f"vt-{number}"
        self._networks = networks

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.cable("add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace.name)
        await self.run("ip", "link", "set", "eth0", "up")
        return self

    async def cable(self, *arguments: str) -> None:
        await self._networks._thread.run(run_tool, ["ip", "link", *arguments], "", 10.0)

    async def plug(self, network: str | None) -> None:
        """Into a port group, or out of any."""
        await self._networks.attach(self.port, network)

    async def mac(self) -> str:
        return (await self.run("ip", "-br", "link", "show", "eth0")).split()[2]

    async def set_mac(self, mac: str) -> None:
        await self.run("ip", "link", "set", "eth0", "address", mac)

    async def set_address(self, address: str) -> None:
        await self.run("ip", "addr", "add", address, "dev", "eth0")

    async def dhcp(self, *options: str) -> dict[str, str]:
        """What udhcpc, an ordinary client, is given; it also sets it. Keys as its script sees them."""
        client = ("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-s", UDHCPC_SCRIPT)
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
        self._before = traces()
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
        left = traces() - self._before
        assert not left, left
        assert not (self.state_dir / "network").exists()


VNET_HEADER = bytes(10)


def arp_request(mac: str, sender: str, target: str) -> bytes:
    """An Ethernet frame that asks who has `target`."""
    own = bytes.fromhex(mac.replace(":", ""))
    addresses = [bytes(int(part) for part in text.split(".")) for text in (sender, target)]
    body = bytes.fromhex("0001080006040001") + own + addresses[0] + bytes(6) + addresses[1]
    return b"\xff" * 6 + own + bytes.fromhex("0806") + body


async def is_answered(fd: int, mac: str, sender: str, target: str, timeout_s: float = 1.0) -> bool:
    """Whether `target` answers an ARP request sent through a tap's descriptor, as a guest's card would send it."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bool] = loop.create_future()
    own, asked = bytes.fromhex(mac.replace(":", "")), bytes(int(part) for part in target.split("."))

    def read() -> None:
        frame = os.read(fd, 65536)[len(VNET_HEADER) :]
        is_reply = frame[0:6] == own and frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02"
        if is_reply and frame[28:32] == asked and not answered.done():
            answered.set_result(True)

    loop.add_reader(fd, read)
    try:
        os.write(fd, VNET_HEADER + arp_request(mac, sender, target))
        async with asyncio.timeout(timeout_s):
            return await answered
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
