"""Clones in fences: real guests with the same MAC and IP address at once, each reached, and all gone in the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ramet.errors import ConflictError, StateError, UsageError
from ramet.host.service import Host
from ramet.host.settings import Settings
from ramet.model.identity import IdentityState
from ramet.model.requests import CloneVm, CreateNetwork, NicChange, NicRequest
from ramet.network.namespace import namespace_name
from tests.guest.conftest import Guests
from tests.guest.machine_kit import furnish, state_folder
from tests.guest.test_machine_nics import addressed

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def said_by(host: Host, guests: Guests, name: str) -> str:
    """What the guest says on a port of its, as another program would hear it: its hostname."""
    await guests.sh(
        name, "(hostname | nc -l -p 5001) > /dev/null 2>&1 &\nuntil netstat -ltn | grep -q :5001; do :; done"
    )
    with await host.open_stream("tcp", name, 5001) as stream:
        stream.setblocking(False)
        return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(stream, 100), 20)).decode().strip()


def fences(state_dir: Path) -> list[str]:
    return sorted(path.name for path in Path("/run/netns").glob(f"{namespace_name(state_dir)}-*"))


async def test_clones_keep_mac_and_address_in_fences(host: Host) -> None:
    if "default" not in {network.name for network in await host.list_networks()}:
        pytest.skip("port groups need privileges that are missing here")
    with state_folder() as path:
        settings = await furnish(host, path)
        try:
            await keep_mac_and_address(settings, path)
        finally:
            async with Host.open(settings) as second:
                await second.stop_all_vms()


async def keep_mac_and_address(settings: Settings, path: Path) -> None:
    async with Host.open(settings) as second:
        guests = Guests(second)
        await second.create_network(CreateNetwork(name="lab", cidr="10.77.9.0/24", dhcp=True))
        await second.create_network(CreateNetwork(name="copies", cidr="10.77.10.0/24", dhcp=True, fenced=True))
        await guests.boot("tier", memory_mib=128, nics=(NicRequest(network="lab"),))
        [own] = await addressed(second, "tier", 1)
        into = NicChange(id="net0", network="copies")
        await guests.clone("tier", "copy-1", "copy-2", nics=(into,), bare=False)
        known = {own.addresses[0]}
        for name in ("copy-1", "copy-2"):
            [nic] = await addressed(second, name, 1)
            assert (nic.mac, nic.network) == (own.mac, "copies")
            assert nic.addresses[0].startswith("10.77.10.")
            known.add(nic.addresses[0])
            inside = await guests.sh(name, "cat /sys/class/net/eth0/address; ip -4 addr show dev eth0")
            assert own.mac in inside
            assert own.addresses[0] in inside
            assert (await second.show_vm(name)).identity.state is IdentityState.ACKNOWLEDGED
            assert await said_by(second, guests, name) == name
        assert len(known) == 3
        assert len(fences(path)) == 2
        assert (await addressed(second, "tier", 1))[0] == own
        # One fence for two machines is for two machines that differ.
        shared = into.changed(fence="shared")
        await guests.clone("tier", "copy-3", nics=(shared,), bare=False)
        with pytest.raises(ConflictError, match="in this fence already"):
            await second.clone_vm("tier", CloneVm(names=("copy-4",), nics=(shared,)))
        with pytest.raises(UsageError, match="room for one clone"):
            await second.clone_vm("tier", CloneVm(names=("copy-4", "copy-5"), nics=(shared,)))
        with pytest.raises(UsageError, match="not fenced"):
            await second.clone_vm("tier", CloneVm(names=("x",), nics=(shared.changed(network="lab"),)))
        with pytest.raises(StateError, match="source's MAC"):
            await second.change_nic("copy-1", NicChange(id="net0", network="lab"))
        with pytest.raises(ConflictError, match="copy"):
            await second.remove_network("copies")
    # The daemon went, its guests did not; the next one reaches them where they were.
    async with Host.open(settings) as second:
        guests = Guests(second)
        (nic,) = (await second.show_vm("copy-1")).nics
        assert nic.addresses[0] in known
        assert await said_by(second, guests, "copy-1") == "copy-1"
        before = fences(path)
        await guests.remove("copy-1")
        assert len(fences(path)) == len(before) - 1
        assert await said_by(second, guests, "tier")
        for vm in await second.list_vms():
            if vm.name != "tier":
                await guests.remove(vm.name)
        assert fences(path) == []
        await second.remove_network("copies")
        assert (await addressed(second, "tier", 1))[0] == own
        await guests.remove("tier")
