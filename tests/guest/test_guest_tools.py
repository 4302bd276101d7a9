"""The micro guest and the tools in it, under plain QEMU: no daemon, no cloning."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.guest import commands
from ramet.guest.agent import Agent
from ramet.guest.images.built import BuiltImage
from ramet.guest.rpc_channel import RpcChannel
from ramet.guest.seed import write_seed
from ramet.guest.tools_install import install_tools
from ramet.testing.images import micro_image
from ramet.testing.plain_qemu import PlainGuest, start_plain_guest

pytestmark = pytest.mark.asyncio(loop_scope="session")

BOOT_S = 90.0
CALL_S = 30.0


class Host:
    """The host's side, in memory; `hold` keeps every answer back while it is not set."""

    def __init__(self, **config: str) -> None:
        self.values = {f"guestinfo.{key}": value for key, value in config.items()}
        self.lines: list[str] = []
        self.changed = asyncio.Condition()
        self.frozen = asyncio.Event()
        self.thaw = asyncio.Event()

    def config(self) -> Mapping[str, str]:
        return self.values

    async def store(self, key: str, value: str) -> None:
        self.values[key] = value
        async with self.changed:
            self.changed.notify_all()

    def log(self, text: str) -> None:
        self.lines.append(text)

    async def freeze(self) -> None:
        self.frozen.set()
        await self.thaw.wait()

    async def handle(self, text: bytes) -> tuple[bool, bytes]:
        return await commands.answer(text, self)

    async def wait_set(self, key: str) -> str:
        async with asyncio.timeout(CALL_S), self.changed:
            await self.changed.wait_for(lambda: key in self.values)
        return self.values[key]


class Guest:
    """A running guest, its agent and its host."""

    def __init__(self, plain: PlainGuest) -> None:
        self.plain = plain
        self.agent = Agent(plain.folder / "agent")
        self.host = Host()
        self.channel: RpcChannel | None = None

    async def attach(self, host: Host) -> None:
        await self.detach()
        self.host = host
        self.channel = await RpcChannel.open(self.plain.folder / "rpc", host.handle, timeout_s=10)

    async def detach(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        self.channel = None

    async def sh(self, script: str) -> tuple[int | None, str, str]:
        outcome = await self.agent.exec(["/bin/sh", "-c", script], timeout_s=CALL_S)
        return outcome.exit_code, outcome.stdout.decode(), outcome.stderr.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def micro() -> BuiltImage:
    return await micro_image(Path(__file__).parents[2] / ".state" / "micro")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rg-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def booted(micro: BuiltImage) -> AsyncIterator[Guest]:
    folder = Path(tempfile.mkdtemp(prefix="rg-", dir="/tmp"))
    async with start_plain_guest(micro, folder) as plain:
        guest = Guest(plain)
        await guest.agent.ping(timeout_s=BOOT_S)
        yield guest
        await guest.agent.close()
    shutil.rmtree(folder)


@pytest_asyncio.fixture(loop_scope="session")
async def guest(booted: Guest) -> AsyncIterator[Guest]:
    await booted.attach(Host(name="web", odd="a\\b\tc\nd ", big="y" * 60000, empty=""))
    yield booted
    await booted.detach()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("vmware-rpctool 'info-get guestinfo.name'", (0, "web\n", "")),
        ("vmware-rpctool info-get GUESTINFO.Name", (0, "web\n", "")),
        ("/usr/bin/vmware-rpctool 'info-get guestinfo.name'", (0, "web\n", "")),
        ("vmtoolsd --cmd 'info-get guestinfo.name'", (0, "web\n", "")),
        ("vmtoolsd --cmd='info-get guestinfo.name'", (0, "web\n", "")),
        ("vmware-rpctool 'info-get guestinfo.empty'", (0, "\n", "")),
        ("vmware-rpctool 'info-get guestinfo.unset'", (1, "", "No value found\n")),
        ("vmware-rpctool 'bogus'", (1, "", "Unknown command\n")),
        ("vmware-rpctool 'info-get guestinfo.odd'", (0, "a\\b\tc\nd \n", "")),
        ("vmware-rpctool 'info-get guestinfo.big' | wc -c", (0, "60001\n", "")),
        ("vmware-rpctool; echo $?", (0, "1\n", "Usage: vmware-rpctool 'COMMAND [ARGUMENT…]'\n")),
        ("RAMET_RPC_PORT=/nowhere vmware-rpctool 'info-get guestinfo.name'", (0, "web\n", "")),
    ],
)
async def test_what_scripts_ask(guest: Guest, script: str, expected: tuple[int, str, str]) -> None:
    assert await guest.sh(script) == expected


@pytest.mark.parametrize(
    "value", ["plain", "two  words ", "tab\there\nnew line", "back\\slash", "ünïcode", "%s $x `y`"]
)
async def test_what_a_guest_sets(guest: Guest, value: str) -> None:
    outcome = await guest.agent.exec(["vmware-rpctool", f"info-set guestinfo.v {value}"], timeout_s=CALL_S)
    assert outcome.ok, outcome
    # As a shell's command line: white space at the end of all is no part of it.
    assert guest.host.values["guestinfo.v"] == value.rstrip(" \n")


async def test_a_large_value_is_set_whole(guest: Guest) -> None:
    value = "z" * 50000 + "\\"
    outcome = await guest.agent.exec(["vmware-rpctool", f"info-set guestinfo.v {value}"], timeout_s=CALL_S)
    assert outcome.ok, outcome
    assert guest.host.values["guestinfo.v"] == value


async def test_concurrent_calls_all_get_their_own_answer(guest: Guest) -> None:
    for i in range(8):
        guest.host.values[f"guestinfo.c{i}"] = f"value {i}"
    loop = "for i in 0 1 2 3 4 5 6 7; do vmware-rpctool info-get guestinfo.c$i >/run/c$i & done; wait; cat /run/c?"
    assert await guest.sh(loop) == (0, "".join(f"value {i}\n" for i in range(8)), "")


async def test_a_killed_callers_late_answer_goes_to_nobody_else(guest: Guest) -> None:
    freezing = asyncio.create_task(
        guest.sh("vmware-rpctool instantclone.freeze >/run/out 2>&1 & echo $!; read -r x </run/stop; kill -9 $!")
    )
    await guest.sh("mkfifo /run/stop")
    await asyncio.wait_for(guest.host.frozen.wait(), CALL_S)
    await guest.sh("echo >/run/stop")
    await freezing
    second = asyncio.create_task(guest.sh("vmware-rpctool 'info-get guestinfo.name'"))
    guest.host.thaw.set()
    assert await second == (0, "web\n", "")
    assert await guest.sh("cat /run/out; rm /run/stop") == (0, "", "")


async def test_freeze_returns_when_the_host_says_so(guest: Guest) -> None:
    call = asyncio.create_task(guest.sh("vmware-rpctool instantclone.freeze; echo $?"))
    await asyncio.wait_for(guest.host.frozen.wait(), CALL_S)
    assert not call.done()
    guest.host.thaw.set()
    assert await call == (0, "\n0\n", "")


async def test_a_call_outlives_its_host(guest: Guest) -> None:
    call = asyncio.create_task(guest.sh("vmware-rpctool instantclone.freeze; echo $?"))
    await asyncio.wait_for(guest.host.frozen.wait(), CALL_S)
    old = guest.host
    await guest.detach()  # like a daemon that is killed: the guest sees end of file
    await guest.sh("true")
    assert not call.done()
    await guest.attach(Host())
    await asyncio.wait_for(guest.host.frozen.wait(), CALL_S)
    guest.host.thaw.set()
    assert await call == (0, "\n0\n", "")
    assert not old.thaw.is_set()


async def test_a_call_without_a_host_waits_for_one(guest: Guest) -> None:
    await guest.detach()
    call = asyncio.create_task(guest.sh("vmware-rpctool 'info-get guestinfo.name'"))
    await guest.sh("true")
    assert not call.done()
    await guest.attach(Host(name="late"))
    assert await call == (0, "late\n", "")


async def test_in_a_stun_a_call_is_pending_and_a_clone_can_answer_it(guest: Guest) -> None:
    assert guest.channel is not None
    call = asyncio.create_task(guest.sh("vmware-rpctool instantclone.freeze; echo $?"))
    await asyncio.wait_for(guest.host.frozen.wait(), CALL_S)
    await guest.channel.quiesce()
    await guest.plain.monitor("stop")
    guest.channel.drain()
    pending = guest.channel.pending()
    assert pending.count(b"instantclone.freeze\n") == 1
    await guest.detach()
    clone = Host()
    guest.channel = await RpcChannel.open(
        guest.plain.folder / "rpc",
        clone.handle,
        timeout_s=10,
        pending=pending,
        inherited=lambda text: commands.answer_inherited(text, clone),
    )
    await guest.plain.monitor("cont")
    assert await call == (0, "\n0\n", "")
    assert not clone.frozen.is_set()


async def test_how_long_a_call_takes(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    loop = 'i=0; while [ $i -lt 20 ]; do vmware-rpctool "info-get guestinfo.name" >/dev/null; i=$((i+1)); done'
    code, out, err = await guest.sh(f"time sh -c '{loop}'")
    assert code == 0
    with capsys.disabled():
        print(f"\n20 guest RPC calls: {' '.join((out + err).split())}")


async def test_tools_come_to_any_guest_with_an_agent(guest: Guest) -> None:
    await guest.sh("rm -f /usr/local/bin/vm* /usr/bin/vm*; echo real >/usr/bin/vmware-rpctool")
    installed = await install_tools(guest.agent)
    assert "/usr/local/bin/vmware-rpctool" in installed
    assert await guest.sh("/usr/bin/vmware-rpctool 'info-get guestinfo.name'") == (0, "web\n", "")
    assert await guest.sh("cat /usr/bin/vmware-rpctool.open-vm-tools") == (0, "real\n", "")


async def test_a_guest_reads_its_seed(micro: BuiltImage, folder: Path) -> None:
    write_seed(folder / "seed.iso", "i-1", "web", ssh_keys=["ssh-ed25519 AAAA me"])
    more = ["-drive", f"file={folder / 'seed.iso'},format=raw,if=none,id=cd,readonly=on", "-device", "ide-cd,drive=cd"]
    async with start_plain_guest(micro, folder, *more) as plain:
        guest = Guest(plain)
        await guest.agent.ping(timeout_s=BOOT_S)
        code, out, err = await guest.sh(
            "modprobe -a ahci sr_mod && mount -t iso9660 /dev/sr0 /mnt && cat /mnt/meta-data"
        )
        assert (code, out) == (0, '{"instance-id": "i-1", "local-hostname": "web"}\n'), err
        assert (await guest.sh("ls /mnt; blkid /dev/sr0"))[1].startswith("meta-data\nuser-data\n")
        await guest.agent.close()


async def test_devices_script_and_power_button(micro: BuiltImage, folder: Path) -> None:
    """All NIC models get an address, a disk is usable, the start script runs, the power button ends it."""
    with (folder / "disk").open("wb") as disk:
        disk.truncate(64 << 20)
    nics = [
        part
        for i, model in enumerate(("virtio-net-pci", "e1000e", "vmxnet3"))
        for part in ("-netdev", f"user,id=n{i},restrict=on", "-device", f"{model},netdev=n{i}")
    ]
    more = [*nics, "-drive", f"file={folder / 'disk'},format=raw,if=virtio", "-vga", "std", "-no-reboot"]
    async with start_plain_guest(micro, folder, *more) as plain:
        guest = Guest(plain)
        script = (
            "until [ $(ip -4 addr | grep -c 10.0.2.15) = 3 ]; do sleep 0.1; done\n"
            "vmware-rpctool 'info-set guestinfo.up yes'"
        )
        await guest.attach(Host(**{"ramet.script": script}))
        assert await guest.host.wait_set("guestinfo.up") == "yes"
        await guest.agent.ping(timeout_s=BOOT_S)
        drivers = await guest.sh(
            "for n in eth0 eth1 eth2; do basename $(readlink /sys/class/net/$n/device/driver); done"
        )
        assert sorted(drivers[1].split()) == ["e1000e", "virtio_net", "vmxnet3"]
        disk_use = await guest.sh(
            "mke2fs /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt && echo hi >/mnt/x && cat /mnt/x"
        )
        assert disk_use == (0, "hi\n", "")
        assert await guest.sh("modprobe -r e1000e && modprobe e1000e && echo back") == (0, "back\n", "")
        assert (await guest.agent.os_info()).id == "ramet-micro"
        await guest.plain.monitor("system_powerdown")
        await guest.plain.wait_ended(CALL_S)
        await guest.detach()
        await guest.agent.close()
