"""Cloning a VM that runs: memory and disks are the source's at one instant, and each goes its own way from there."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ramet.errors import ConflictError, NotFoundError, StateError, StunTooLongError, UsageError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.machine import VmState
from ramet.model.requests import CloneVm, NicChange, StopVm
from tests.guest.conftest import Guests

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def memory_is_right(guests: Guests, name: str) -> None:
    """The checker goes on in `name`, and never saw a wrong page."""
    script = "n=$(grep -c tick /run/memcheck); until [ $(grep -c tick /run/memcheck) -gt $n ]; do sleep 0.1; done"
    await guests.sh(name, script)
    assert "BAD" not in await guests.sh(name, "cat /run/memcheck")


async def test_a_clone_runs_with_the_memory_of_its_source(host: Host, guests: Guests, source: str) -> None:
    await guests.sh(source, "echo before-the-clone > /run/token")
    (result,) = await guests.clone(source, "kid")
    assert await guests.sh("kid", "cat /run/token") == "before-the-clone"
    await memory_is_right(guests, "kid")
    await memory_is_right(guests, source)
    assert (await host.show_vm(source)).state is VmState.RUNNING
    timings = result.timings_ms
    assert 0 < timings.stun < timings.total
    assert timings.fork > 0
    assert timings.load > 0


async def test_disks_diverge_and_survive(guests: Guests, source: str) -> None:
    await guests.sh(source, "echo one > /data/both; sync")
    await guests.clone(source, "diverge")
    await guests.sh("diverge", "echo clone > /data/who; sync")
    await guests.sh(source, "echo source > /data/who; sync")
    assert await guests.sh("diverge", "cat /data/both /data/who") == "one\nclone"
    assert await guests.sh(source, "cat /data/both /data/who") == "one\nsource"
    # What the page cache says must be what the disk says.
    for name, word in (("diverge", "clone"), (source, "source")):
        await guests.sh(name, "echo 3 > /proc/sys/vm/drop_caches")
        assert await guests.sh(name, "cat /data/who") == word


async def test_several_clones_are_of_one_instant_and_one_stun(host: Host, guests: Guests, source: str) -> None:
    before = len((await host.show_vm(source)).stuns)
    names = [f"burst{n}" for n in range(3)]
    await guests.clone(source, *names)
    view = await host.show_vm(source)
    assert len(view.stuns) == min(before + 1, 8)
    for name in names:
        await memory_is_right(guests, name)
    macs = [nic.mac for name in [source, *names] for nic in (await host.show_vm(name)).nics]
    uuids = {(await host.show_vm(name)).uuid for name in [source, *names]}
    assert len(set(macs)) == len(macs)
    assert len(uuids) == 4


async def test_a_clone_of_a_clone_outlives_its_ancestors(host: Host, guests: Guests, source: str) -> None:
    await guests.clone(source, "parent")
    await guests.clone("parent", "grandchild")
    await guests.remove("parent")
    await memory_is_right(guests, "grandchild")
    await guests.clone("grandchild", "great")
    await guests.remove("grandchild")
    await memory_is_right(guests, "great")
    assert await guests.sh("great", "cat /data/both 2>/dev/null || echo none")


async def test_the_chain_of_a_source_that_writes_stays_bounded(host: Host, guests: Guests, source: str) -> None:
    for n in range(10):
        await guests.sh(source, f"echo {n} > /data/count; sync")
        await guests.clone(source, f"chain{n}")
        await guests.remove(f"chain{n}")
    deepest = max(len(disk.chain) for disk in (await host.show_vm(source)).disks)
    assert deepest <= host.settings.chain_bound
    await guests.sh(source, "echo 3 > /proc/sys/vm/drop_caches")
    assert await guests.sh(source, "cat /data/count") == "9"
    await memory_is_right(guests, source)


async def test_a_source_that_does_not_write_keeps_its_chain(host: Host, guests: Guests) -> None:
    await guests.boot("idle", disk_mib=64)
    await guests.clone("idle", "idle0")
    depth = len((await host.show_vm("idle")).disks[0].chain)
    for n in range(1, 4):
        await guests.clone("idle", f"idle{n}")
    assert len((await host.show_vm("idle")).disks[0].chain) == depth


async def test_a_connection_of_the_source_survives_its_stun(host: Host, guests: Guests, source: str) -> None:
    await guests.sh(source, "(nc -l -p 7000 > /run/received; echo closed >> /run/received) >/dev/null 2>&1 &")
    await guests.sh(source, "until netstat -lnt 2>/dev/null | grep -q :7000; do :; done")
    connection = await host.open_stream("tcp", source, 7000)
    with connection:
        connection.sendall(b"before\n")
        await guests.sh(source, "until grep -q before /run/received; do :; done")
        await guests.clone(source, "bystander")
        connection.sendall(b"after\n")
        connection.shutdown(socket.SHUT_WR)
        await guests.sh(source, "until grep -q closed /run/received; do :; done")
    assert await guests.sh(source, "cat /run/received") == "before\nafter\nclosed"


async def test_links_are_down_unless_asked_for(host: Host, guests: Guests, source: str) -> None:
    await guests.clone(source, "silent")
    assert [nic.connected for nic in (await host.show_vm("silent")).nics] == [False]


async def test_configuration_and_names_are_the_clones_own(host: Host, guests: Guests, source: str) -> None:
    await guests.clone(
        source, "own", extra_config={"guestinfo.role": "worker"}, nics=(NicChange(id="net0", mac="52:54:00:aa:bb:cc"),)
    )
    assert await guests.sh("own", "vmware-rpctool 'info-get guestinfo.Role'") == "worker"
    assert (await host.show_vm("own")).nics[0].mac == "52:54:00:aa:bb:cc"
    assert await guests.sh(source, "vmware-rpctool 'info-get guestinfo.role' 2>&1; echo $?", check=False) == (
        "No value found\n1"
    )


async def test_a_dry_run_changes_nothing(host: Host, guests: Guests, source: str) -> None:
    before = (await host.list_vms(), sorted(host.settings.state_dir.rglob("*.qcow2")))
    forecast = await host.forecast_clone(source, CloneVm(names=("never",)))
    assert forecast.workflow == "live"
    assert forecast.forecast_stun_ms is not None
    after = (await host.list_vms(), sorted(host.settings.state_dir.rglob("*.qcow2")))
    assert [vm.name for vm in before[0]] == [vm.name for vm in after[0]]
    assert before[1] == after[1]


async def test_what_users_get_wrong_is_told_before_anything_changes(host: Host, guests: Guests, source: str) -> None:
    with pytest.raises(NotFoundError, match="sourcf"):
        await host.clone_vm("sourcf", CloneVm(names=("x",)))
    with pytest.raises(ConflictError, match="source"):
        await host.clone_vm(source, CloneVm(names=("source",)))
    with pytest.raises(UsageError, match="twice"):
        await host.clone_vm(source, CloneVm(names=("a", "a")))
    with pytest.raises(NotFoundError, match="net7"):
        await host.clone_vm(source, CloneVm(names=("x",), nics=(NicChange(id="net7"),)))
    with pytest.raises(StunTooLongError, match="stun"):
        await host.clone_vm(source, CloneVm(names=("x",), max_stun_ms=0.5))
    await guests.boot("off")
    await finish(host, await host.stop_vm("off", StopVm(hard=True)))
    with pytest.raises(StateError, match="off"):
        await host.clone_vm("off", CloneVm(names=("x",)))
    assert "x" not in {vm.name for vm in await host.list_vms()}


async def test_clones_asked_for_at_the_same_time_take_turns(host: Host, guests: Guests, source: str) -> None:
    await asyncio.gather(guests.clone(source, "turn1"), guests.clone(source, "turn2"))
    await memory_is_right(guests, "turn1")
    await memory_is_right(guests, "turn2")
