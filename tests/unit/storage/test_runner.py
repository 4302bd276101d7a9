"""Children: heard out, bounded, and gone when we are done with them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.errors import DeadlineError, ToolError
from ramet.storage import Limits, in_thread, run_tool

SHOUT = "import sys; sys.stdout.write('x' * 3_000_000); sys.stderr.write('y' * 3_000_000)"

STUBBORN = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print(os.getpid(), file=open(sys.argv[1] + "/self", "w"), flush=True)
signal.sigwait([signal.SIGTERM])
print(1, file=open(sys.argv[1] + "/asked", "w"), flush=True)
signal.pause()
"""


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # a grandchild: init's to reap


async def until(condition: Callable[[], bool]) -> None:
    """Another process's doings come as no event to us: look often, for a bounded time."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not happen")


async def read_pid(path: Path) -> int:
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


async def gone(pid: int) -> None:
    await until(lambda: is_gone(pid))


async def test_output_and_environment() -> None:
    result = await run_tool(
        ["sh", "-c", "echo $LC_ALL $EXTRA $HOME; echo warned >&2"], timeout_s=20, env={"EXTRA": "1"}
    )
    assert result.stdout == b"C 1\n"
    assert result.stderr == "warned\n"
    assert not result.truncated


async def test_long_output_is_drained_and_bounded() -> None:
    pieces: list[int] = []
    result = await run_tool(
        ["python3", "-c", SHOUT], timeout_s=30, progress=lambda piece: pieces.append(len(piece)), stdout_limit=1000
    )
    assert result.stdout == b"x" * 1000
    assert result.truncated
    assert len(result.stderr) == 1 << 16
    assert sum(pieces) == 3_000_000


async def test_failure_tells_the_last_line() -> None:
    with pytest.raises(ToolError, match="sh failed: the reason") as caught:
        await run_tool(["sh", "-c", "echo noise >&2; echo the reason >&2; echo >&2; exit 3"], timeout_s=20)
    assert caught.value.fields == {"tool": "sh", "returncode": 3}


async def test_accepted_codes_and_signals() -> None:
    assert (await run_tool(["sh", "-c", "exit 3"], timeout_s=20, accept=(0, 3))).returncode == 3
    with pytest.raises(ToolError, match="exit code 137"):
        await run_tool(["sh", "-c", "kill -9 $$"], timeout_s=20)


async def test_a_missing_program_is_told() -> None:
    with pytest.raises(ToolError, match="no-such-program is not installed"):
        await run_tool(["no-such-program"], timeout_s=20)


async def test_deadline_ends_it_and_its_children(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; trap '' TERM; wait; wait"
    with pytest.raises(DeadlineError, match="sh did not end within"):
        await run_tool(["sh", "-c", script], timeout_s=1, grace_s=0.2)
    await gone(await read_pid(tmp_path / "self"))
    await gone(await read_pid(tmp_path / "child"))


async def test_cancelling_ends_it_and_goes_on(tmp_path: Path) -> None:
    task = asyncio.create_task(run_tool(["sh", "-c", f"echo $$ > {tmp_path}/self; exec sleep 1000"], timeout_s=100))
    pid = await read_pid(tmp_path / "self")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # reaped, not only dead


async def test_cancelling_twice_kills_at_once(tmp_path: Path) -> None:
    task = asyncio.create_task(
        run_tool(["python3", "-c", STUBBORN, str(tmp_path)], timeout_s=100, grace_s=1000), name="stubborn"
    )
    pid = await read_pid(tmp_path / "self")
    task.cancel()
    await read_pid(tmp_path / "asked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(30):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_stray_child_with_the_pipes_delays_nobody(tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ > {tmp_path}/stray; exec sleep 1000' & echo done"
    result = await run_tool(["sh", "-c", script], timeout_s=30)
    assert result.stdout == b"done\n"
    os.kill(await read_pid(tmp_path / "stray"), 9)


async def test_limits_reach_the_child() -> None:
    limits = Limits(address_space_bytes=1 << 30, cpu_s=7, file_size_bytes=1 << 20, background=True)
    result = await run_tool(["sh", "-c", "ulimit -v; ulimit -t; ulimit -f; nice"], timeout_s=20, limits=limits)
    assert result.stdout.split() == [b"1048576", b"7", b"2048", b"19"]


async def test_it_dies_with_us(tmp_path: Path) -> None:
    """A daemon that is killed leaves no qemu-img behind that would go on writing."""
    code = (
        "import asyncio; from ramet.storage import run_tool;"
        f"asyncio.run(run_tool(['sh', '-c', 'echo $$ > {tmp_path}/self; exec sleep 1000'], timeout_s=100))"
    )
    python = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    pid = await read_pid(tmp_path / "self")
    python.kill()
    await python.wait()
    await gone(pid)


async def test_in_thread_waits_for_its_thread_and_undoes() -> None:
    done: list[str] = []
    started, loop = asyncio.Event(), asyncio.get_running_loop()

    def work() -> str:
        loop.call_soon_threadsafe(started.set)
        time.sleep(0.1)
        done.append("work")
        return "result"

    task = asyncio.create_task(in_thread(work, undo=done.append))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["work", "result"]


async def test_in_thread_returns_and_raises() -> None:
    assert await in_thread(int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await in_thread(int, "x")
