"""One Debian source, ten clones of it while it runs and ten after it froze: twenty machines that share nothing they
must not, and not one frame of theirs that names the source as its sender."""

from __future__ import annotations

import asyncio
import collections
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.identity import IdentityState
from ramet.model.requests import CloneVm, CreateVm, ImportImage, NicRequest
from ramet.model.views import CloneResult
from ramet.testing.images import debian_image
from tests.guest.conftest import Guests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.asyncio(loop_scope="session")]

BOOT_S = 280.0
FROST_S = float(os.environ.get("RAMET_TEST_FROST_S", "20"))
"""How long the source stands frozen before it is cloned: its clock is as old as that."""
CLONES = 10
NUMBERS = 1000

# A program that ran before the clone, has its own generator of random numbers, and heeds the sign.
HEEDFUL = r"""
import os, random, time
def generation():
    with open("/run/ramet/generation") as file:
        return file.read().strip()
seen, numbers = generation(), random.Random(os.urandom(32))
while True:
    now = generation()
    if now != seen:
        seen = now
        numbers.seed(os.urandom(32))
        drawn = [numbers.getrandbits(64) for _ in range(1000)]
        with open("/run/drawn.new", "w") as file:
            file.write(now + "\n" + "\n".join(map(str, drawn)) + "\n")
        os.rename("/run/drawn.new", "/run/drawn")
    time.sleep(0.25)
"""

ASK = r"""
hostname
cat /etc/machine-id
cat /sys/class/net/e*/address
ip -4 -o addr show scope global | sed 's/.*inet //; s/ .*//'
cat /run/ramet/generation
ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2
ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | cut -d' ' -f3 | head -1
"""
FIELDS = ("hostname", "machine_id", "mac", "address", "generation", "ssh_key", "ssh_key_served")


@dataclass
class Capture:
    """Who sent which senders' addresses, on every tap of the daemon's namespace."""

    sock: socket.socket
    senders: dict[str, set[str]] = field(default_factory=lambda: collections.defaultdict(set))
    frames: int = 0

    def read(self) -> None:
        while True:
            try:
                frame, (name, _, kind, _, _) = self.sock.recvfrom(2048)
            except BlockingIOError:
                return
            if kind != socket.PACKET_OUTGOING and name.startswith("rt-"):
                self.frames += 1
                self.senders[name].update(senders_of(frame))


def senders_of(frame: bytes) -> Iterator[str]:
    """MAC and IPv4 addresses in a frame that say who sent it."""
    yield frame[6:12].hex(":")
    kind = frame[12:14]
    if kind == b"\x08\x00":
        yield socket.inet_ntoa(frame[26:30])
    elif kind == b"\x08\x06":
        yield frame[22:28].hex(":")
        yield socket.inet_ntoa(frame[28:32])


@pytest_asyncio.fixture(loop_scope="session")
async def capture(host: Host) -> AsyncIterator[Capture]:
    """On all interfaces of the namespace."""
    thread = host.floor.rooms.networks._thread
    everything = socket.htons(3)  # ETH_P_ALL
    sock = await thread.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything))
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    found = Capture(sock)
    asyncio.get_running_loop().add_reader(sock, found.read)
    yield found
    asyncio.get_running_loop().remove_reader(sock)
    sock.close()


@pytest_asyncio.fixture(loop_scope="session")
async def debian(host: Host, guests: Guests) -> str:
    """A Debian guest that runs the heedful program."""
    image = await debian_image(Path(__file__).parents[2] / ".state" / "debian")
    if "debian" not in {one.name for one in await host.list_images()}:
        await finish(host, await host.import_image(ImportImage(path=str(image.disk), name="debian")))
    request = CreateVm(name="origin", image="debian", memory_mib=512, nics=(NicRequest(),), start=True)
    guests._made.append("origin")
    await finish(host, await host.create_vm(request))
    await host.wait_agent("origin", BOOT_S)
    await guests.sh("origin", "timeout 100 systemctl is-system-running --wait || true")
    await guests.sh("origin", "until ip -4 -o addr show scope global | grep -q inet; do sleep 0.1; done")
    await guests.sh("origin", f"cat > /root/heedful.py <<'END'\n{HEEDFUL}\nEND")
    await guests.sh("origin", "setsid python3 /root/heedful.py >/dev/null 2>&1 </dev/null & sleep 0.5")
    return "origin"


async def facts(guests: Guests, name: str) -> dict[str, str]:
    return dict(zip(FIELDS, (await guests.sh(name, ASK)).split("\n"), strict=True))


async def drawn(guests: Guests, name: str) -> tuple[list[str], list[str]]:
    """Random numbers of the heedful program, and of the kernel."""
    script = "until [ -s /run/drawn ]; do sleep 0.05; done; cat /run/drawn"
    generation, *numbers = (await guests.sh(name, script)).split()
    assert generation == (await guests.sh(name, "cat /run/ramet/generation"))
    kernel = (await guests.sh(name, f"od -An -v -tx8 -w8 -N{8 * NUMBERS} /dev/urandom")).split()
    return numbers, kernel


async def clock_error_s(host: Host, name: str) -> float:
    """Bounded from both sides by the host's clock, and the smallest of a few."""
    best = 1e9
    for _ in range(5):
        before = time.time()
        guest = await host.floor.find(name).agent.command("guest-get-time") / 1e9
        after = time.time()
        best = min(best, max(0.0, before - guest, guest - after) + (after - before) / 2)
    return best


async def clones(host: Host, guests: Guests, prefix: str) -> list[CloneResult]:
    guests._made.extend(f"{prefix}-{n}" for n in range(1, CLONES + 1))
    task = await host.clone_vm("origin", CloneVm(name=f"{prefix}-{{n}}", count=CLONES, wait_network_s=60))
    return [CloneResult.model_validate(one) for one in await finish(host, task)]


async def test_twenty_clones_are_twenty_machines(host: Host, guests: Guests, debian: str, capture: Capture) -> None:
    source = await facts(guests, debian)
    made = await clones(host, guests, "live")
    errors = {one.name: await clock_error_s(host, one.name) for one in made}
    await finish(host, await host.freeze_vm(debian))
    await asyncio.sleep(FROST_S)  # what is waited for is time itself
    frozen = await clones(host, guests, "cold")
    errors |= {one.name: await clock_error_s(host, one.name) for one in frozen}
    made += frozen
    assert [one.problem for one in made] == [None] * 2 * CLONES
    assert {one.identity for one in made} == {IdentityState.ACKNOWLEDGED}
    assert all(one.addresses.get("net0") for one in made)
    assert max(errors.values()) <= 0.1, errors

    known = {one.name: await facts(guests, one.name) for one in made} | {debian: source}
    for what in FIELDS:
        assert len({facts_of[what] for facts_of in known.values()}) == 2 * CLONES + 1, what
    assert all(facts_of["ssh_key"] for facts_of in known.values())
    for one in made:
        assert known[one.name]["address"].split("/")[0] == one.addresses["net0"]
        assert known[one.name]["hostname"] == one.name
    numbers = [number for one in made for both in await drawn(guests, one.name) for number in both]
    assert len(numbers) == len(set(numbers)) == 2 * CLONES * 2 * NUMBERS

    capture.read()
    source_tap = host.floor.find(debian).taps["net0"]
    assert capture.frames > 2 * CLONES
    forbidden = {source["mac"], source["address"].split("/")[0]}
    assert {tap for tap, senders in capture.senders.items() if tap != source_tap and senders & forbidden} == set()
