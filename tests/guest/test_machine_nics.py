"""NICs of a real VM: three models, addresses, a clone's own MACs, and cables that are moved while the guest runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ramet.errors import ConflictError, NotFoundError, RametError, StateError, UnsupportedError, UsageError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.machine import NicModel
from ramet.model.requests import CloneVm, CreateNetwork, NicChange, NicRequest, StopVm
from ramet.model.views import NicView
from tests.guest.conftest import BOOT_TIMEOUT_S, Guests
from tests.guest.machine_kit import WAIT_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODELS = (NicModel.VIRTIO, NicModel.E1000E, NicModel.VMXNET3)

# The PCI device under a NIC: of virtio-net it is the parent of the device that sysfs names.
RELOAD = """
cd /sys/bus/pci/drivers
for nic in "$@"; do
    device=$(readlink -f /sys/class/net/$nic/device)
    case ${device##*/} in virtio*) device=${device%/*} ;; esac
    driver=$(readlink -f $device/driver)
    echo ${device##*/} > $driver/unbind
    echo ${device##*/} > $driver/bind
    until ls -d $device/net $device/virtio*/net 2>/dev/null | grep -q .; do sleep 0.05; done
done
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def triad(host: Host) -> AsyncIterator[str]:
    """A guest with a NIC of each model, all on the default port group."""
    guests = Guests(host)
    if "default" not in {network.name for network in await host.list_networks()}:
        pytest.skip("port groups need privileges that are missing here")
    await guests.boot("triad", memory_mib=160, nics=tuple(NicRequest(model=model) for model in MODELS))
    yield "triad"
    await guests.remove_all()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def other(host: Host) -> AsyncIterator[str]:
    await host.create_network(CreateNetwork(name="other", cidr="10.77.8.0/24", dhcp=True))
    yield "other"
    with contextlib.suppress(NotFoundError):
        await host.remove_network("other")


async def addressed(host: Host, name: str, count: int) -> tuple[NicView, ...]:
    """The NICs, once that many of them have addresses."""
    async with asyncio.timeout(WAIT_S):
        while True:
            nics = (await host.show_vm(name)).nics
            if sum(1 for nic in nics if nic.addresses) >= count:
                return nics
            await asyncio.sleep(0.1)


async def inside(guests: Guests, name: str) -> dict[str, str]:
    """MAC -> interface, as the guest sees it."""
    lines = await guests.sh(name, "for n in /sys/class/net/eth*; do echo $(cat $n/address) ${n##*/}; done")
    return dict(line.split() for line in lines.splitlines())


async def carrier(guests: Guests, name: str, interface: str, up: bool) -> None:
    await guests.sh(name, f"until [ $(cat /sys/class/net/{interface}/carrier) = {int(up)} ]; do sleep 0.05; done")


async def test_every_model_gets_an_address_and_is_reached(host: Host, guests: Guests, triad: str) -> None:
    nics = await addressed(host, triad, 3)
    assert [nic.model for nic in nics] == [model.value for model in MODELS]
    interfaces = await inside(guests, triad)
    for nic in nics:
        seen = await guests.sh(triad, f"ip -4 -o addr show dev {interfaces[nic.mac]}")
        assert f" {nic.addresses[0]}/" in seen
    assert await host.address_of(triad) == nics[0].addresses[0]
    await guests.sh(triad, "(echo hello from the guest | nc -l -p 5000 >/dev/null 2>&1 &)")
    await guests.sh(triad, "until netstat -lnt | grep -q :5000; do sleep 0.05; done")
    with await host.open_stream("tcp", triad, 5000) as stream:
        stream.setblocking(False)
        assert (
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(stream, 100), 20)
        ) == b"hello from the guest\n"
    with pytest.raises((RametError, OSError)):
        await host.open_stream("tcp", triad, 5001)


async def test_a_connected_clone_has_macs_and_after_a_reload_addresses_of_its_own(
    host: Host, guests: Guests, triad: str
) -> None:
    sources = await addressed(host, triad, 3)
    (result,) = await guests.clone(triad, "echo", connect=True)
    assert any("twice" in warning for warning in result.warnings)
    view = await host.show_vm("echo")
    assert all(nic.connected for nic in view.nics)
    assert not {nic.mac for nic in view.nics} & {nic.mac for nic in sources}
    assert set(await inside(guests, "echo")) == {nic.mac for nic in sources}  # until the drivers are loaded again
    await guests.sh("echo", f"set -- eth0 eth1 eth2\n{RELOAD}")
    assert set(await inside(guests, "echo")) == {nic.mac for nic in view.nics}
    await guests.sh("echo", "for nic in eth0 eth1 eth2; do /etc/micro/nic $nic; done")
    nics = await addressed(host, "echo", 3)
    assert not {nic.addresses[0] for nic in nics} & {nic.addresses[0] for nic in sources}
    assert set(await inside(guests, triad)) == {nic.mac for nic in sources}
    assert await host.address_of("echo") != await host.address_of(triad)


HUSH = """
nic=eth0
/etc/micro/nic $nic stop
for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
    rm -f /run/dhcp.$nic.pid
    /etc/micro/nic $nic first &
    /etc/micro/nic $nic stop
    wait $!
done
cat /run/dhcp.$nic.pid
ps | grep "[n]ic $nic\\|[u]dhcpc -i $nic" || :
"""


async def test_a_nic_that_is_told_to_be_silent_is_while_it_appears(guests: Guests, triad: str) -> None:
    await guests.clone(triad, "hush")
    assert await guests.sh("hush", HUSH) == "-"


async def test_cables_are_moved_pulled_and_plugged_while_the_guest_runs(
    host: Host, guests: Guests, triad: str, other: str
) -> None:
    nics = await addressed(host, triad, 3)
    names = [(await inside(guests, triad))[nic.mac] for nic in nics]
    await host.change_nic(triad, NicChange(id="net1", network=other))
    await guests.sh(triad, f"/etc/micro/nic {names[1]}")
    await guests.sh(triad, f"until ip -4 addr show dev {names[1]} | grep -q 10.77.8.; do sleep 0.1; done")
    assert (await addressed(host, triad, 3))[1].addresses[0].startswith("10.77.8.")
    with pytest.raises(ConflictError, match="triad"):
        await host.remove_network(other)
    # QEMU 7.2 interrupts a guest for the link of an e1000e only once, so it may see the change at a reload only.
    told = [name for nic, name in zip(nics, names, strict=True) if nic.model != NicModel.E1000E]
    for nic in nics:
        await host.change_nic(triad, NicChange(id=nic.id, connected=False))
    for name in told:
        await carrier(guests, triad, name, False)
    with pytest.raises(NotFoundError, match="No address"):
        await host.address_of(triad)
    await guests.clone(triad, "unplugged", connect=True)
    await guests.sh("unplugged", f"set -- {names[1]}\n{RELOAD}\nip link set {names[1]} up")
    for name in names:
        await carrier(guests, "unplugged", name, False)
    for nic in nics:
        await host.change_nic(triad, NicChange(id=nic.id, connected=True, network="default"))
    for name in told:
        await carrier(guests, triad, name, True)
    with pytest.raises(NotFoundError, match="nowhere"):
        await host.change_nic(triad, NicChange(id="net0", network="nowhere"))
    with pytest.raises(UnsupportedError, match="user-mode"):
        await host.change_nic(triad, NicChange(id="net0", network="user"))
    with pytest.raises(StateError, match="Stop it first"):
        await host.change_nic(triad, NicChange(id="net0", mac="52:54:00:01:02:03"))
    with pytest.raises(NotFoundError, match="It has: net0, net1, net2"):
        await host.change_nic(triad, NicChange(id="net5", connected=False))
    # A frozen guest's cable stays as it is; its clones' can be changed.
    await guests.clone(triad, "still")
    await finish(host, await host.freeze_vm("still"))
    with pytest.raises(StateError, match="Thaw it first"):
        await host.change_nic("still", NicChange(id="net0", connected=True))
    await guests.clone("still", "stirs", nics=(NicChange(id="net0", connected=True, network=other),))
    net0 = (await host.show_vm("stirs")).nics[0]
    assert (net0.network, net0.connected) == (other, True)
    await carrier(guests, "stirs", names[0], True)
    await guests.sh("stirs", f"set -- {names[0]}\n{RELOAD}\n/etc/micro/nic {names[0]}")
    assert (await addressed(host, "stirs", 1))[0].addresses[0].startswith("10.77.8.")


async def test_nics_come_and_go_while_the_guest_runs(host: Host, guests: Guests, triad: str) -> None:
    view = await host.add_nic(triad, NicRequest(model=NicModel.E1000E))
    added = view.nics[3]
    assert added.id == "net3"
    await guests.sh(triad, f"until grep -q {added.mac} /sys/class/net/eth*/address; do sleep 0.05; done")
    assert (await addressed(host, triad, 4))[3].addresses
    with pytest.raises(UnsupportedError, match="first 4"):
        await host.add_nic(triad, NicRequest())
    with pytest.raises(NotFoundError, match="nowhere"):
        await host.add_nic(triad, NicRequest(network="nowhere"))
    # What was plugged in is in the clone, too; and what is pulled out is not.
    await guests.clone(triad, "four")
    assert len(await inside(guests, "four")) == 4
    await finish(host, await host.freeze_vm("four"))
    with pytest.raises(StateError, match="frozen"):
        await host.remove_nic("four", "net3")
    await host.remove_nic(triad, "net3")
    await host.remove_nic(triad, "net1")
    assert len(await inside(guests, triad)) == 2
    await guests.clone(triad, "two")
    nics = (await host.show_vm("two")).nics
    assert [nic.id for nic in nics] == ["net0", "net2"]
    interfaces = sorted((await inside(guests, "two")).values())
    await guests.sh("two", f"set -- {' '.join(interfaces)}\n{RELOAD}")
    assert set(await inside(guests, "two")) == {nic.mac for nic in nics}
    # The free slot is used again, and all of it survives a power cycle.
    await host.add_nic(triad, NicRequest(model=NicModel.VMXNET3))
    await finish(host, await host.stop_vm(triad, StopVm(hard=True)))
    for _ in range(5):
        await host.add_nic(triad, NicRequest(network=None))
    with pytest.raises(UsageError, match="at most 8 NICs"):
        await host.add_nic(triad, NicRequest(network=None))
    await host.change_nic(triad, NicChange(id="net0", mac="52:54:00:0a:0b:0c"))
    await finish(host, await host.start_vm(triad))
    await host.wait_agent(triad, BOOT_TIMEOUT_S)
    macs = {nic.mac for nic in (await host.show_vm(triad)).nics}
    assert len(macs) == 8
    assert "52:54:00:0a:0b:0c" in macs
    assert set(await inside(guests, triad)) == macs
    await guests.clone(triad, "eight")
    nics = (await host.show_vm("eight")).nics
    interfaces = sorted((await inside(guests, "eight")).values())
    await guests.sh("eight", f"set -- {' '.join(interfaces)}\n{RELOAD}")
    assert set(await inside(guests, "eight")) == {nic.mac for nic in nics}


async def test_user_mode_networking_boots_and_clones(host: Host, guests: Guests) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        ask = f"nc -w 20 10.0.2.2 {server.getsockname()[1]} < /dev/null"
        nics = (NicRequest(network="user"), NicRequest(network="user", model=NicModel.E1000E))
        await guests.boot("plain", memory_mib=128, nics=nics)
        await guests.sh("plain", "until ip -4 addr show dev eth0 | grep -q 10.0.2.; do sleep 0.1; done")
        await guests.clone("plain", "plain-clone", connect=True)
        await guests.clone("plain", "mute")
        view = await host.show_vm("plain-clone")
        await guests.sh("plain-clone", f"set -- eth0 eth1\n{RELOAD}\n/etc/micro/nic eth0")
        assert set(await inside(guests, "plain-clone")) == {nic.mac for nic in view.nics}
        for name in ("plain", "plain-clone"):
            await guests.sh(name, "until ip -4 addr show dev eth0 | grep -q 10.0.2.; do sleep 0.1; done")
            answer = asyncio.create_task(guests.sh(name, ask))
            connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(server), 30)
            with connection:
                connection.sendall(f"for {name}\n".encode())
            assert await answer == f"for {name}"
        await carrier(guests, "mute", "eth0", False)
    with pytest.raises(UnsupportedError, match="user-mode"):
        await host.clone_vm("plain", CloneVm(names=("x",), nics=(NicChange(id="net0", network="default"),)))
