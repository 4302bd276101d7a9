"""Disks of a real VM: plugged in, grown, exported and taken away; several of them are of one instant in every clone."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ramet.errors import CapacityError, ConflictError, NotFoundError, StateError, UnsupportedError, UsageError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.machine import steps
from ramet.model.machine import VmState
from ramet.model.requests import AddDisk, CopyVm, DiskRequest, ExportDisk, GrowDisk, StopVm
from ramet.model.units import MIB
from ramet.storage.flatten import flatten
from tests.guest.conftest import BOOT_TIMEOUT_S, Guests

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Writes a counter to every disk, reads all of them back past the cache, and compares with what it remembers. Memory and
# disks of a clone must be of one instant, wherever between two writes that is.
WRITER = """
i=0
put() { printf '%0512d' $i | dd of=/dev/$1 bs=512 oflag=direct 2>/dev/null; }
get() { dd if=/dev/$1 bs=512 count=1 iflag=direct 2>/dev/null; }
while :; do
    i=$((i + 1))
    for disk in vda vdb vdc; do put $disk; done
    for disk in vda vdb vdc; do [ "$(get $disk)" = "$(printf '%0512d' $i)" ] || echo BAD $disk $i >> /run/bad; done
    echo $i > /run/count
done
"""
GOES_ON = """
n=$(cat /run/count)
until [ $(cat /run/count) -gt $((n + 2)) ]; do sleep 0.05; done
[ ! -e /run/bad ] || cat /run/bad
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ark(host: Host) -> AsyncIterator[str]:
    """A guest with two disks, and a third that was plugged in while it ran; it writes to all of them all the time."""
    guests = Guests(host)
    await guests.boot("ark", memory_mib=128, disks=(DiskRequest(size_mib=64), DiskRequest(size_mib=40)))
    await host.add_disk("ark", AddDisk(size_mib=96))
    await guests.sh("ark", "until [ -b /dev/vdc ]; do sleep 0.05; done")
    await guests.sh("ark", f"cat > /run/writer << 'END'\n{WRITER}\nEND\n(sh /run/writer >/dev/null 2>&1 &)")
    yield "ark"
    await guests.remove_all()


async def sectors(guests: Guests, name: str, disk: str) -> int:
    return int(await guests.sh(name, f"cat /sys/block/{disk}/size"))


def layers_of(host: Host) -> set[str]:
    return {path.name for path in (host.settings.state_dir / "layers").iterdir()}


def same_content(one: Path, other: Path) -> bool:
    """By qemu-img, which reads through chains; the larger one may have zeros behind."""
    argv = ["qemu-img", "compare", "-U", str(one), str(other)]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


def first_count(file: Path) -> int:
    with file.open("rb") as opened:
        return int(opened.read(512))


async def export(host: Host, name: str, disk: str, path: Path, form: str) -> Path:
    await finish(host, await host.export_disk(name, disk, ExportDisk(path=str(path), format=form)))
    return path


async def test_all_disks_of_a_live_clone_are_of_one_instant(host: Host, guests: Guests, ark: str) -> None:
    for source, clone in ((ark, "dove"), ("dove", "raven")):
        await guests.clone(source, clone)
        assert await guests.sh(clone, GOES_ON) == ""
    assert await guests.sh(ark, GOES_ON) == ""
    assert [disk.size_bytes for disk in (await host.show_vm("raven")).disks] == [64 * MIB, 40 * MIB, 96 * MIB]
    assert await sectors(guests, "raven", "vdc") == 96 * MIB // 512


async def test_disks_of_a_frozen_vm_are_exported_as_they_were(
    host: Host, guests: Guests, ark: str, tmp_path: Path
) -> None:
    await guests.clone(ark, "ice")
    with pytest.raises(StateError, match="running and writes"):
        await export(host, "ice", "disk0", tmp_path / "no", "raw")
    await finish(host, await host.freeze_vm("ice"))
    files = [await export(host, "ice", f"disk{n}", tmp_path / f"{n}.raw", "raw") for n in range(3)]
    assert [file.stat().st_size for file in files] == [64 * MIB, 40 * MIB, 96 * MIB]
    counts = [first_count(file) for file in files]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[2] in (0, 1)
    for file, disk in zip(files, (await host.show_vm("ice")).disks, strict=True):
        assert same_content(file, host.settings.state_dir / "layers" / f"{disk.chain[1].id}.qcow2")
    with pytest.raises(ConflictError, match="exists"):
        await export(host, "ice", "disk0", files[0], "raw")
    with pytest.raises(NotFoundError, match="directory"):
        await export(host, "ice", "disk0", tmp_path / "nowhere" / "file", "raw")
    await guests.clone("ice", "thawed")
    assert await guests.sh("thawed", GOES_ON) == ""


async def copy(host: Host, source: str, name: str, *, linked: bool) -> None:
    await finish(host, await host.copy_vm(source, CopyVm(name=name, linked=linked)))


@pytest.mark.parametrize("linked", [True, False])
async def test_a_copy_of_one_that_runs_has_all_disks_as_at_one_instant(
    host: Host, guests: Guests, ark: str, tmp_path: Path, linked: bool
) -> None:
    try:
        await copy(host, ark, "copy", linked=linked)
        made = await host.show_vm("copy")
        assert made.state is VmState.OFF
        assert await guests.sh(ark, GOES_ON) == ""
        counts = [first_count(await export(host, "copy", f"disk{n}", tmp_path / str(n), "raw")) for n in range(3)]
        assert counts[0] > 0
        assert counts == sorted(counts, reverse=True)
        assert counts[0] - counts[2] in (0, 1)
        shared = {layer.id for disk in made.disks for layer in disk.chain}
        shared &= {layer.id for disk in (await host.show_vm(ark)).disks for layer in disk.chain}
        assert bool(shared) is linked
        await finish(host, await host.start_vm("copy"))
        await host.wait_agent("copy", BOOT_TIMEOUT_S)
        assert await guests.sh("copy", "dd if=/dev/vda bs=512 count=1 2>/dev/null") == f"{counts[0]:0512d}"
    finally:
        await guests.remove("copy")


async def test_nobody_waits_while_the_disks_of_one_that_runs_are_copied(
    host: Host, guests: Guests, ark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = asyncio.Event()

    async def flatten_later(*args: Any, **options: Any) -> Any:
        await goes_on.wait()
        return await flatten(*args, **options)

    monkeypatch.setattr("ramet.host.copying.flatten", flatten_later)
    task = await host.copy_vm(ark, CopyVm(name="copy", linked=False))
    try:
        await guests.clone(ark, "meanwhile")
        assert await guests.sh("meanwhile", GOES_ON) == ""
        await host.floor.collect_layers()
        assert not host.tasks.get(task.id).state.is_final
        goes_on.set()
        await finish(host, task)
        counts = [first_count(await export(host, "copy", f"disk{n}", tmp_path / str(n), "raw")) for n in range(3)]
        assert counts[0] - counts[2] in (0, 1)
    finally:
        goes_on.set()
        await host.tasks.wait(task.id, 60.0)
        await guests.remove("copy")


async def test_copies_of_a_frozen_vm_have_the_disks_of_its_instant(
    host: Host, guests: Guests, ark: str, tmp_path: Path
) -> None:
    await guests.clone(ark, "still")
    await finish(host, await host.freeze_vm("still"))
    before = await export(host, "still", "disk0", tmp_path / "before", "raw")
    try:
        for name, linked in (("thin", True), ("thick", False)):
            await copy(host, "still", name, linked=linked)
            assert same_content(await export(host, name, "disk0", tmp_path / name, "raw"), before)
        assert (await host.show_vm("still")).state is VmState.FROZEN
        await guests.clone("still", "warm")
        assert await guests.sh("warm", GOES_ON) == ""
    finally:
        for name in ("thin", "thick"):
            await guests.remove(name)


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("step", steps.COPY_STEPS)
async def test_a_copy_of_one_that_runs_that_fails_leaves_it_running_and_nothing_else(
    host: Host, guests: Guests, ark: str, step: str, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(reached: str) -> None:
        if reached == step:
            raise CapacityError("The disk is full.")

    monkeypatch.setattr(steps, "inject", fail)
    with pytest.raises(CapacityError):
        await copy(host, ark, "copy", linked=linked)
    monkeypatch.setattr(steps, "inject", None)
    assert await guests.sh(ark, GOES_ON) == ""
    vms = await host.list_vms()
    assert "copy" not in {vm.name for vm in vms}
    assert layers_of(host) == {f"{layer.id}.qcow2" for vm in vms for disk in vm.disks for layer in disk.chain}


async def test_a_guest_sees_its_disk_grow(host: Host, guests: Guests, ark: str) -> None:
    await host.grow_disk(ark, "disk1", GrowDisk(size_mib=56))
    await guests.sh(ark, f"until [ $(cat /sys/block/vdb/size) = {56 * MIB // 512} ]; do sleep 0.05; done")
    assert await guests.sh(ark, GOES_ON) == ""
    await guests.clone(ark, "grown")
    assert await sectors(guests, "grown", "vdb") == 56 * MIB // 512
    assert await guests.sh("grown", GOES_ON) == ""


async def test_what_cannot_be_done_to_disks_leaves_nothing(host: Host, guests: Guests, ark: str) -> None:
    await host.add_disk(ark, AddDisk(size_mib=8))
    before = layers_of(host)
    with pytest.raises(UnsupportedError, match="first 4"):
        await host.add_disk(ark, AddDisk(size_mib=8))
    with pytest.raises(UsageError, match="never made smaller"):
        await host.grow_disk(ark, "disk0", GrowDisk(size_mib=32))
    with pytest.raises(UsageError, match="at most"):
        await host.grow_disk(ark, "disk0", GrowDisk(size_mib=1 << 30))
    with pytest.raises(UsageError, match="at most"):
        await host.add_disk(ark, AddDisk(size_mib=1 << 30))
    with pytest.raises(NotFoundError, match="It has: disk0, disk1"):
        await host.grow_disk(ark, "disk9", GrowDisk(size_mib=8))
    with pytest.raises(StateError, match="Stop it first"):
        await host.remove_disk(ark, "disk3")
    assert layers_of(host) == before
    assert len((await host.show_vm(ark)).disks) == 4
    await guests.clone(ark, "four")  # QEMU holds no node of the disk that was refused
    assert await guests.sh("four", "ls /sys/block | grep -c vd") == "4"


async def test_disks_change_while_the_vm_is_off_and_keep_what_they_have(
    host: Host, guests: Guests, ark: str, tmp_path: Path
) -> None:
    await guests.sh(ark, "echo kept | dd of=/dev/vda bs=512 seek=100 conv=sync oflag=direct 2>/dev/null")
    await finish(host, await host.stop_vm(ark, StopVm(hard=True)))
    view = await host.show_vm(ark)
    for disk, form in zip(view.disks, ("qcow2", "raw", "vmdk"), strict=False):
        file = await export(host, ark, disk.id, tmp_path / f"{disk.id}.{form}", form)
        assert same_content(file, host.settings.state_dir / "layers" / f"{disk.chain[0].id}.qcow2")
        assert file.stat().st_mode & 0o077 == 0
    gone = {layer.id for layer in view.disks[3].chain}
    await host.remove_disk(ark, "disk3")
    await host.grow_disk(ark, "disk0", GrowDisk(size_mib=72))
    for _ in range(13):
        await host.add_disk(ark, AddDisk(size_mib=16))
    with pytest.raises(UsageError, match="16 disks"):
        await host.add_disk(ark, AddDisk(size_mib=16))
    assert not {f"{layer}.qcow2" for layer in gone} & layers_of(host)
    await finish(host, await host.start_vm(ark))
    await host.wait_agent(ark, BOOT_TIMEOUT_S)
    sizes = [await sectors(guests, ark, f"vd{letter}") * 512 // MIB for letter in "abcdp"]
    assert sizes == [72, 56, 96, 16, 16]
    assert await guests.sh(ark, "dd if=/dev/vda bs=512 skip=100 count=1 2>/dev/null | head -1") == "kept"
    counts = await guests.sh(ark, "for d in vda vdb vdc; do dd if=/dev/$d bs=512 count=1 2>/dev/null; echo; done")
    first, _, last = map(int, counts.split())
    assert first - last in (0, 1)
    await guests.sh(ark, "for d in /dev/vd?; do echo ${d#/dev/} | dd of=$d bs=512 seek=9 conv=sync oflag=direct; done")
    await guests.clone(ark, "sixteen")
    names = "for d in /dev/vd?; do dd if=$d bs=512 skip=9 count=1 iflag=direct 2>/dev/null | head -1; done"
    assert await guests.sh("sixteen", names) == "\n".join(f"vd{letter}" for letter in "abcdefghijklmnop")
