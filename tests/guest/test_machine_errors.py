"""What users get wrong is told in a sentence with its remedy, before anything is begun; and a disk that is full."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import (
    CapacityError,
    ConflictError,
    NotFoundError,
    RametError,
    StateError,
    UnsupportedError,
    UsageError,
)
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.machine import Accelerator, VmState
from ramet.model.requests import AddDisk, CloneVm, CreateVm, DiskRequest, NicRequest
from tests.guest.conftest import Guests
from tests.guest.machine_kit import furnish, state_folder, wait_state

pytestmark = pytest.mark.asyncio(loop_scope="session")

TWICE = NicRequest(mac="52:54:00:00:00:01", network=None)
WRONG: tuple[tuple[dict[str, Any], type[RametError], str], ...] = (
    ({"image": "mikro"}, NotFoundError, "Did you mean 'micro'"),
    ({"disks": (DiskRequest(image="nothing"),)}, NotFoundError, "nothing"),
    ({"disks": (DiskRequest(image="micro"),)}, UsageError, "has no disk"),
    ({"disks": (DiskRequest(),)}, UsageError, "either a size or an image"),
    ({"disks": (DiskRequest(size_mib=1 << 30),)}, UsageError, "at most"),
    ({"disks": (DiskRequest(size_mib=1),) * 17}, UsageError, "at most 8 NICs and 16 disks"),
    ({"nics": (NicRequest(network="defautl"),)}, NotFoundError, "defautl"),
    ({"nics": (NicRequest(network=None),) * 9}, UsageError, "at most 8 NICs"),
    ({"nics": (TWICE, TWICE)}, UsageError, "MAC address stands twice"),
    ({"memory_mib": 1 << 20}, CapacityError, "this host has"),
    ({"tpm": True}, UnsupportedError, "TPM"),
    ({"passthrough": ("0000:01:00.0",)}, UnsupportedError, "passed-through"),
    ({"ssh_keys": ("no key",)}, UsageError, "not a public SSH key"),
    ({"ssh_keys": ("ssh-ed25519 AAAA",), "user_data": "#cloud-config\n"}, UsageError, "either user-data or SSH keys"),
    ({"cdroms": ("/nowhere/disc.iso",)}, NotFoundError, "no readable file"),
    ({"cdroms": ("disc.iso",)}, UsageError, "absolute"),
    ({"extra_config": {"with blank": "x"}}, UsageError, "not a usable configuration key"),
    ({"extra_config": {"guestinfo.big": "x" * 70_000}}, UsageError, "64 KiB"),
)


async def everything(host: Host) -> tuple[object, ...]:
    state = host.settings.state_dir
    tasks = {task.id for task in host.tasks.list()}
    layers = {path.name for path in (state / "layers").iterdir()}
    return [vm.id for vm in await host.list_vms()], layers, {path.name for path in (state / "vms").iterdir()}, tasks


async def test_what_cannot_be_made_is_refused_at_once_and_leaves_nothing(host: Host) -> None:
    before = await everything(host)
    for fields, error, words in WRONG:
        request = CreateVm.model_validate({"name": "wrong", "image": "micro", "nics": (), **fields})
        with pytest.raises(error) as raised:
            await host.create_vm(request)
        assert words in str(raised.value), fields
        assert "\n" not in raised.value.message
    assert await everything(host) == before


async def test_an_accelerator_that_does_not_work_here_is_refused(host: Host) -> None:
    report = await host.floor.rooms.acceleration.report()
    if report.accelerator is Accelerator.KVM:
        pytest.skip("KVM works here")
    before = await everything(host)
    with pytest.raises(UnsupportedError, match="KVM cannot be used on this host") as raised:
        await host.create_vm(CreateVm(name="fast", image="micro", nics=(), accelerator=Accelerator.KVM))
    assert raised.value.hint
    assert await everything(host) == before


async def test_what_does_not_fit_or_runs_is_told_at_once(host: Host, guests: Guests, source: str) -> None:
    with pytest.raises(StateError, match="--force"):
        await host.remove_vm(source)
    with pytest.raises(ConflictError, match="already"):
        await host.create_vm(CreateVm(name=source, image="micro"))
    with pytest.raises(StateError, match="runs already"):
        await host.start_vm(source)
    with pytest.raises(NotFoundError, match=f"Did you mean '{source}'"):
        await host.show_vm(source[:-1] + "x")
    total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    huge = CreateVm(name="huge", memory_mib=total - 8, nics=())
    with pytest.raises(CapacityError, match="available"):
        await host.create_vm(huge.changed(start=True))
    guests._made.append("huge")
    await finish(host, await host.create_vm(huge))
    with pytest.raises(CapacityError, match="available"):
        await host.start_vm("huge")
    assert (await host.show_vm("huge")).state is VmState.OFF


@contextmanager
def small_file_system(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def resize(path: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True)


async def test_a_full_disk_holds_the_guest_until_there_is_room(host: Host) -> None:
    with state_folder() as state:
        settings = await furnish(host, state)
        layers = state / "layers"
        try:
            with small_file_system(layers, "24m"):
                async with Host.open(settings) as small:
                    try:
                        await fill_and_go_on(small, layers)
                    finally:
                        await small.stop_all_vms()
        except subprocess.CalledProcessError:
            pytest.skip("mounts are not allowed here")


COMPARE = "dd if=/dev/vda bs=1M count=32 2>/dev/null | cmp - /run/in && echo same"


async def fill_and_go_on(host: Host, layers: Path) -> None:
    guests = Guests(host)
    await guests.boot("full", memory_mib=256, disks=(DiskRequest(size_mib=64),))
    since = host.events.last_seq
    write = "dd if=/dev/urandom of=/run/in bs=1M count=32 2>/dev/null; dd if=/run/in of=/dev/vda bs=1M conv=fsync"
    await guests.sh("full", f"(({write}) > /run/out 2>&1; echo $? > /run/code) >/dev/null 2>&1 &")
    await wait_state(host, "full", VmState.PAUSED, since)
    view = await host.show_vm("full")
    assert (view.state, view.pause_reason) == (VmState.PAUSED, "disk full")
    before = await everything(host)
    with pytest.raises(StateError, match="Resume it first"):
        await host.clone_vm("full", CloneVm(names=("x",)))
    with pytest.raises(CapacityError, match="is full"):
        await host.create_vm(CreateVm(name="x", nics=(), disks=(DiskRequest(size_mib=8),)))
    with pytest.raises(StateError):
        await host.add_disk("full", AddDisk(size_mib=8))
    assert await everything(host) == before
    # While there is no room it is held again at once; then it goes on as if nothing had been.
    since = host.events.last_seq
    await finish(host, await host.resume_vm("full"))
    await wait_state(host, "full", VmState.PAUSED, since)
    await asyncio.to_thread(resize, layers, "400m")
    await finish(host, await host.resume_vm("full"))
    same = "until [ -s /run/code ]; do sleep 0.1; done; cat /run/code; echo 3 > /proc/sys/vm/drop_caches"
    assert await guests.sh("full", f"{same}; {COMPARE}") == "0\nsame"
    await guests.clone("full", "fits")
    assert await guests.sh("fits", COMPARE) == "same"
