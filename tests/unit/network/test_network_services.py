"""What goes on without the daemon: dnsmasq, pasta, the namespace; and what a crash leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.errors import DeadlineError, ToolError, UnsupportedError
from ramet.model.host import Network
from ramet.network import privilege, services
from ramet.network.addresses import gateway_of
from tests.unit.network.network_kit import Lab, Room, needs_privilege

pytestmark = needs_privilege

A = Network(name="a", cidr="10.99.0.0/24", dhcp=True)


def running(program: str, lab: Lab) -> list[int]:
    """Pids of the lab's dnsmasq or pasta."""
    mark = {
        "dnsmasq": f"--conf-file={lab.state_dir}/",
        "pasta": str(lab.networks.namespace.path),
    }[program]
    return list(services.find_running(program, mark))


async def becomes(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """For what nobody tells of: looks again and again."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_dnsmasq_answers_for_the_names_of_its_guests(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(A)
        named, asking = await lab.guest("a"), await lab.guest("a")
        given = await named.dhcp("-x", "hostname:web1")
        await asking.dhcp()
        answer = await asking.run("busybox", "nslookup", "-type=a", "web1.ramet.internal", "10.99.0.1")
        assert given["ip"] in answer
        with pytest.raises(ToolError):
            await asking.run("busybox", "nslookup", "-type=a", "elsewhere.example", "10.99.0.1")


async def test_a_clones_client_id_does_not_get_its_sources_lease(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(A)
        source, clone = await lab.guest("a"), await lab.guest("a")
        client_id = ("-x", "0x3d:01aabbccddeeff")
        assert (await source.dhcp(*client_id))["ip"] != (await clone.dhcp(*client_id))["ip"]


async def test_reserved_addresses_are_given(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(A)
        guest = await lab.guest("a")
        await lab.networks.reserve("a", {await guest.mac(): "10.99.0.77"})
        assert (await guest.dhcp())["ip"] == "10.99.0.77"


async def test_dnsmasq_is_started_again_when_it_dies(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(A)
        guest = await lab.guest("a")
        given = await guest.dhcp()
        [before] = running("dnsmasq", lab)
        os.kill(before, signal.SIGKILL)
        await becomes(lambda: running("dnsmasq", lab) not in ([], [before]))
        assert (await guest.dhcp())["ip"] == given["ip"]


async def test_a_restarted_daemon_takes_over_what_runs(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        planned = await lab.networks.ensure(A)
        guest = await lab.guest("a")
        given = await guest.dhcp()
        before = running("dnsmasq", lab)
        tap = await lab.networks.open_tap("0123456789ab", 0)
        await lab.restart()
        assert running("dnsmasq", lab) == before
        assert await lab.networks.ensure(planned) == planned
        assert running("dnsmasq", lab) == before
        assert (await lab.networks.leases("a"))[await guest.mac()].address == given["ip"]
        assert await guest.reaches("10.99.0.1")
        assert list(await lab.networks.list_taps()) == [tap.name]
        tap.close()


async def test_a_changed_port_group_gets_another_dnsmasq(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(A)
        before = running("dnsmasq", lab)
        await lab.restart()
        await lab.networks.ensure(A.changed(cidr="10.98.0.0/24"))
        assert len(running("dnsmasq", lab)) == 1
        assert running("dnsmasq", lab) != before
        guest = await lab.guest("a")
        assert (await guest.dhcp())["ip"].startswith("10.98.0.")
        await lab.networks.ensure(A.changed(dhcp=False))
        assert running("dnsmasq", lab) == []


async def test_where_udev_does_not_open_the_tun_device_nat_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privilege, "is_open_to_all", lambda: False)
    async with Room() as host, Lab(tmp_path, outside=host) as lab:
        with pytest.raises(ToolError, match="chmod 0666 /dev/net/tun"):
            await lab.networks.ensure(A.changed(nat=True))
        await lab.networks.restore([A.changed(nat=True)])
        assert any("chmod 0666 /dev/net/tun" in warning for warning in lab.networks.warnings)


def test_a_device_of_roots_own_is_not_open_to_all(tmp_path: Path) -> None:
    device = tmp_path / "tun"
    assert not privilege.is_open_to_all(device)
    device.touch()
    for mode, open_to_all in ((0o600, False), (0o660, False), (0o664, False), (0o666, True)):
        device.chmod(mode)
        assert privilege.is_open_to_all(device) is open_to_all


async def test_who_is_cancelled_while_it_tells_dnsmasq_leaves_its_port_group_served(tmp_path: Path) -> None:
    cut = 0
    async with Lab(tmp_path) as lab:
        await lab.networks.ensure(A)
        for number in range(20):  # the moment of the cancellation moves through all of it, some 15 ms
            mac, address = f"52:54:00:00:00:{number:02x}", f"10.99.0.{number + 100}"
            telling = asyncio.create_task(lab.networks.claim_addresses("a", {mac: address}))
            await asyncio.wait({telling}, timeout=number / 1000)
            telling.cancel()
            await asyncio.wait({telling})
            if telling.cancelled():
                cut += 1
            else:
                assert telling.exception() is None
            (pid,) = running("dnsmasq", lab)
            (config,) = [
                word.removeprefix("--conf-file=")
                for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if word.startswith("--conf-file=")
            ]
            told = [line for line in Path(config).read_text().splitlines() if line.startswith("dhcp-host=")]
            reserved = lab.networks._ledger.reservations("a")
            assert told == [f"dhcp-host={mac},{address}" for mac, address in sorted(reserved.items())]
        assert len(reserved) >= 19  # the first may not have begun
    assert cut
    assert running("dnsmasq", lab) == []


async def test_a_service_that_is_cancelled_while_a_thread_starts_it_is_ended(tmp_path: Path) -> None:
    log, begun, go_on = tmp_path / "log", asyncio.Event(), asyncio.Event()
    own = str(tmp_path)  # nobody else's process has this argument
    argv = (sys.executable, "-c", "import time; time.sleep(600)", own)
    spec = services.ServiceSpec("a", os.path.basename(sys.executable), argv, mark=own, exact=own, log=log)
    started = []

    async def spawn(spec: services.ServiceSpec) -> int:
        begun.set()
        await go_on.wait()
        started.append(services.spawn_detached(spec))
        return started[0]

    async def is_ready() -> bool:
        return True

    starting = asyncio.create_task(services.Service(spec, spawn, is_ready).start())
    async with asyncio.timeout(20):
        await begun.wait()
        starting.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


CRASHING = """
import asyncio, pathlib, sys
from ramet.model.host import Network
from ramet.network.manager import Networks
async def main():
    networks = Networks(pathlib.Path(sys.argv[1]))
    await networks.start()
    await networks.ensure(Network(name="a", cidr="10.99.0.0/24", dhcp=True))
    tap = await networks.open_tap("0123456789ab", 0)
    await networks.attach(tap.name, "a")
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_killed_daemon_leaves_what_the_next_one_finds(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CRASHING, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        async with asyncio.timeout(20):
            assert await child.stdout.readline() == b"ready\n"
        child.kill()
        await child.wait()
        assert await lab.networks.list_taps() == {}
        [pid] = running("dnsmasq", lab)
        await lab.networks.ensure(A)
        assert running("dnsmasq", lab) == [pid]
        guest = await lab.guest("a")
        assert (await guest.dhcp())["ip"]
        await lab.restart()
        assert await lab.networks.collect(set(), groups=()) == ["a"]
        assert running("dnsmasq", lab) == []
        assert not list(tmp_path.glob("network/rb-*"))


async def test_nat_leads_outside_and_nowhere_else(tmp_path: Path) -> None:
    async with Room() as host, Room() as world:
        await host.join(world, "wan", "198.51.100.1/24", "198.51.100.2/24")
        await host.run("ip", "route", "add", "default", "via", "198.51.100.2")
        async with Lab(tmp_path, outside=host) as lab, Listener(world, "198.51.100.2"), Listener(host, "127.0.0.1"):
            out = await lab.networks.ensure(Network(name="out", dhcp=True, nat=True))
            await lab.networks.ensure(A)
            guest, other = await lab.guest("out"), await lab.guest("a")
            given = await guest.dhcp()
            assert given["router"] == given["dns"] == str(gateway_of(str(out.cidr)))
            assert await connects(guest, "198.51.100.2")
            assert not await connects(guest, "169.254.77.1")
            await other.dhcp()
            await other.run("ip", "route", "add", "default", "via", "10.99.0.1")
            assert not await connects(other, "198.51.100.2")

            [pid] = running("pasta", lab)
            os.kill(pid, signal.SIGKILL)
            await becomes(lambda: running("pasta", lab) not in ([], [pid]) and not lab.networks.warnings)
            assert await connects(guest, "198.51.100.2")

            [pid] = running("pasta", lab)
            await lab.restart()
            await lab.networks.restore([A, out])  # in whichever order: the way out stays
            assert running("pasta", lab) == [pid]
            assert await connects(guest, "198.51.100.2")
            await lab.networks.remove(out)
            assert running("pasta", lab) == []


async def test_nat_without_a_way_out_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with Room() as host, Lab(tmp_path, outside=host) as lab:
        with pytest.raises(ToolError, match="pasta did not start"):
            await lab.networks.ensure(Network(name="out", nat=True))
        assert lab.networks.groups == {}
        assert await lab.networks.ensure(A)


async def test_restored_nat_comes_up_when_the_host_is_online_at_last(tmp_path: Path) -> None:
    async with Room() as host, Room() as world, Lab(tmp_path, outside=host) as lab, Listener(world, "0.0.0.0"):
        out = Network(name="out", cidr="10.97.0.0/24", dhcp=True, nat=True)
        await lab.networks.restore([out, A])
        assert set(lab.networks.groups) == {"out", "a"}
        assert any("pasta" in warning for warning in lab.networks.warnings)
        guest = await lab.guest("out")
        await guest.dhcp()
        assert not await connects(guest, "198.51.100.2")
        await host.join(world, "wan", "198.51.100.1/24", "198.51.100.2/24")
        await host.run("ip", "route", "add", "default", "via", "198.51.100.2")
        await becomes(lambda: not lab.networks.warnings)
        assert await connects(guest, "198.51.100.2")


async def test_nat_without_pasta_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Lab(tmp_path) as lab:
        monkeypatch.setattr(services, "TOOL_PATH", "/nonexistent")
        with pytest.raises(UnsupportedError, match="apt-get install passt"):
            await lab.networks.ensure(Network(name="out", nat=True))
        assert lab.networks.groups == {}
        await lab.networks.restore([Network(name="out", cidr="10.97.0.0/24", nat=True)])
        assert "apt-get install passt" in lab.networks.warnings[0]
        assert await (await lab.guest("out", "10.97.0.11/24")).reaches("10.97.0.1")


class Listener:
    """Accepts on port 80 of an address in a room, by the kernel's queue alone."""

    def __init__(self, room: Room, address: str) -> None:
        self._room = room
        self._address = address

    async def __aenter__(self) -> None:
        self._socket = await self._room.thread.run(socket.create_server, (self._address, 80))

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()


async def connects(guest: Room, address: str) -> bool:
    """Whether port 80 of the address accepts, within a second."""
    try:
        (await guest.thread.connect_tcp(address, 80, 1.0)).close()
    except (OSError, DeadlineError):
        return False
    return True
