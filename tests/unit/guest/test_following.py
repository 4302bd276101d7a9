"""Following a command in a guest: the real scripts, under two shells, with this machine as the guest."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ramet.errors import GuestError, StateError, UsageError
from ramet.guest import following
from ramet.guest.agent import Agent
from ramet.guest.following import Following, follow
from ramet.guest.guestfiles import guest_file
from ramet.testing.local_agent import LocalAgent

SHELLS = [("dash",), ("busybox", "sh")]
PATIENCE_S = 30.0


def folders() -> set[Path]:
    return {*Path("/run").glob("ramet-exec-*"), *Path("/tmp").glob("ramet-exec-*")}


def processes_with(text: str) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if text.encode() in line:
            found.append(line)
    return found


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - other processes ring no bell here
            await asyncio.sleep(0.01)


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
async def local(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalAgent]:
    path = shutil.which(request.param[0])
    if path is None:
        pytest.skip(f"no {request.param[0]} here")
    before = folders()
    async with LocalAgent(tmp_path / "agent", (path, *request.param[1:])) as local:
        yield local
        assert folders() <= before
        await until(lambda: not processes_with("ramet-exec-"))  # it has removed its folder, and ends within moments
        assert not local.open_handles


@pytest.fixture
async def agent(local: LocalAgent) -> AsyncIterator[Agent]:
    agent = Agent(local.path, timeout_s=5)
    async with asyncio.timeout(PATIENCE_S):
        yield agent
    await agent.close()


async def gather(command: Following) -> tuple[bytes, bytes]:
    out = {"stdout": b"", "stderr": b""}
    async for piece in command.output():
        out[piece.stream] += piece.data
    return out["stdout"], out["stderr"]


async def run(agent: Agent, script: str, stdin: bytes | None = None) -> tuple[bytes, bytes, int | None]:
    async with follow(agent, ["sh", "-c", script], stdin=stdin is not None) as command:
        if stdin is not None:
            await command.write(stdin)
            await command.end_input()
        out, err = await gather(command)
        assert command.outcome is not None
        return out, err, command.outcome.exit_code


async def first(command: Following) -> bytes:
    async for piece in command.output():
        return piece.data
    return b""


async def test_outputs_and_status(agent: Agent) -> None:
    assert await run(agent, "echo out; echo err >&2; exit 3") == (b"out\n", b"err\n", 3)
    assert await run(agent, "") == (b"", b"", 0)


async def test_output_comes_while_it_runs(agent: Agent) -> None:
    async with follow(agent, ["sh", "-c", "echo ready; read x; echo got $x"], stdin=True) as command:
        pieces = command.output()
        assert (await anext(pieces)).data == b"ready\n"
        await command.write(b"it\n")
        assert (await anext(pieces)).data == b"got it\n"
        assert [piece async for piece in pieces] == []


async def test_much_output_passes_whole(agent: Agent) -> None:
    size = 21 << 20
    out, _, status = await run(agent, f"head -c {size} /dev/zero; echo end >&2")
    assert (len(out), set(out), status) == (size, {0}, 0)


async def test_what_is_not_read_is_bounded(agent: Agent, local: LocalAgent) -> None:
    before = folders()
    async with follow(agent, ["cat", "/dev/zero"]) as command:
        assert await first(command)
        (folder,) = folders() - before
        sizes = [0]
        for _ in range(20):
            await asyncio.sleep(0.05)
            sizes.append(sum(file.stat().st_size for file in folder.glob("o.*")))
        assert sizes[-1] <= 8 << 20


async def test_input_of_any_kind_comes_back(agent: Agent) -> None:
    data = hashlib.shake_128(b"x").digest(900_000)
    assert await run(agent, "cat", data) == (data, b"", 0)


async def test_input_that_nobody_reads_holds_nothing_up(agent: Agent) -> None:
    async with follow(agent, ["sleep", "1"], stdin=True) as command:
        writer = asyncio.create_task(command.write(bytes(4 << 20)))
        assert await gather(command) == (b"", b"")
        await writer


async def test_without_input_there_is_an_end_at_once(agent: Agent) -> None:
    assert await run(agent, "cat; echo done") == (b"done\n", b"", 0)
    async with follow(agent, ["true"]) as command:
        with pytest.raises(StateError):
            await command.write(b"x")
        await gather(command)


async def test_an_interrupt_ends_the_command_and_all_of_it(agent: Agent) -> None:
    async with follow(agent, ["sh", "-c", "echo up; sleep 987654242 | cat"]) as command:
        output = command.output()
        assert (await anext(output)).data == b"up\n"
        await command.signal("INT")
        assert [piece async for piece in output] == []
        assert command.outcome is not None
        assert command.outcome.signal == 2
    assert not processes_with("987654242")


async def test_a_command_may_catch_the_interrupt(agent: Agent) -> None:
    script = "trap 'echo caught; exit 7' INT; echo up; while :; do sleep 0.1; done"
    async with follow(agent, ["sh", "-c", script]) as command:
        output = command.output()
        assert (await anext(output)).data == b"up\n"
        await command.signal("INT")
        assert b"".join([piece.data async for piece in output]) == b"caught\n"
        assert command.outcome is not None
        assert command.outcome.exit_code == 7


async def test_leaving_early_kills(agent: Agent) -> None:
    async with follow(
        agent, ["sh", "-c", "trap '' INT TERM HUP; echo up; sleep 987654343; sleep 987654343"]
    ) as command:
        assert await first(command) == b"up\n"
    assert not processes_with("987654343")


async def test_cancelling_kills(agent: Agent) -> None:
    up = asyncio.Event()

    async def work() -> None:
        async with follow(agent, ["sh", "-c", "echo up; sleep 987654444"]) as command:
            async for _ in command.output():
                up.set()

    task = asyncio.create_task(work())
    await up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes_with("987654444")


async def test_a_command_that_is_not_there(agent: Agent) -> None:
    async with follow(agent, ["no-such-thing"]) as command:
        _, err = await gather(command)
        assert b"no-such-thing: not found" in err
        assert command.outcome is not None
        assert command.outcome.exit_code == 127


async def test_what_the_command_leaves_running_neither_holds_nor_is_hurt(agent: Agent, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = f"(until [ -e {flag} ]; do sleep 0.05; done; echo late; echo fine > {tmp_path}/late) & echo said"
    assert await run(agent, script) == (b"said\n", b"", 0)
    flag.touch()
    await until((tmp_path / "late").exists)


async def test_the_command_has_no_children_but_its_own(agent: Agent) -> None:
    code = "import os\ntry: os.wait()\nexcept ChildProcessError: print('none')"
    async with follow(agent, ["python3", "-c", code]) as command:
        assert await gather(command) == (b"none\n", b"")


async def test_other_commands_go_in_between(agent: Agent) -> None:
    async with follow(agent, ["sh", "-c", "echo up; sleep 987654545"]) as command:
        assert await first(command) == b"up\n"
        assert (await agent.exec(["echo", "between"], timeout_s=5)).stdout == b"between\n"


async def test_environment_and_bytes(agent: Agent) -> None:
    async with follow(agent, ["sh", "-c", 'printf "$WORD\\0\\377"'], env={"WORD": "a b"}) as command:
        assert await gather(command) == (b"a b\0\xff", b"")


async def test_mistakes_are_told(agent: Agent) -> None:
    with pytest.raises(UsageError):
        async with follow(agent, []):
            pass
    async with follow(agent, ["true"]) as command:
        with pytest.raises(UsageError):
            await command.signal("9; rm -rf /")
        await gather(command)


async def test_a_guest_where_it_cannot_start(agent: Agent, local: LocalAgent) -> None:
    local.shell = ("/bin/sh", "-c", "echo no room >&2; exit 125", "sh")
    with pytest.raises(GuestError, match="no room"):
        async with follow(agent, ["true"]):
            pass


async def test_a_host_that_vanishes_is_noticed_in_the_guest(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "guest_file", lambda name: guest_file(name).replace(b"sleep 20", b"sleep 0.3"))
    before = folders()
    async with follow(agent, ["sh", "-c", "echo up; sleep 987654646"]) as command:
        assert await first(command) == b"up\n"
        await until(lambda: not processes_with("987654646") and folders() <= before)
