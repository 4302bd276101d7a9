"""The guest agent's client against a fake agent, polite and hostile."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import DeadlineError, GuestError, StateError, UsageError
from ramet.guest import agent_wire
from ramet.guest.agent import Agent, ExecOutcome, ShutdownMode
from ramet.guest.agent_wire import MAX_ANSWER_BYTES
from ramet.testing.fake_agent import FakeAgent, FakeRefusalError


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_synchronises_once_a_connection(fake: FakeAgent, agent: Agent) -> None:
    fake.greeting = b'{"return": {"late": 1}}\n\xff{"return": 4}\nrubbish'
    await agent.ping()
    await agent.ping()
    assert fake.connections == 1


async def test_runs_a_program(fake: FakeAgent, agent: Agent) -> None:
    fake.run = lambda arguments: {"exitcode": 3, "out-data": b64(b"out\n"), "err-data": b64(b"\xff")}
    outcome = await agent.exec(["ls", "-l"], stdin=b"in", env={"A": "1"}, timeout_s=5)
    assert outcome == ExecOutcome(3, None, b"out\n", b"\xff")
    _, arguments = fake.seen[0]
    assert arguments["path"] == "ls"
    assert arguments["arg"] == ["-l"]
    assert base64.b64decode(arguments["input-data"]) == b"in"
    assert "A=1" in arguments["env"]


async def test_a_program_killed_by_a_signal(fake: FakeAgent, agent: Agent) -> None:
    fake.run = lambda arguments: {"signal": 9, "out-truncated": True}
    outcome = await agent.exec(["x"], timeout_s=5)
    assert (outcome.exit_code, outcome.signal, outcome.truncated, outcome.ok) == (None, 9, True, False)


async def test_a_program_that_does_not_end_is_killed(fake: FakeAgent, agent: Agent) -> None:
    fake.run = lambda arguments: None
    with pytest.raises(DeadlineError):
        await agent.exec(["sleep", "1000"], timeout_s=0.05)
    assert fake.seen[-1][1]["arg"] == ["-c", "kill -KILL 1"]


async def test_a_program_is_killed_by_a_deadline_around_it_too(fake: FakeAgent, agent: Agent) -> None:
    fake.commands["guest-exec"] = lambda _: {"pid": 1}
    fake.commands["guest-exec-status"] = lambda _: {"exited": False}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await agent.exec(["sleep", "1000"], timeout_s=1000)
    assert fake.seen[-1][1]["arg"] == ["-c", "kill -KILL 1"]


async def test_a_program_is_needed(agent: Agent) -> None:
    with pytest.raises(UsageError):
        await agent.exec([], timeout_s=1)


async def test_a_silent_agent_is_given_up_and_the_next_command_is_in_step(fake: FakeAgent, agent: Agent) -> None:
    fake.commands["guest-slow"] = lambda arguments: None
    with pytest.raises(DeadlineError):
        await agent.command("guest-slow", timeout_s=0.05)
    await agent.ping()
    assert fake.connections == 2


async def test_a_ping_lost_in_a_restart_is_sent_again(
    fake: FakeAgent, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ramet.guest.agent._PING_S", 0.05)
    answers: Iterator[dict[str, str] | None] = iter([None, None, {}])
    fake.commands["guest-ping"] = lambda arguments: next(answers)
    await agent.ping(timeout_s=10)
    assert len(fake.seen) == 3


@pytest.mark.parametrize("size", [0, 1, 192 * 1024, 192 * 1024 + 1, 1 << 20])
async def test_files_there_and_back(fake: FakeAgent, agent: Agent, size: int) -> None:
    content = bytes(i * 7 % 256 for i in range(size))
    await agent.write_file("/x", content, mode=0o755)
    assert fake.files["/x"] == content
    assert await agent.read_file("/x") == content
    assert fake.handles == {}
    names = [name for name, _ in fake.seen]
    assert names.index("guest-exec") < names.index("guest-file-open")
    (made,) = [arguments["arg"] for name, arguments in fake.seen if name == "guest-exec"]
    assert (made[1], made[3:]) == ('umask 077; : >>"$1" && chmod "$2" "$1"', ["/x", "755"])


async def test_a_file_from_pieces(fake: FakeAgent, agent: Agent) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    await agent.write_file("/x", pieces())
    assert fake.files["/x"] == b"one two"


async def test_a_file_too_large_is_refused_and_closed(fake: FakeAgent, agent: Agent) -> None:
    fake.files["/x"] = bytes(1 << 20)
    with pytest.raises(GuestError, match="larger"):
        await agent.read_file("/x", max_bytes=1000)
    assert fake.handles == {}


async def test_a_full_disk_is_an_error_and_closes(fake: FakeAgent, agent: Agent) -> None:
    fake.commands["guest-file-write"] = lambda arguments: {"count": 0, "eof": False}
    with pytest.raises(GuestError, match="full"):
        await agent.write_file("/x", b"abc")
    assert fake.handles == {}


async def test_a_missing_file_says_so(agent: Agent) -> None:
    with pytest.raises(GuestError, match="No such file"):
        await agent.read_file("/missing")


HOSTILE: list[tuple[str, Any]] = [
    ("guest-ping", b"not json\n"),
    ("guest-ping", b"[]\n"),
    ("guest-ping", b"{}\n"),
    ("guest-ping", b'{"return": 1, "error": {}}\n'),
    ("guest-ping", b"[" * 100_000 + b"\n"),
    ("guest-ping", b'"' + b"x" * (MAX_ANSWER_BYTES + 300_000)),
    ("guest-ping", b'{"error": []}\n'),
    ("guest-exec", {"pid": "1"}),
    ("guest-exec", {"pid": True}),
    ("guest-exec", []),
    ("guest-exec-status", {"exited": 1}),
    ("guest-exec-status", {"exited": True, "out-data": "%%%"}),
    ("guest-file-open", "7"),
    ("guest-file-read", {"count": 3, "buf-b64": "", "eof": False}),
    ("guest-file-read", {"count": -1, "buf-b64": "", "eof": True}),
    ("guest-file-read", {"count": 1, "buf-b64": b64(bytes(300_000)), "eof": True}),
    ("guest-file-write", {"count": 99}),
    ("guest-file-write", {"count": -1}),
    ("guest-get-host-name", {"host-name": "x" * 5000}),
    ("guest-get-osinfo", {"id": {}}),
    ("guest-network-get-interfaces", [{"name": "e", "ip-addresses": [{}]}]),
    ("guest-network-get-interfaces", {"name": "e"}),
    ("guest-fsfreeze-freeze", "many"),
]


@pytest.mark.parametrize(("command", "answer"), HOSTILE)
async def test_hostile_answers_are_guest_errors(fake: FakeAgent, agent: Agent, command: str, answer: Any) -> None:
    fake.files["/x"] = b"abc"
    fake.commands[command] = lambda arguments: answer
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "guest-ping": agent.ping,
        "guest-exec": lambda: agent.exec(["x"], timeout_s=5),
        "guest-exec-status": lambda: agent.exec(["x"], timeout_s=5),
        "guest-file-open": lambda: agent.read_file("/x"),
        "guest-file-read": lambda: agent.read_file("/x"),
        "guest-file-write": lambda: agent.write_file("/x", b"abc"),
        "guest-get-host-name": agent.hostname,
        "guest-get-osinfo": agent.os_info,
        "guest-network-get-interfaces": agent.interfaces,
        "guest-fsfreeze-freeze": agent.freeze_file_systems,
    }
    with pytest.raises(GuestError):
        await calls[command]()
    fake.commands["guest-ping"] = lambda arguments: {}
    await agent.ping()


async def test_endless_noise_before_the_answer_ends(
    fake: FakeAgent, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_wire, "_MAX_NOISE_BYTES", 4 << 20)
    fake.greeting = (b"\xff" + b"x" * (1 << 20) + b"\n") * 5
    with pytest.raises(GuestError, match="step"):
        await agent.ping()


@pytest.mark.parametrize("said", [b"\xff{}\n", b"\xff", b"x", b"\n"])
async def test_an_agent_that_babbles_does_not_keep_others_from_their_turn(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A socket that always has something to read never makes its reader wait."""
    monkeypatch.setattr(agent_wire, "_MAX_NOISE_BYTES", 16 << 20)
    reads = 0

    async def always(sock: socket.socket, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return (said * size)[:size]

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_recv", always)
    asking = asyncio.create_task(agent.ping())
    for _ in range(20):
        await asyncio.sleep(0)
    assert reads < 30
    with pytest.raises(GuestError, match="step"):
        await asking


async def test_addresses_names_and_system(fake: FakeAgent, agent: Agent) -> None:
    fake.commands["guest-network-get-interfaces"] = lambda arguments: [
        {
            "name": "eth0",
            "hardware-address": "52:54:00:00:00:01",
            "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "10.0.0.2", "prefix": 24}],
            "statistics": {"rx-bytes": 1},
        },
        {"name": "lo"},
    ]
    fake.commands["guest-get-host-name"] = lambda arguments: {"host-name": "web"}
    fake.commands["guest-get-osinfo"] = lambda arguments: {"id": "debian", "pretty-name": "Debian"}
    eth0, lo = await agent.interfaces()
    assert (eth0.mac, eth0.addresses[0].address, lo.addresses) == ("52:54:00:00:00:01", "10.0.0.2", [])
    assert await agent.hostname() == "web"
    assert (await agent.os_info()).pretty_name == "Debian"


async def test_a_refusal_has_the_agents_words_without_control_characters(fake: FakeAgent, agent: Agent) -> None:
    def refuse(arguments: dict[str, Any]) -> Any:
        raise FakeRefusalError("GenericError", "no\x1b[2J way")

    fake.commands["guest-set-time"] = refuse
    with pytest.raises(GuestError, match=r"no\?\[2J way") as caught:
        await agent.set_time(12.5)
    assert fake.seen[-1][1] == {"time": 12_500_000_000}
    assert caught.value.fields["error_class"] == "GenericError"
    json.dumps(caught.value.as_dict())


async def test_keys_are_added_by_a_script_where_the_agent_cannot(fake: FakeAgent, agent: Agent) -> None:
    await agent.add_ssh_keys("root", ["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"])
    assert fake.seen[-2][1]["arg"][3:] == ["root", "ssh-ed25519 AAAA a\nssh-rsa BBBB b"]


async def test_shutdown_that_is_not_answered_is_under_way(fake: FakeAgent, agent: Agent) -> None:
    fake.commands["guest-shutdown"] = lambda arguments: None
    await agent.shutdown(ShutdownMode.REBOOT)
    assert fake.seen == [("guest-shutdown", {"mode": "reboot"})]
    await agent.ping()


async def test_shutdown_that_is_refused_is_an_error(agent: Agent) -> None:
    with pytest.raises(GuestError, match="not been found"):
        await agent.shutdown()


async def test_quiet_waits_for_the_command_in_flight_and_holds_back_the_next(fake: FakeAgent, agent: Agent) -> None:
    await agent.ping()
    async with agent.quiet():
        waiting = asyncio.create_task(agent.ping())
        await asyncio.sleep(0)
        assert len(fake.seen) == 1
        with pytest.raises(DeadlineError):
            async with agent.quiet(timeout_s=0.01):
                pass
    await waiting
    assert len(fake.seen) == 2


async def test_close_fails_the_command_in_flight(fake: FakeAgent, agent: Agent) -> None:
    told = asyncio.Event()
    fake.commands["guest-slow"] = lambda arguments: told.set()
    waiting = asyncio.create_task(agent.command("guest-slow"))
    await told.wait()
    await agent.close()
    with pytest.raises(GuestError, match="closed"):
        await waiting


async def test_a_guest_that_stands_still_is_not_waited_for(fake: FakeAgent, agent: Agent) -> None:
    told = asyncio.Event()
    fake.run = lambda arguments: told.set()
    running = asyncio.create_task(agent.exec(["/bin/long"], timeout_s=60))
    await told.wait()
    fake.commands["guest-exec-status"] = lambda arguments: None  # whatever is asked from now on
    agent.hold(lambda: StateError("It froze."))
    for command in (running, agent.ping(), agent.exec(["/bin/more"], timeout_s=60)):
        with pytest.raises(StateError, match="froze"):
            await command
    agent.release()
    await agent.ping()


async def test_an_idle_connection_outlives_a_guest_that_stands_still(fake: FakeAgent, agent: Agent) -> None:
    """Its end would have QEMU change the memory of a guest whose devices are saved."""
    await agent.ping()
    agent.hold(lambda: StateError("It froze."))
    with pytest.raises(StateError):
        await agent.ping()
    agent.release()
    await agent.ping()
    assert fake.connections == 1


async def test_a_command_under_way_ends_when_the_guest_stands_still(fake: FakeAgent, agent: Agent) -> None:
    told = asyncio.Event()
    fake.commands["guest-slow"] = lambda arguments: told.set()
    waiting = [asyncio.create_task(agent.command("guest-slow")) for _ in range(3)]
    await told.wait()
    agent.hold(lambda: StateError("It froze."))
    for command in waiting:
        with pytest.raises(StateError, match="froze"):
            await command
    assert [name for name, _ in fake.seen] == ["guest-slow"]


async def test_a_command_that_is_cancelled_while_the_guest_stands_still_is_cancelled(
    fake: FakeAgent, agent: Agent
) -> None:
    told = asyncio.Event()
    fake.commands["guest-slow"] = lambda arguments: told.set()
    waiting = asyncio.create_task(agent.command("guest-slow"))
    await told.wait()
    agent.hold(lambda: StateError("It froze."))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_no_qemu_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await Agent(tmp_path / "none").ping()
