"""Freezing: every clone goes on from the same instruction, and the source stays where it is until it is thawed."""

from __future__ import annotations

import os
import signal

import pytest

from ramet.errors import StateError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.machine import VmState
from ramet.model.requests import CloneVm, StopVm
from tests.guest.conftest import Guests

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCRIPT = """
(
  vmware-rpctool "instantclone.freeze" > /run/freeze.out 2>&1; echo "returned $?" >> /run/freeze.out
  echo "I am $(vmware-rpctool 'info-get guestinfo.me')" >> /run/freeze.out
) >/dev/null 2>&1 &
"""
WAIT = "until grep -q 'I am' /run/freeze.out; do sleep 0.05; done; cat /run/freeze.out"


async def frozen(host: Host, name: str) -> None:
    """Wait until the guest has frozen itself."""
    async for event in host.events.follow(0):
        if event.kind == "vm.state" and event.vm_name == name and "frozen" in event.message:
            return


async def test_the_guests_own_freeze_returns_in_each_clone(host: Host, guests: Guests) -> None:
    await guests.boot("icy", disk_mib=64)
    await guests.sh("icy", SCRIPT)
    await frozen(host, "icy")
    for n in range(3):
        await guests.clone("icy", f"warm{n}", extra_config={"guestinfo.me": f"warm{n}"})
    for n in range(3):
        assert await guests.sh(f"warm{n}", WAIT) == f"returned 0\nI am warm{n}"
    view = await host.show_vm("icy")
    assert view.state is VmState.FROZEN
    assert view.frozen
    with pytest.raises(StateError, match="frozen"):
        await guests.sh("icy", "true")
    # Thawed, its own call returns too; and its clones do not notice.
    await finish(host, await host.thaw_vm("icy"))
    assert "returned 0" in await guests.sh("icy", WAIT)
    assert await guests.sh("warm0", "echo alive") == "alive"
    assert not host.floor.rooms.holdings.all()  # its zygote has ended


async def test_vmtoolsd_freezes_too(host: Host, guests: Guests) -> None:
    await guests.boot("icy2")
    await guests.sh("icy2", "(vmtoolsd --cmd 'instantclone.freeze'; echo $? > /run/rc) >/dev/null 2>&1 &")
    await frozen(host, "icy2")
    await guests.clone("icy2", "warm")
    assert await guests.sh("warm", "until [ -s /run/rc ]; do sleep 0.05; done; cat /run/rc") == "0"


async def test_freeze_from_outside_many_clones_at_once_and_the_end_of_the_source(host: Host, guests: Guests) -> None:
    await guests.boot("outside", disk_mib=64)
    await guests.sh("outside", "echo kept > /run/token")
    await finish(host, await host.freeze_vm("outside"))
    names = [f"out{n}" for n in range(4)]
    await guests.clone("outside", *names)
    await guests.remove("outside")
    for name in names:
        assert await guests.sh(name, "cat /run/token") == "kept"
    assert not (await host.show_vm("out0")).frozen


async def test_a_frozen_source_can_be_cloned_again_after_its_clones_wrote(host: Host, guests: Guests) -> None:
    await guests.boot("again", disk_mib=64)
    await guests.sh("again", "mke2fs -q /dev/vda >/dev/null 2>&1; mkdir -p /d; mount /dev/vda /d")
    await guests.sh("again", "echo base > /d/f; sync")
    await finish(host, await host.freeze_vm("again"))
    await guests.clone("again", "first")
    await guests.sh("first", "echo first > /d/f; sync")
    await zygote_dies(host, "again")
    await guests.clone("again", "second")
    assert host.floor.find("again").zygote is None
    assert await guests.sh("second", "echo 3 > /proc/sys/vm/drop_caches; cat /d/f") == "base"
    chain = (await host.show_vm("again")).disks[0].chain
    assert len(chain) == 2  # with one overlay


async def zygote_dies(host: Host, name: str) -> None:
    """Which its clones do not need: they are then forked from the VM itself."""
    (holding,) = [held for held in host.floor.rooms.holdings.all() if held.name.endswith(f" of {name}")]
    assert host.floor.find(name).zygote is not None
    os.kill(holding.pid, signal.SIGKILL)


async def test_power_off_loses_the_frozen_state(host: Host, guests: Guests) -> None:
    await guests.boot("lost")
    await finish(host, await host.freeze_vm("lost"))
    await finish(host, await host.stop_vm("lost", StopVm(hard=True)))
    view = await host.show_vm("lost")
    assert view.state is VmState.OFF
    assert not view.frozen
    with pytest.raises(StateError):
        await host.clone_vm("lost", CloneVm(names=("x",)))
    assert not list((host.settings.state_dir / "moments").iterdir())
