"""kill -9 of the daemon while it builds fences and uplinks: the next one makes them whole, and leaves nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from ramet.model.host import EgressRule, Network
from ramet.network import services
from tests.unit.network.network_kit import Guest, Lab, Room, needs_privilege, traces
from tests.unit.network.test_network_egress import Ports, reaches_port
from tests.unit.network.test_network_fences import COPIES, LAB, MAC, fenced_nic, reached_at
from tests.unit.network.test_network_uplink import WIRE, host_with

pytestmark = needs_privilege

DAEMON = """
import asyncio, pathlib, sys
from ramet.model.host import Network
from ramet.model.machine import Nic
from ramet.network import fence, ledger, manager, portgroups, services, uplink
from ramet.network.namespace import Namespace, NamespaceThread

state, outside, step, *ports = sys.argv[1:]
networks, nic = [Network.model_validate_json(line) for line in sys.stdin.readline().split("\\t")], sys.stdin.readline()

def stop(*_, **__):
    print("ready", flush=True)
    import time
    time.sleep(60)

STEPS = {
    "nothing": None, "namespace": (fence, "connect"), "cable": (fence, "furnish"), "furnished": (fence, "hand_over"),
    "moved": (fence, "plug"), "rules": (portgroups, "apply_rules"), "port": (uplink, "plug"),
}

async def main():
    far = NamespaceThread(Namespace(outside))
    await far.start()
    daemon = manager.Networks(pathlib.Path(state), outside=far)
    await daemon.start()
    if step == "port":
        setattr(uplink, "plug", stop)
    for network in networks:
        await daemon.ensure(network)
    if STEPS[step]:
        setattr(*STEPS[step], stop)
    for port in ports:
        await daemon.attach(port, "copies", Nic.model_validate_json(nic))
    if step == "rules":
        await daemon.ensure(networks[0].changed(egress_default="deny"))
    stop()
asyncio.run(main())
"""


async def daemon_killed_at(step: str, lab: Lab, host: Room, networks: list[Network], guests: list[Guest]) -> None:
    """A daemon of the lab's state folder, killed once it has come to a step."""
    ports = [guest.port for guest in guests]
    argv = [sys.executable, "-c", DAEMON, str(lab.state_dir), host.namespace.name, step, *ports]
    child = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\t".join(network.model_dump_json() for network in networks).encode() + b"\n")
    child.stdin.write(fenced_nic().model_dump_json().encode() + b"\n")
    async with asyncio.timeout(30):
        assert await child.stdout.readline() == b"ready\n"
    child.kill()
    await child.wait()


@pytest.mark.parametrize("step", ["nothing", "namespace", "cable", "furnished", "moved", "rules"])
async def test_fences_after_a_kill(tmp_path: Path, step: str) -> None:
    async with Room() as host, Lab(tmp_path, outside=host) as lab:
        networks = [LAB, COPIES]
        guests = [await lab.guest(address="10.99.0.50/24") for _ in range(2)]
        for guest in guests:
            await guest.set_mac(MAC)
        await daemon_killed_at(step, lab, host, networks, guests)
        await lab.restart()
        await lab.networks.restore(networks)
        assert lab.networks.warnings == []
        for guest in guests:
            await lab.networks.attach(guest.port, "copies", fenced_nic())
            assert await guest.reaches("10.99.0.1")
        await lab.networks.addresses()
        assert sorted(str(reached_at(lab, guest)) for guest in guests) == ["10.98.0.2", "10.98.0.3"]
        # The first VM is gone, and its removal was not seen: recovery ends its fence.
        alive = {guests[1].port}
        await lab.networks.collect(alive, {"lab", "copies"}, alive)
        assert len(services.find_running("dnsmasq", f"--conf-file={tmp_path}/network/fence-")) == 1
        assert await guests[1].reaches("10.99.0.1")
        await lab.networks.collect(alive, {"lab"}, alive)
        assert traces(f"{lab.networks.namespace.name}-", f"{tmp_path}/network/fence-") == []


async def test_the_host_went_down_and_the_records_stayed(tmp_path: Path) -> None:
    """No namespace is left of the fences; the VM, started again, has the address that it had."""
    async with Room() as host, Lab(tmp_path, outside=host) as lab:
        guest = await lab.guest(address="10.99.0.50/24")
        await guest.set_mac(MAC)
        await daemon_killed_at("nothing", lab, host, [LAB, COPIES], [guest])
        await lab.networks.close(remove_namespace=True)
        lab.networks = await lab.start()
        await lab.networks.restore([LAB, COPIES])
        assert traces(f"{lab.networks.namespace.name}-") == []
        again = Guest(lab.networks, 7)
        again.port = guest.port
        async with again:
            await again.set_mac(MAC)
            await again.set_address("10.99.0.50/24")
            await again.plug("copies", fenced_nic())
            assert await again.reaches("10.99.0.1")
            await lab.networks.addresses()
            assert reached_at(lab, again) == "10.98.0.2"


@pytest.mark.parametrize("step", ["port", "nothing"])
async def test_uplinks_and_rules_after_a_kill(tmp_path: Path, step: str) -> None:
    async with Room() as host, Room() as world:
        await host_with(world, host)
        async with Lab(tmp_path, outside=host) as lab, Ports(world, 80, 443):
            https = EgressRule(protocol="tcp", ports=(443, 443))
            strict = WIRE.changed(egress_default="deny", egress=(https,))
            await daemon_killed_at(step, lab, host, [strict], [])
            await lab.restart()
            await lab.networks.restore([LAB, strict, COPIES])
            assert lab.networks.warnings == []
            guest = await lab.guest("wire", "203.0.113.9/24")
            assert await reaches_port(guest, "203.0.113.1", 443)
            assert not await reaches_port(guest, "203.0.113.1", 80)
            await lab.networks.collect(set(), (), ())
            assert not await guest.reaches("203.0.113.1")
            assert len((await host.run("ip", "-br", "link")).splitlines()) == 2  # lo and eth1: nothing of ours
