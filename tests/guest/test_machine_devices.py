"""What else a VM has: pictures, consoles, UEFI and its variables, CD images and seeds."""

from __future__ import annotations

import asyncio
import re
import struct
import zlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ramet.errors import ConflictError, StateError, UnsupportedError
from ramet.guest.iso9660 import cd_image
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.machine import Display, Firmware, VmState
from ramet.model.requests import CreateVm, DiskRequest, GrowDisk, NicRequest, StopVm
from tests.guest.conftest import Guests
from tests.guest.machine_kit import WAIT_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx5sKvKvXh7WKsAC0WDdeLBlHDNBPkTfTlHx9rJkyJ6 somebody"
# Text of many colours; the cursor blinks, so it is switched off.
DRAW = r"""
printf '\033[?25l\033[2J\033[H' > /dev/tty0
for n in 1 2 3 4 5 6 7; do printf "\033[3%dm%s of a picture\n" $n "line $n" > /dev/tty0; done
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def seen(host: Host, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A guest with a display, a CD of the user's and a seed."""
    disc = tmp_path_factory.mktemp("cd") / "disc.iso"
    disc.write_bytes(cd_image("DISC", {"note": b"made by hand"}))
    guests = Guests(host)
    await guests.boot("seen", memory_mib=160, display=Display.VGA, cdroms=(str(disc),), ssh_keys=(KEY,))
    yield "seen"
    await guests.remove_all()


def pixels(png: bytes) -> tuple[int, int, int]:
    """Width, height and how many distinct colours: enough to know that something was drawn."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (8, 2)
    data, at = b"", 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    raw = zlib.decompress(data)
    stride = 1 + 3 * width
    assert len(raw) == stride * height
    return width, height, len({raw[n : n + 3] for n in range(1, len(raw), 3)})


async def settled(host: Host, name: str) -> bytes:
    """A screenshot that stays as it is: the guest has drawn all it was told to."""
    async with asyncio.timeout(WAIT_S):
        last = b""
        while (now := await host.screenshot(name)) != last:
            last = now
            await asyncio.sleep(0.3)
    return last


async def test_a_frozen_clone_shows_its_sources_picture_to_the_pixel(host: Host, guests: Guests, seen: str) -> None:
    blank = await settled(host, seen)
    await guests.sh(seen, DRAW)
    picture = await settled(host, seen)
    assert picture != blank
    width, height, colours = pixels(picture)
    assert (width, height) == (1280, 800)
    assert colours >= 8
    await finish(host, await host.freeze_vm(seen))
    assert await host.screenshot(seen) == picture
    await guests.clone(seen, "image")
    assert await host.screenshot("image") == picture
    await finish(host, await host.thaw_vm(seen))
    await guests.sh("image", "printf 'more' > /dev/tty0")
    assert await settled(host, "image") != picture
    assert await host.screenshot(seen) == picture
    await guests.clone(seen, "image-2")
    assert await host.screenshot("image-2") == picture


async def test_a_virtio_display_is_cloned_too(host: Host, guests: Guests) -> None:
    await guests.boot("vivid", memory_mib=128, display=Display.VIRTIO)
    await guests.sh("vivid", DRAW)
    picture = await settled(host, "vivid")
    assert pixels(picture)[2] >= 8
    await guests.clone("vivid", "vivid-live")
    assert await host.screenshot("vivid-live") == picture
    await finish(host, await host.freeze_vm("vivid"))
    await guests.clone("vivid", "vivid-clone")
    assert await host.screenshot("vivid") == await host.screenshot("vivid-clone") == picture


async def test_vnc_and_console_answer_in_source_and_clone(host: Host, guests: Guests, seen: str) -> None:
    loop = asyncio.get_running_loop()
    await guests.clone(seen, "copy")
    for name in (seen, "copy"):
        with await host.open_stream("vnc", name) as stream:
            stream.setblocking(False)
            assert (await asyncio.wait_for(loop.sock_recv(stream, 12), 20)).startswith(b"RFB 003.")
        with await host.open_stream("console", name) as stream:
            stream.setblocking(False)
            await loop.sock_sendall(stream, f"echo typed-$((40 + 2))-{name}\n".encode())
            heard = b""
            while f"typed-42-{name}".encode() not in heard:
                heard += await asyncio.wait_for(loop.sock_recv(stream, 4096), 30)
        async with asyncio.timeout(WAIT_S):  # the log has it a moment later
            while f"typed-42-{name}".encode() not in await host.console_log(name, 1 << 16):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert len(await host.console_log(name, 10)) == 10
    await guests.boot("dark", memory_mib=128)
    with pytest.raises(UnsupportedError, match="no display"):
        await host.open_stream("vnc", "dark")
    with pytest.raises(UnsupportedError, match="no display"):
        await host.screenshot("dark")
    await finish(host, await host.stop_vm("dark", StopVm(hard=True)))
    with pytest.raises(StateError, match="Start it first"):
        await host.open_stream("console", "dark")


async def test_discs_and_seeds_are_read_in_the_guest_and_in_its_clone(host: Host, guests: Guests, seen: str) -> None:
    read = "mkdir -p /cd; for d in /dev/sr0 /dev/sr1; do mount -o ro $d /cd; ls /cd; cat /cd/*; umount /cd; done"
    for name in (seen, "reader"):
        if name == "reader":
            await guests.clone(seen, name)
            await guests.sh(name, "echo 3 > /proc/sys/vm/drop_caches")
        found = await guests.sh(name, read)
        assert "made by hand" in found
        assert "#cloud-config" in found
        assert KEY in found
        assert '"local-hostname": "seen"' in found
        assert await guests.sh(name, "vmware-rpctool 'info-get guestinfo.ramet.ssh-keys'") == KEY


async def test_a_uefi_machine_starts_and_clones(host: Host, guests: Guests) -> None:
    """No system on its disk: the firmware itself says on the console that it runs."""
    request = CreateVm(
        name="modern",
        memory_mib=256,
        firmware=Firmware.UEFI,
        disks=(DiskRequest(size_mib=16),),
        nics=(NicRequest(network=None),),
        display=Display.VGA,
        start=True,
    )
    guests._made.append("modern")
    await finish(host, await host.create_vm(request))
    async with asyncio.timeout(WAIT_S):
        while not re.search(rb"BdsDxe|UEFI|Shell", await host.console_log("modern", 1 << 16)):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    view = await host.show_vm("modern")
    variables = next(disk for disk in view.disks if disk.id == "efivars")
    assert [layer.id for layer in variables.chain][1:] == ["efivars"]
    await guests.clone("modern", "modern-clone")
    clone = await host.show_vm("modern-clone")
    assert clone.state is VmState.RUNNING
    assert next(disk for disk in clone.disks if disk.id == "efivars").chain[0].writable
    with pytest.raises(UnsupportedError, match="variables"):
        await host.grow_disk("modern", "efivars", GrowDisk(size_mib=8))
    await finish(host, await host.stop_vm("modern", StopVm(hard=True)))
    with pytest.raises(ConflictError, match="variables"):
        await host.remove_disk("modern", "efivars")
    await finish(host, await host.start_vm("modern"))
    assert (await host.show_vm("modern")).state is VmState.RUNNING
