"""Clones that become machines of their own, before they have a network."""

from __future__ import annotations

import asyncio

import pytest

from ramet.clone import seedling
from ramet.clone.seedling import Seedling
from ramet.errors import CapacityError, ConflictError, GuestError, StateError, UsageError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.machine.live import LiveMachine
from ramet.model.identity import IdentityState, Part
from ramet.model.machine import Vm
from ramet.model.requests import AddDisk, ChangeVm, CloneVm, NicChange, NicRequest
from ramet.model.units import MIB
from ramet.model.views import CloneResult
from tests.guest.conftest import Guests
from tests.guest.machine_kit import wait_event

pytestmark = pytest.mark.asyncio(loop_scope="session")

ADDRESS = "ip -4 -o addr show eth0 | sed 's/.*inet //; s/ .*//'"


async def clone(host: Host, guests: Guests, source: str, request: CloneVm) -> list[CloneResult]:
    task = await host.clone_vm(source, request)
    names = (
        [request.name.replace("{n}", str(n)) for n in range(1, request.count + 1)] if request.name else request.names
    )
    guests._made.extend(names)
    return [CloneResult.model_validate(one) for one in await finish(host, task)]


async def test_a_clone_is_a_machine_of_its_own(host: Host, guests: Guests, source: str) -> None:
    (made,) = await clone(host, guests, source, CloneVm(names=("Own.1",)))
    assert (made.identity, made.problem, made.hostname) == (IdentityState.ACKNOWLEDGED, None, "own-1")
    assert made.timings_ms.total < made.timings_ms.identity <= made.timings_ms.network
    view = await host.show_vm("Own.1")
    assert await guests.sh("Own.1", "hostname") == "own-1"
    assert await guests.sh("Own.1", "cat /sys/class/net/eth0/address") == view.nics[0].mac
    assert (await guests.sh("Own.1", ADDRESS)).split("/")[0] == made.addresses["net0"] == view.nics[0].addresses[0]
    theirs = {name: await guests.sh(name, "cat /run/ramet/generation") for name in (source, "Own.1")}
    assert len(set(theirs.values())) == 2
    plan = view.identity.plan
    assert plan is not None
    assert plan.generation in theirs["Own.1"]
    assert await guests.sh(source, "hostname") == "micro"


async def test_many_come_from_one_instant_and_differ(host: Host, guests: Guests, source: str) -> None:
    before = (await host.show_vm(source)).stuns[-1].at if (await host.show_vm(source)).stuns else 0.0
    made = await clone(host, guests, source, CloneVm(name="m-{n}", count=4, customize={"hostname": "host{n}"}))
    assert [one.name for one in made] == ["m-1", "m-2", "m-3", "m-4"]
    stuns = [stun for stun in (await host.show_vm(source)).stuns if stun.at > before]
    assert len(stuns) == 1
    assert len({one.timings_ms.stun for one in made}) == 1
    assert [one.hostname for one in made] == ["host1", "host2", "host3", "host4"]
    assert len({one.addresses["net0"] for one in made}) == 4
    ticks = {await guests.sh(one.name, "grep -c BAD /run/memcheck || true") for one in made}
    assert ticks == {"0"}


async def test_values_can_be_set(host: Host, guests: Guests, source: str) -> None:
    network = next(group for group in await host.list_networks() if group.name == "default")
    assert network.cidr is not None
    base = network.cidr.rsplit(".", 2)[0]
    values = {
        "address": f"{base}.200.{{n}}/16",
        "gateway": f"{base}.0.1",
        "dns": f"{base}.0.1",
        "domain": "example.org",
    }
    (made,) = await clone(host, guests, source, CloneVm(name="set{n}", first=1, customize=values))
    assert made.addresses["net0"] == f"{base}.200.1"
    assert await guests.sh("set1", ADDRESS) == f"{base}.200.1/16"
    assert f"{base}.0.1" in await guests.sh("set1", "cat /etc/resolv.conf")


async def test_parts_can_be_left_out(host: Host, guests: Guests, source: str) -> None:
    request = CloneVm(names=("partly",), without=(Part.HOSTNAME, Part.MACHINE_ID))
    (made,) = await clone(host, guests, source, request)
    assert made.identity is IdentityState.ACKNOWLEDGED
    assert await guests.sh("partly", "hostname") == "micro"


async def test_who_does_not_acknowledge_stays_off_the_network(host: Host, guests: Guests, source: str) -> None:
    await guests.sh(
        source, "mkdir -p /etc/ramet/clone.d; printf '#!/bin/sh\\necho no luck >&2; exit 3\\n' > /etc/ramet/clone.d/x"
    )
    await guests.sh(source, "chmod 755 /etc/ramet/clone.d/x")
    try:
        (made,) = await clone(host, guests, source, CloneVm(names=("closed",)))
    finally:
        await guests.sh(source, "rm /etc/ramet/clone.d/x")
    assert made.ok
    assert made.identity is IdentityState.FAILED
    assert made.problem is not None
    assert "x" in made.problem
    assert await guests.sh("closed", "cat /sys/class/net/eth0/carrier") == "0"
    view = await host.show_vm("closed")
    assert view.identity.holds_links_down
    assert not view.nics[0].addresses
    with pytest.raises(StateError, match="no identity"):
        await host.change_nic("closed", NicChange(id="net0", connected=True))
    await guests.sh("closed", "rm /etc/ramet/clone.d/x")
    await finish(host, await host.identify_vm("closed"))
    assert (await host.show_vm("closed")).identity.state is IdentityState.ACKNOWLEDGED
    assert await guests.sh("closed", "cat /sys/class/net/eth0/carrier") == "1"


async def test_one_can_be_taken_as_it_is(host: Host, guests: Guests, source: str) -> None:
    await guests.sh(source, "printf '#!/bin/sh\\nexit 3\\n' > /etc/ramet/clone.d/x; chmod 755 /etc/ramet/clone.d/x")
    try:
        await clone(host, guests, source, CloneVm(names=("asis",)))
    finally:
        await guests.sh(source, "rm /etc/ramet/clone.d/x")
    await finish(host, await host.identify_vm("asis", bare=True))
    assert await guests.sh("asis", "cat /sys/class/net/eth0/carrier") == "1"
    with pytest.raises(StateError):
        await host.identify_vm("asis", bare=True)


async def test_a_bare_clone_is_an_exact_copy_with_its_links_down(host: Host, guests: Guests, source: str) -> None:
    (made,) = await clone(host, guests, source, CloneVm(names=("exact",), bare=True))
    assert made.identity is IdentityState.BARE
    assert await guests.sh("exact", "hostname; cat /sys/class/net/eth0/carrier") == "micro\n0"
    with pytest.raises(StateError, match="not cloned with an identity"):
        await host.identify_vm("exact")


async def test_freeze_hooks_run_around_the_stun_in_source_and_clone(host: Host, guests: Guests, source: str) -> None:
    hook = "#!/bin/sh\\necho $1 >> /run/hooked\\n"
    await guests.sh(source, f"mkdir -p /etc/ramet/freeze.d; printf '{hook}' > /etc/ramet/freeze.d/h; rm -f /run/hooked")
    await guests.sh(source, "chmod 755 /etc/ramet/freeze.d/h")
    try:
        await clone(host, guests, source, CloneVm(names=("hooked",)))
        assert await guests.sh(source, "cat /run/hooked") == "freeze\nthaw"
        assert await guests.sh("hooked", "cat /run/hooked") == "freeze\nthaw"
        await clone(host, guests, source, CloneVm(names=("hooked2",), bare=True))
        assert await guests.sh("hooked2", "cat /run/hooked") == "freeze\nthaw\nfreeze\nthaw"
        await clone(host, guests, source, CloneVm(names=("unhooked",), freeze_hooks=False))
        assert (await guests.sh(source, "wc -l < /run/hooked")).strip() == "4"
    finally:
        await guests.sh(source, "rm -f /etc/ramet/freeze.d/h /run/hooked")


async def test_a_freeze_hook_that_fails_makes_no_clone(host: Host, guests: Guests, source: str) -> None:
    hook = "#!/bin/sh\\necho $1 >> /run/hooked\\n[ $1 = thaw ]\\n"
    await guests.sh(source, f"printf '{hook}' > /etc/ramet/freeze.d/h; chmod 755 /etc/ramet/freeze.d/h")
    stuns = len((await host.show_vm(source)).stuns)
    last = (await host.show_vm(source)).stuns[-1:]
    try:
        with pytest.raises(GuestError, match="h ended with status 1"):
            await clone(host, guests, source, CloneVm(names=("never",)))
        assert await guests.sh(source, "cat /run/hooked") == "freeze\nthaw"
    finally:
        await guests.sh(source, "rm -f /etc/ramet/freeze.d/h /run/hooked")
    assert (len((await host.show_vm(source)).stuns), (await host.show_vm(source)).stuns[-1:]) == (stuns, last)
    assert "never" not in {vm.name for vm in await host.list_vms()}


async def test_quiesced_file_systems_are_thawed_on_both_sides(host: Host, guests: Guests, source: str) -> None:
    for bare in (False, True):
        name = f"quiet-{bare}"
        await clone(host, guests, source, CloneVm(names=(name,), quiesce=True, bare=bare))
        for guest in (source, name):
            await guests.sh(guest, "echo alive > /data/alive && sync && cat /data/alive")


async def test_a_key_asks_once(host: Host, guests: Guests, source: str) -> None:
    request = CloneVm(names=("once",), key="order-7", bare=True)
    (first,) = await clone(host, guests, source, request)
    again = await host.clone_vm(source, request)
    assert again.id == first.task
    with pytest.raises(ConflictError, match="key"):
        await host.clone_vm(source, CloneVm(names=("twice",), key="order-7", bare=True))


async def test_time_to_live_ends_a_clone(host: Host, guests: Guests, source: str) -> None:
    seq = host.events.last_seq
    await clone(host, guests, source, CloneVm(names=("brief",), bare=True, ttl_s=3600))
    assert (await host.show_vm("brief")).expires_at is not None
    await host.change_vm("brief", ChangeVm(ttl_s=0))
    assert (await host.show_vm("brief")).expires_at is None
    await host.change_vm("brief", ChangeVm(ttl_s=0.5))
    await wait_event(host, "brief", lambda event: event.kind == "vm.removed", seq)
    assert "brief" not in {vm.name for vm in await host.list_vms()}


async def test_a_clone_can_be_reshaped(host: Host, guests: Guests, source: str) -> None:
    request = CloneVm(
        names=("shaped",),
        add_nics=(NicRequest(),),
        add_disks=(AddDisk(size_mib=64),),
        cpu_limit_percent=50,
        memory_target_mib=200,
    )
    (made,) = await clone(host, guests, source, request)
    assert not made.warnings
    view = await host.show_vm("shaped")
    assert [nic.id for nic in view.nics] == ["net0", "net1"]
    assert view.machine.cpu_limit_percent == 50
    assert await guests.sh("shaped", "cat /sys/block/vdb/size") == str(64 * 2048)
    macs = await guests.sh("shaped", "cat /sys/class/net/eth*/address")
    assert view.nics[1].mac in macs
    async with asyncio.timeout(30):
        while not view.balloon or view.balloon.actual_bytes > 216 * MIB:  # the guest gives it back page by page
            view = await host.show_vm("shaped")
    assert view.balloon.target_bytes == 200 * MIB


async def test_refusals_change_nothing(host: Host, source: str) -> None:
    for request in (
        CloneVm(name="x{m}", count=1),
        CloneVm(names=("x",), customize={"net9.address": "dhcp"}),
        CloneVm(name="x{n}", count=2, customize={"address": "10.0.0.5/24"}),
        CloneVm(names=("x",), memory_target_mib=99999),
    ):
        with pytest.raises(UsageError):
            await host.clone_vm(source, request)


async def test_a_cancelled_request_leaves_nothing(host: Host, guests: Guests, source: str) -> None:
    before = {vm.name for vm in await host.list_vms()}
    task = await host.clone_vm(source, CloneVm(name="gone-{n}", count=3))
    async with asyncio.timeout(60):
        while not (await host.tasks.wait(task.id, 10, since_version=task.version)).progress_percent:
            pass
    await host.tasks.cancel(task.id)
    done = await host.tasks.wait(task.id, 60)
    assert done.state.value == "cancelled"
    assert {vm.name for vm in await host.list_vms()} == before


async def test_one_that_fails_costs_no_other(
    host: Host, guests: Guests, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = seedling.prepare

    async def prepare(live: LiveMachine, record: Vm, parents: dict[str, str]) -> Seedling:
        if record.name == "part-2":
            raise CapacityError("The disk is full.", hint="Make room.")
        return await real(live, record, parents)

    monkeypatch.setattr("ramet.clone.growth.prepare", prepare)
    good, bad, other = await clone(host, guests, source, CloneVm(name="part-{n}", count=3))
    assert (good.ok, other.ok) == (True, True)
    assert good.identity is other.identity is IdentityState.ACKNOWLEDGED
    assert not bad.ok
    assert bad.error is not None
    assert (bad.error["message"], bad.error["hint"]) == ("The disk is full.", "Make room.")
    assert {vm.name for vm in await host.list_vms() if vm.name.startswith("part")} == {"part-1", "part-3"}
    assert await guests.sh(source, "tail -1 /run/memcheck | grep -c OK") == "1"


async def test_if_all_fail_the_request_fails(
    host: Host, guests: Guests, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(live: LiveMachine, record: Vm, parents: dict[str, str]) -> Seedling:
        raise CapacityError("The disk is full.")

    monkeypatch.setattr("ramet.clone.growth.prepare", prepare)
    with pytest.raises(CapacityError, match="full"):
        await clone(host, guests, source, CloneVm(name="none-{n}", count=2))
    assert not [vm for vm in await host.list_vms() if vm.name.startswith("none")]


async def test_an_address_of_somebody_elses_is_not_set_twice(host: Host, guests: Guests, source: str) -> None:
    (first,) = await clone(host, guests, source, CloneVm(names=("holder",)))
    values = {"address": f"{first.addresses['net0']}/22"}
    (second,) = await clone(host, guests, source, CloneVm(names=("thief",), customize=values))
    assert second.identity is IdentityState.FAILED
    assert second.problem is not None
    assert first.addresses["net0"] in second.problem
    assert await guests.sh("thief", "cat /sys/class/net/eth0/carrier") == "0"


async def test_a_key_finds_what_a_crash_left(host: Host, guests: Guests, source: str) -> None:
    """As when the task of the first time ended with its daemon, and its clones live on."""
    request = CloneVm(names=("kept-1", "kept-2"), key="order-8", bare=True)
    (first, second) = await clone(host, guests, source, request)
    lost = host.tasks._tasks.pop(first.task)
    assert lost.key == "order-8"
    await guests.remove("kept-2")
    (again, other) = await clone(host, guests, source, request)
    assert again.id == first.id
    assert other.id != second.id
    assert again.ok
    assert other.ok
