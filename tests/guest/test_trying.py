"""Trying changes in clones of a real guest: what is told, what is reached, and what is left."""

from __future__ import annotations

import base64
from ipaddress import IPv4Network
from typing import Any

import pytest

from ramet.errors import NotFoundError, TaskCancelledError
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.model.execution import ExecEvent, FollowExec
from ramet.model.host import TaskState
from ramet.model.requests import CreateNetwork
from ramet.model.trying import TryCommand, TryReport
from tests.guest.conftest import Guests

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]


async def attempt(host: Host, source: str, script: str, **more: Any) -> tuple[TryReport, bytes]:
    """The report, and what the command printed."""
    task = await host.try_command(source, TryCommand(argv=("sh", "-c", script), **more), None)
    printed = b""
    async for event in host.task_output(task.id):
        printed += data_of(event)
    return TryReport.model_validate(await finish(host, task)), printed


def data_of(event: ExecEvent) -> bytes:
    return base64.b64decode(event.data_base64 or "")


async def names(host: Host) -> set[str]:
    return {vm.name for vm in await host.list_vms()}


async def test_what_a_command_changes_is_told_and_the_clone_is_gone(host: Host, source: str, guests: Guests) -> None:
    before = await names(host)
    who = await guests.sh(source, "cat /data/who")
    script = """
        echo new > /root/new; echo x >> /data/who; rm /etc/modprobe.conf; mkdir /srv
        httpd -p 8099 -h /root; echo said; echo loud >&2; exit 3"""
    report, printed = await attempt(host, source, script)
    assert report.exit_code == 3
    assert sorted(printed.splitlines()) == [b"loud", b"said"]
    assert report.changes is not None
    files = {(file.change, file.kind, file.path) for file in report.changes.files}
    assert files == {
        ("created", "file", "/root/new"),
        ("created", "folder", "/srv"),
        ("changed", "file", "/data/who"),
        ("deleted", "file", "/etc/modprobe.conf"),
    }
    (port,) = report.changes.ports
    assert (port.change, port.protocol, port.port, port.process) == ("opened", "tcp", 8099, "httpd")
    assert await names(host) == before
    assert await guests.sh(source, "ls -d /root/new /srv; cat /data/who", check=False) == who
    t = report.timings_ms
    assert t.total >= t.clone + t.before + t.command + t.after + t.remove
    assert t.clone >= t.stun > 0
    print(report.model_dump_json(indent=1))


async def test_a_frozen_source_and_a_clone_that_is_kept(host: Host, source: str, guests: Guests) -> None:
    await finish(host, await host.freeze_vm(source))
    try:
        report, _ = await attempt(host, source, "echo kept > /root/kept", keep=True, name="kept")
    finally:
        await finish(host, await host.thaw_vm(source))
    assert report.kept
    assert await guests.sh("kept", "cat /root/kept; ls -d /run/ramet-*", check=False) == "kept"
    assert (await host.show_vm("kept")).expires_at is None
    await guests.remove("kept")


async def test_the_clone_reaches_nothing(host: Host, source: str, guests: Guests) -> None:
    (default,) = [network for network in await host.list_networks() if network.name == "default"]
    gateway = next(IPv4Network(default.cidr or "").hosts())
    await guests.sh(source, f"ping -c 1 -W 2 {gateway}")
    own = await guests.sh(source, "ip -4 -o addr show dev eth0 | sed 's/.*inet //; s/ .*//'")
    script = f"ip link set eth0 up; ip addr add {own} dev eth0; ping -c 2 -W 1 {gateway}"
    report, printed = await attempt(host, source, script)
    assert report.network == "try"
    assert report.exit_code == 1
    assert b"2 packets transmitted, 0 packets received" in printed


async def test_a_command_that_is_not_there(host: Host, source: str) -> None:
    task = await host.try_command(source, TryCommand(argv=("no-such-thing",)), None)
    report = TryReport.model_validate(await finish(host, task))
    assert report.exit_code == 127
    assert report.changes is not None
    assert report.changes.is_empty


async def test_a_command_that_takes_too_long(host: Host, source: str) -> None:
    before = await names(host)
    report, printed = await attempt(host, source, "echo begun; touch /root/mark; sleep 1000", timeout_s=2)
    assert (report.exit_code, report.timed_out, printed) == (124, True, b"begun\n")
    assert report.changes is not None
    assert [file.path for file in report.changes.files] == ["/root/mark"]
    assert await names(host) == before


async def test_a_cancelled_trial_leaves_nothing(host: Host, source: str) -> None:
    before = await names(host)
    task = await host.try_command(source, TryCommand(argv=("sh", "-c", "echo up; sleep 1000")), None)
    async for event in host.task_output(task.id):
        if data_of(event) == b"up\n":
            await host.tasks.cancel(task.id)
    with pytest.raises(TaskCancelledError):
        await finish(host, task)
    assert await names(host) == before


async def test_cancelled_while_it_is_cloned(host: Host, source: str) -> None:
    before = await names(host)
    task = await host.try_command(source, TryCommand(argv=("true",)), None)
    await host.tasks.wait(task.id, 60, task.version)
    await host.tasks.cancel(task.id)
    ended = await host.tasks.wait(task.id, 60)
    assert ended.state is TaskState.CANCELLED
    assert await names(host) == before


async def test_mistakes_are_told_before_anything_happens(host: Host, source: str) -> None:
    with pytest.raises(NotFoundError):
        await host.try_command("nobody", TryCommand(argv=("true",)), None)


async def test_a_network_of_ones_own(host: Host, source: str) -> None:
    await host.create_network(CreateNetwork(name="lab", cidr="10.77.3.0/24", dhcp=True))
    try:
        report, _ = await attempt(host, source, "true", network="lab")
        assert report.network == "lab"
    finally:
        await host.remove_network("lab")


async def test_following_a_command_in_a_guest(host: Host, source: str, guests: Guests) -> None:
    request = FollowExec(argv=("sh", "-c", "echo ready; read line; echo got $line; sleep 1000"), stdin=True)
    events = host.follow_exec(source, request)
    started = await anext(events)
    assert started.id
    assert data_of(await anext(events)) == b"ready\n"
    await host.write_exec(started.id, b"it\n", end=False)
    assert data_of(await anext(events)) == b"got it\n"
    assert await guests.sh(source, "echo between") == "between"
    await host.signal_exec(started.id, "INT")
    last = [event async for event in events][-1]
    assert (last.kind, last.exit_code, last.signal) == ("exited", 130, 2)
    left = "ls -d /run/ramet-* /tmp/ramet-*; ps | grep -e 'sleep 1000' -e ramet-exec | grep -v grep"
    assert await guests.sh(source, left, check=False) == ""


async def test_much_output_through_a_guest(host: Host, source: str) -> None:
    size = 0
    async for event in host.follow_exec(source, FollowExec(argv=("head", "-c", "12000000", "/dev/zero"))):
        size += len(data_of(event))
    assert size == 12_000_000
