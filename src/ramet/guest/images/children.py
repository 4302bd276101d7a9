"""Run helper programs: output to a file, bounded in time, killed with their own children when cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from ramet.errors import DeadlineError, ToolError

_TAIL_BYTES = 2000
_GRACE_S = 5.0
_FOLLOW_S = 0.3


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read().decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def _following(log: Path, on_line: Callable[[str], None] | None) -> AsyncIterator[None]:
    if on_line is None:
        yield
        return
    follower = asyncio.create_task(_follow(log, on_line))
    try:
        yield
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


async def _follow(log: Path, on_line: Callable[[str], None]) -> None:
    with log.open(errors="replace") as file:
        while True:
            for line in file:
                on_line(line.rstrip("\n"))
            await asyncio.sleep(_FOLLOW_S)


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    # A user's PATH often lacks the folders of mke2fs and its like.
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": path, **added}


async def _end(child: asyncio.subprocess.Process) -> None:
    """TERM, wait, KILL, reap; the child leads a process group of its own."""
    for signum, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signum)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), patience_s)
            return


async def _started(starting: Coroutine[Any, Any, asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """The child. A cancellation waits until it is there, and ends it: asyncio itself would kill it alone, and what it
    had started by then would go on (CPython 3.11)."""
    task, cancelled = asyncio.ensure_future(starting), False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if not cancelled:
        return task.result()
    if task.exception() is None:
        await asyncio.shield(_end(task.result()))
    raise asyncio.CancelledError


async def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_error_line: Callable[[str], None] | None = None,
) -> str:
    """Run a program to its end and return what it wrote to standard output.

    Raises `ToolError` with the end of its error output, `DeadlineError` after `timeout_s`. On either, and when
    cancelled, the program and its children are killed and reaped first. `env` is added to the inherited one.
    `on_error_line` is called with each line of its error output, some time after it was written.
    """
    with tempfile.TemporaryDirectory(prefix="ramet-run-") as scratch:
        out, err = Path(scratch) / "out", Path(scratch) / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            try:
                child = await _started(
                    asyncio.create_subprocess_exec(
                        *map(str, argv),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=stdout,
                        stderr=stderr,
                        cwd=cwd,
                        env=_environment(env or {}),
                        start_new_session=True,
                    )
                )
            except FileNotFoundError as exc:
                raise ToolError(
                    f"{argv[0]} is not installed on this host.", hint="Install what `ramet doctor` lists."
                ) from exc
        try:
            async with asyncio.timeout(timeout_s), _following(err, on_error_line):
                code = await child.wait()
        except TimeoutError:
            raise DeadlineError(f"{argv[0]} did not end within {timeout_s:.0f} s.") from None
        finally:
            if child.returncode is None:
                await asyncio.shield(_end(child))
        if code:
            raise ToolError(f"{argv[0]} failed ({code}): {_tail(err) or _tail(out)}", argv=shlex.join(map(str, argv)))
        return out.read_text(errors="replace")
