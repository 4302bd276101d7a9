"""The Debian guest under plain QEMU: it boots by itself, lets its owner in, and comes back after a reset."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from ramet.errors import DeadlineError, GuestError
from ramet.guest import commands
from ramet.guest.agent import Agent, ShutdownMode
from ramet.guest.images.built import BuiltImage
from ramet.guest.rpc_channel import RpcChannel
from ramet.testing.plain_qemu import start_plain_guest

BOOT_S = 280.0
CALL_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.asyncio(loop_scope="session")]


class Host:
    def __init__(self, **config: str) -> None:
        self.values = {f"guestinfo.{key}": value for key, value in config.items()}

    def config(self) -> Mapping[str, str]:
        return self.values

    async def store(self, key: str, value: str) -> None:
        self.values[key] = value

    def log(self, text: str) -> None:
        pass

    async def freeze(self) -> None:
        pass

    async def handle(self, text: bytes) -> tuple[bool, bytes]:
        return await commands.answer(text, self)


def overlay(image: BuiltImage, folder: Path, size: str) -> BuiltImage:
    disk = folder / "disk.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.disk), "-F", "raw", str(disk), size]
    subprocess.run(argv, check=True, timeout=60)
    return dataclasses.replace(image, disk=disk)


def make_key(folder: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True, timeout=60)
    return (folder / "key.pub").read_text().strip()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


async def ssh(folder: Path, port: int, command: str) -> tuple[int | None, str]:
    argv = ["ssh", "-F", "none", "-i", folder / "key", "-p", str(port), "-o", "StrictHostKeyChecking=no", "-o"]
    argv += [f"UserKnownHostsFile={folder / 'hosts'}", "-o", "ConnectTimeout=60", "-o", "BatchMode=yes"]
    with (folder / "ssh.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *map(str, argv), "root@127.0.0.1", command, stdout=subprocess.PIPE, stderr=log
        )
    out, _ = await asyncio.wait_for(child.communicate(), 2 * CALL_S)
    return child.returncode, out.decode()


async def restarted(agent: Agent, old_boot: bytes) -> None:
    """Until another boot answers; while it goes down, calls may fail or never be answered."""
    async with asyncio.timeout(BOOT_S):
        boot = old_boot
        while boot == old_boot:
            await agent.ping(timeout_s=BOOT_S)
            with contextlib.suppress(GuestError, DeadlineError):
                boot = await agent.read_file("/proc/sys/kernel/random/boot_id")


async def test_debian(debian_build: BuiltImage, folder: Path) -> None:
    key, port = make_key(folder), free_port()
    image = overlay(debian_build, folder, "6G")
    nic = ["-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=n"]
    async with start_plain_guest(image, folder, *nic) as plain:
        host = Host(**{"ramet.hostname": "web-1", "ramet.ssh-keys": f"{key}\nssh-rsa AAAA other"})
        channel = await RpcChannel.open(folder / "rpc", host.handle, timeout_s=10)
        agent = Agent(folder / "agent", timeout_s=CALL_S)
        await agent.ping(timeout_s=BOOT_S)
        state = await agent.exec(["systemctl", "is-system-running", "--wait"], timeout_s=BOOT_S)
        assert state.stdout == b"running\n", await agent.shell("systemctl --failed", timeout_s=CALL_S)
        assert await agent.hostname() == "web-1"
        assert (await agent.os_info()).id in ("debian", "ubuntu")

        assert await ssh(folder, port, "vmware-rpctool 'info-get guestinfo.ramet.hostname'") == (0, "web-1\n")
        assert await agent.shell("wc -l </root/.ssh/authorized_keys", timeout_s=CALL_S) == b"2\n"
        assert int(await agent.shell("df --output=size -m / | tail -1", timeout_s=CALL_S)) > 5000
        await agent.shell("vmtoolsd --cmd 'info-set guestinfo.seen yes'", timeout_s=CALL_S)
        assert host.values["guestinfo.seen"] == "yes"
        assert "root@web-1" in plain.console()  # the console is logged in

        boot = await agent.read_file("/proc/sys/kernel/random/boot_id")
        await agent.shutdown(ShutdownMode.REBOOT)
        await restarted(agent, boot)
        assert await agent.shell("wc -l </root/.ssh/authorized_keys", timeout_s=CALL_S) == b"2\n"
        await agent.shutdown()
        await plain.wait_ended(BOOT_S)
        await channel.close()
        await agent.close()
