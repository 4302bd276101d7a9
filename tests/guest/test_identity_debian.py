"""The identity of a Debian guest: systemd, networkd, sshd. Its source's MAC is one that was set by hand."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.errors import GuestError
from ramet.guest.agent import Agent
from ramet.guest.identity import apply, freeze_hooks
from ramet.guest.images.built import BuiltImage
from ramet.model.identity import Part, Plan, PlannedNic
from ramet.testing.plain_qemu import start_plain_guest
from tests.guest.test_debian_guest import BOOT_S, overlay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="session")]

CALL_S = 60.0
MAC, OLD = "52:54:00:00:00:01", "52:54:00:00:00:02"
NIC = ("-netdev", "user,id=n,restrict=on", "-device", f"virtio-net-pci,netdev=n,mac={MAC}")
# As in a clone: the kernel goes on with the source's MAC, the device has another.
FEIGN = "set -- /sys/class/net/e*; n=${1##*/}; ip link set $n down; ip link set $n address %s; ip link set $n up"
IDENTITIES = "cat /etc/machine-id /run/ramet/generation; head -c 16 /dev/urandom | base64"


class Guest:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def sh(self, script: str) -> str:
        return (await self.agent.shell(script, timeout_s=CALL_S)).decode().strip()

    async def until(self, condition: str) -> None:
        await self.sh(f"timeout {CALL_S:.0f} sh -c 'until {condition}; do sleep 0.1; done'")


@pytest_asyncio.fixture(loop_scope="session")
async def guest(debian_build: BuiltImage, folder: Path) -> AsyncIterator[Guest]:
    async with start_plain_guest(overlay(debian_build, folder, "4G"), folder, *NIC):
        agent = Agent(folder / "agent", timeout_s=CALL_S)
        await agent.ping(timeout_s=BOOT_S)
        await agent.exec(["systemctl", "is-system-running", "--wait"], timeout_s=BOOT_S)
        yield Guest(agent)
        await agent.close()


def plan(hostname: str, **address: str) -> Plan:
    return Plan(hostname=hostname, domain="example.org", nics=(PlannedNic(id="net0", mac=MAC, old_mac=OLD, **address),))


async def test_debian_becomes_a_machine_of_its_own(guest: Guest) -> None:
    assert len(await guest.sh("cat /run/ramet/generation")) == 36
    before = await guest.sh(IDENTITIES)
    name = await guest.sh("set -- /sys/class/net/e*; echo ${1##*/}")
    await guest.sh(FEIGN % OLD)
    await guest.sh("touch /etc/ssh/ssh_host_dsa_key; date -s 2020-01-01")

    asked = plan("web-1")
    told = await apply(guest.agent, asked, entropy=os.urandom(64))
    assert set(told.done) == set(Part)
    assert told.random == "reseeded"
    assert not told.warnings
    assert told.clock_error_ms is not None
    assert abs(told.clock_error_ms) < 100
    # DHCP with the new identity; the interface has its name.
    await guest.until(f"ip -4 -o addr show dev {name} | grep -q 10.0.2.")
    assert await guest.sh(f"cat /sys/class/net/{name}/address") == MAC
    assert await guest.sh("hostname; cat /etc/hostname; grep 127.0.1.1 /etc/hosts") == (
        "web-1\nweb-1\n127.0.1.1\tweb-1.example.org web-1"
    )
    after = await guest.sh(IDENTITIES)
    assert not set(before.split()) & set(after.split())
    assert after.splitlines()[:2] == [told.machine_id, told.generation]
    served = await guest.sh("ssh-keyscan localhost 2>/dev/null | ssh-keygen -lf - | cut -d' ' -f2")
    assert served == told.ssh_keys["ed25519"]
    assert await guest.sh("ls /etc/ssh | grep -c host_.*key$") == "1"
    assert await guest.sh("systemctl --failed --quiet; systemctl is-active systemd-networkd") == "active"

    again = await apply(guest.agent, asked, entropy=os.urandom(64))
    assert (again.machine_id, again.ssh_keys) == (told.machine_id, told.ssh_keys)
    assert (await guest.sh(IDENTITIES)).splitlines()[:2] == after.splitlines()[:2]

    # Static, once more, and kept over a restart of what manages it; hooks see it all.
    await guest.sh(FEIGN % OLD)
    await guest.sh(
        "printf '#!/bin/sh\\nhostname >/run/hook' >/etc/ramet/clone.d/10-a; chmod +x /etc/ramet/clone.d/10-a"
    )
    told = await apply(guest.agent, plan("web-2", address="10.7.0.5/24", gateway="10.7.0.1"), entropy=os.urandom(64))
    assert told.addresses == {"net0": "10.7.0.5/24"}
    await guest.until(f"ip -4 -o addr show dev {name} | grep -q 10.7.0.5")
    assert "10.0.2." not in await guest.sh("ip -4 addr")
    assert "default via 10.7.0.1" in await guest.sh("ip route")
    assert await guest.sh("cat /run/hook") == "web-2"
    # From static to DHCP: the address of before does not come back.
    await guest.sh(FEIGN % OLD)
    await apply(guest.agent, plan("web-3"), entropy=os.urandom(64))
    await guest.until(f"ip -4 -o addr show dev {name} | grep -q 10.0.2.")
    assert "10.7.0.5" not in await guest.sh("ip -4 addr")

    assert not await freeze_hooks(guest.agent, "freeze", 5)
    await guest.sh("printf '#!/bin/sh\\nsleep 99 & sleep 99' >/etc/ramet/freeze.d/a; chmod +x /etc/ramet/freeze.d/a")
    with pytest.raises(GuestError, match="did not end within 1 s"):
        await freeze_hooks(guest.agent, "freeze", 1)
    assert await guest.sh("pgrep -c sleep || true") == "0"
