"""One way to run a helper program: bounded, drained, ended and reaped, whatever happens.

Every child gets a minimal environment, a session of its own, and dies with this process. Its output is read all the
time (a full pipe would stop it) and kept within bounds; QEMU's and guests' words are never let grow without limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final, TypeVar

from ramet.errors import DeadlineError, ToolError

log = logging.getLogger(__name__)

T = TypeVar("T")

Progress = Callable[[float], None]
"""Told percent, 0 to 100, growing. Called on the event loop; must not block or raise."""
OnOutput = Callable[[bytes], None]
"""Told each piece of stdout as it comes."""

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}
_CHUNK = 1 << 14
_DRAIN_S = 1.0
_MAX_LINE = 400


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use. None leaves it unlimited."""

    address_space_bytes: int | None = None
    cpu_s: int | None = None
    file_size_bytes: int | None = None
    background: bool = False
    """Lowest CPU priority, and the disk only as fair share of the lowest best-effort class (idle could starve)."""

    def prefix(self) -> tuple[str, ...]:
        """Programs of util-linux and coreutils that each set something and become the next: Python's pre-exec hook is
        unsafe in a process with threads. The death signal follows the thread that forked, here the event loop's."""
        bounds = {"--as": self.address_space_bytes, "--cpu": self.cpu_s, "--fsize": self.file_size_bytes}
        options = [f"{option}={value}" for option, value in bounds.items() if value is not None]
        nice = ("nice", "-n", "19", "ionice", "-c", "2", "-n", "7") if self.background else ()
        return (*nice, *(("prlimit", *options, "--") if options else ()), "setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True, slots=True)
class ToolResult:
    returncode: int
    """As the shell counts: 128 + number when a signal ended it."""
    stdout: bytes
    """Its first `stdout_limit` bytes."""
    stderr: str
    """Its last 64 KiB."""
    truncated: bool
    """stdout was longer."""


async def run_tool(
    argv: Sequence[str],
    *,
    timeout_s: float,
    progress: OnOutput | None = None,
    limits: Limits | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    accept: Sequence[int] = (0,),
    stdout_limit: int = 1 << 20,
    grace_s: float = 2.0,
) -> ToolResult:
    """Run a program to its end. stdin is empty; `pass_fds` keep their numbers, and stay open here.

    Raises ToolError (with the last line of its stderr) when it cannot be started or its exit code is not in `accept`,
    DeadlineError when `timeout_s` passes. On that and on cancellation it and its children get SIGTERM, after `grace_s`
    SIGKILL, and are gone when this returns; the cancellation goes on.
    """
    if shutil.which(argv[0], path=ENVIRONMENT["PATH"]) is None:
        raise ToolError(f"{argv[0]} is not installed.", hint="`ramet doctor` tells the package.", tool=argv[0])
    command = (*(limits or Limits()).prefix(), *argv)
    log.debug("run %s", shlex.join(argv))
    out, err = _Head(stdout_limit, progress), _Tail(1 << 16)
    child = _Child(command, argv[0], {**ENVIRONMENT, **(env or {})}, cwd, pass_fds)
    try:
        async with asyncio.timeout(timeout_s):
            await child.drain(out.feed, err.feed)
    except TimeoutError:
        raise DeadlineError(f"{argv[0]} did not end within {timeout_s:g} s.", tool=argv[0]) from None
    finally:
        code = await child.end(grace_s)
    log.debug("%s ended with %d", argv[0], code)
    if code not in accept:
        raise ToolError(
            f"{argv[0]} failed: {_last_line(err.text()) or f'exit code {code}'}", tool=argv[0], returncode=code
        )
    return ToolResult(code, bytes(out.data), err.text(), out.truncated)


async def in_thread(function: Callable[..., T], *args: object, undo: Callable[[T], object] | None = None) -> T:
    """Run a blocking function in a thread, and never return before it ended: a cancellation waits for it, then goes
    on, after `undo` of the result that nobody will see. For what cannot be cut short, and must not go on behind its
    owner's back."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is None:
        return running.result()
    if running.exception() is None and undo is not None:
        undo(running.result())
    raise cancelled


class _Head:
    """Keeps the beginning, passes everything on."""

    def __init__(self, limit: int, tell: OnOutput | None) -> None:
        self.data, self.truncated = bytearray(), False
        self._limit, self._tell = limit, tell

    def feed(self, chunk: bytes) -> None:
        room = self._limit - len(self.data)
        self.truncated |= len(chunk) > room
        self.data += chunk[:room]
        if self._tell is not None:
            self._tell(chunk)


class _Tail:
    """Keeps the end."""

    def __init__(self, limit: int) -> None:
        self._data, self._limit = bytearray(), limit

    def feed(self, chunk: bytes) -> None:
        self._data += chunk
        del self._data[: -self._limit]

    def text(self) -> str:
        return self._data.decode("utf-8", "replace")


class _Child:
    """A process with two pipes. Whoever makes one awaits `end`, which closes and reaps everything.

    Not asyncio's: its wait() lasts until the pipes are closed, by grandchildren too, and it reaps by itself, after
    which a process group's number may be another's.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None,
        pass_fds: Sequence[int],
    ) -> None:
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command, stdin=null, stdout=pipe, stderr=pipe, env=env, cwd=cwd, pass_fds=pass_fds,
                start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as exc:
            raise ToolError(f"{name} could not be started: {exc.strerror}.", tool=name) from exc
        self._pidfd = os.pidfd_open(self._process.pid)
        self._exited = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, self._exited.set)

    async def drain(self, out: Callable[[bytes], None], err: Callable[[bytes], None]) -> None:
        """Read both pipes until the process ended, and a moment longer: a stray grandchild may keep them open."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        async with asyncio.TaskGroup() as group:
            pipes = ((self._process.stdout, out), (self._process.stderr, err))
            readers = [group.create_task(_read(pipe, feed)) for pipe, feed in pipes]
            await self._exited.wait()
            await asyncio.wait(readers, timeout=_DRAIN_S)
            for reader in readers:
                reader.cancel()

    async def end(self, grace_s: float) -> int:
        """Leave nothing of its process group behind, and return its exit code. A cancellation meanwhile ends the
        grace, and goes on afterwards."""
        cancelled: asyncio.CancelledError | None = None
        if not self._exited.is_set():
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a stopped process takes no SIGTERM
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._exited.wait()
            except asyncio.CancelledError as exc:
                cancelled = exc
        self._signal(signal.SIGKILL)  # it, or children that outlived it; not reaped yet, so the number is still its own
        while not self._exited.is_set():
            try:
                await self._exited.wait()
            except asyncio.CancelledError as exc:
                cancelled = exc
        code = self._reap()
        if cancelled is not None:
            raise cancelled
        return code

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _reap(self) -> int:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        code = self._process.wait()
        return code if code >= 0 else 128 - code


async def _read(pipe: IO[bytes], feed: Callable[[bytes], None]) -> None:
    loop, stream = asyncio.get_running_loop(), asyncio.StreamReader(limit=_CHUNK)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    try:
        while chunk := await stream.read(_CHUNK):
            feed(chunk)
    finally:
        transport.close()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_MAX_LINE] if lines else ""
