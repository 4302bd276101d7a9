"""Follow a command in the guest: its output while it runs, its input, signals, and how it ended.

    async with follow(agent, ["make"], stdin=True) as command:
        await command.write(b"yes\\n"); await command.end_input(); await command.signal("INT")   # from other tasks
        async for piece in command.output():                                                  # until it has ended
            piece.stream, piece.data
        command.outcome

The stock agent hands over a command's output when it has ended. So in the guest the command writes into pipes that a
few processes of a shell script carry into small files (``files/exec/run``, ``files/exec/tend``), which are read here
with the agent's own commands, each short: others go in between. What the host has not read is bounded, the command
waits then. Everything in the guest is removed at the end; when the host vanishes, the guest does so by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ramet.errors import DeadlineError, GuestError, RametError, StateError, UsageError
from ramet.guest.agent import Agent, ExecOutcome
from ramet.guest.guestfiles import guest_file

Stream = Literal["stdout", "stderr"]
SIGNALS = ("HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "TSTP", "WINCH")

INPUT_PIECE_BYTES = 128 * 1024
_INPUTS_AHEAD = 4
_SEGMENT_BYTES = 4 << 20
"""More than this in one file was not written by our script."""
_BEGIN_S = 15.0
_END_S = 10.0
_ALIVE_EVERY_S = 5.0
_FIRST_POLL_S = 0.004
_LAST_POLL_S = 0.1
_SCRIPT_FAILED = 125


class OverdueError(DeadlineError):
    """The command took longer than it was given."""


@dataclass(frozen=True)
class Piece:
    stream: Stream
    data: bytes


class _Output:
    """One of the two outputs: the files that hold it, one after the other, up to the mark."""

    def __init__(self, agent: Agent, path: str, stream: Stream, mark: bytes) -> None:
        self._agent = agent
        self._path = path
        self._stream = stream
        self._mark = mark
        self._number = 0
        self._handle: int | None = None
        self._read = 0
        self._held = b""
        """The end of what was read, as long as it could be the beginning of the mark."""
        self.ended = False

    async def open(self) -> None:
        self._handle = await self._agent.open_file(f"{self._path}.0", "rb")

    async def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(RametError, OSError):
                await self._agent.close_file(handle)

    async def next(self) -> Piece | None:
        """What is there and was not yet read, at most 192 KiB; None when there is nothing now."""
        if self.ended or self._handle is None:
            return None
        chunk, _ = await self._agent.read_chunk(self._handle)
        if not chunk and self._read:
            chunk = await self._turn(self._handle)
        self._read += len(chunk)
        if self._read > _SEGMENT_BYTES:
            raise GuestError("The command's output is not what the guest was asked to write.")
        return self._without_mark(chunk) if chunk else None

    async def _turn(self, handle: int) -> bytes:
        """Go on with the next file if it is there, once nothing is left in this one. What was read on the way."""
        try:
            following = await self._agent.open_file(f"{self._path}.{self._number + 1}", "rb")
        except GuestError:
            return b""
        chunk, _ = await self._agent.read_chunk(handle)
        if chunk:  # written between our look and the end of the file: the next look finds the next file again
            await self._agent.close_file(following)
            return chunk
        await self._agent.close_file(handle)
        await _touch(self._agent, f"{self._path}.{self._number}.read")
        self._handle, self._number, self._read = following, self._number + 1, 0
        chunk, _ = await self._agent.read_chunk(following)
        return chunk

    def _without_mark(self, chunk: bytes) -> Piece | None:
        data = self._held + chunk
        at = data.find(self._mark)
        if at >= 0:
            self.ended, self._held = True, b""
            data = data[:at]
        else:
            data, self._held = _split_before(data, self._mark)
        return Piece(self._stream, data) if data else None


def _split_before(data: bytes, mark: bytes) -> tuple[bytes, bytes]:
    """What is surely not of the mark, and the end that may be its beginning."""
    for length in range(min(len(mark) - 1, len(data)), 0, -1):
        if data.endswith(mark[:length]):
            return data[:-length], data[-length:]
    return data, b""


async def _touch(agent: Agent, path: str) -> None:
    await agent.close_file(await agent.open_file(path, "wb"))


class Following:
    """A command that runs in the guest. Made by `follow`."""

    def __init__(self, agent: Agent, token: str, pid: int, stdin: bool) -> None:
        self._agent = agent
        self._token = token
        self._pid = pid
        self._stdin = stdin
        self._folder = ""
        self._control: int | None = None
        self._outputs: list[_Output] = []
        self._inputs = 0
        self._writing = asyncio.Lock()
        self.outcome: ExecOutcome | None = None
        """How the command ended, once `output` has; its own output is not in it."""

    async def output(self, *, timeout_s: float = math.inf) -> AsyncIterator[Piece]:
        """Everything it writes, as it comes, until it has ended. Raises what the agent's commands do.

        After `timeout_s` it raises `OverdueError`; the command is then killed at the end of the block.
        """
        loop = asyncio.get_running_loop()
        pause_s, alive_at, marked, over_at = _FIRST_POLL_S, loop.time(), False, loop.time() + timeout_s
        while not all(output.ended for output in self._outputs):
            if loop.time() > over_at:
                raise OverdueError(f"The command did not end within {timeout_s:g} s in the guest.")
            found = [piece for output in self._outputs if (piece := await output.next()) is not None]
            for piece in found:
                yield piece
            pause_s = _FIRST_POLL_S if found else min(pause_s * 1.5, _LAST_POLL_S)
            if self.outcome is None:
                self.outcome = await self._agent.ended(self._pid)
            if self.outcome is not None and not marked:
                marked, pause_s = True, _FIRST_POLL_S
                await self._say("end")
            if loop.time() - alive_at > _ALIVE_EVERY_S:
                alive_at = loop.time()
                await _touch(self._agent, f"{self._folder}/alive")
            if not found:
                await asyncio.sleep(pause_s)

    async def write(self, data: bytes) -> None:
        """Hand it to the command's standard input; waits while much is there that it did not read.

        What comes after the command's end is dropped. StateError when it was started without standard input.
        """
        if not self._stdin:
            raise StateError("The command was started without standard input.")
        async with self._writing:
            for at in range(0, len(data), INPUT_PIECE_BYTES):
                await self._write_piece(data[at : at + INPUT_PIECE_BYTES])

    async def _write_piece(self, piece: bytes) -> None:
        await _until(self._has_room)
        if self.outcome is not None:
            return
        await self._agent.write_file(f"{self._folder}/i.{self._inputs}", piece)
        await self._say(f"i {self._inputs}")
        self._inputs += 1

    async def _has_room(self) -> bool:
        """Is the piece of input gone that was written some before this one?"""
        oldest = self._inputs - _INPUTS_AHEAD
        return self.outcome is not None or oldest < 0 or not await _exists(self._agent, f"{self._folder}/i.{oldest}")

    async def end_input(self) -> None:
        """The command sees the end of its standard input."""
        async with self._writing:
            if self._stdin and self.outcome is None:
                await self._say("i end")

    @contextlib.asynccontextmanager
    async def feeding(self, data: bytes, *, end: bool) -> AsyncIterator[None]:
        """Inside, `data` is written beside what else is done: a command need not read before it writes."""
        if not data or not self._stdin:
            yield
            return
        task = asyncio.create_task(self._feed(data, end), name="standard input")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # what is wrong with the guest shows in its output as well

    async def _feed(self, data: bytes, end: bool) -> None:
        await self.write(data)
        if end:
            await self.end_input()

    async def signal(self, name: str) -> None:
        """Send a signal, like 'INT', to the command and all that it started. Nothing when it has ended."""
        if name not in SIGNALS:
            raise UsageError(f"There is no signal {name!r}.", hint=f"There are {', '.join(SIGNALS)}.")
        if self.outcome is None:
            await self._say(f"s {name}")

    async def _say(self, line: str) -> None:
        if self._control is not None:
            await self._agent.write_now(self._control, f"{line}\n".encode())

    # Begin and end

    async def begin(self) -> None:
        """Until the guest's side is there. GuestError when the command could not be started at all."""
        async with asyncio.timeout(_BEGIN_S):
            self._folder = await self._find_folder()
        self._control = await self._agent.open_file(f"{self._folder}/control", "r+b")
        mark = self._token.encode()
        pairs: tuple[tuple[str, Stream], ...] = (("o", "stdout"), ("e", "stderr"))
        self._outputs = [_Output(self._agent, f"{self._folder}/{name}", stream, mark) for name, stream in pairs]
        for output in self._outputs:
            await self._patiently(output.open)

    async def _find_folder(self) -> str:
        folders = [f"{base}/ramet-exec-{self._token}" for base in ("/run", "/tmp", "")]
        pause_s = _FIRST_POLL_S
        while True:
            outcome = self.outcome
            for folder in folders:
                if await _exists(self._agent, f"{folder}/here"):
                    return folder
            if outcome is not None:
                why = outcome.stderr.decode(errors="replace").strip()[-300:] or f"exit status {outcome.exit_code}"
                raise GuestError(f"The command could not be started in the guest: {why}.")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LAST_POLL_S)
            self.outcome = await self._agent.ended(self._pid)  # a short command: its folder is there all the same

    async def _patiently(self, act: Callable[[], Awaitable[None]]) -> None:
        """The script opens things one after the other: what is not there yet comes within moments."""
        async with asyncio.timeout(_BEGIN_S):
            while True:
                try:
                    return await act()
                except GuestError:
                    await asyncio.sleep(_FIRST_POLL_S)

    async def end(self) -> None:
        """Kill the command if it runs, leave nothing in the guest. What fails here, the guest does by itself."""
        with contextlib.suppress(RametError, OSError, TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._end()

    async def _end(self) -> None:
        if self._control is None:  # it never got so far
            if self.outcome is None:
                await self._agent.kill(self._pid)
            return
        if self.outcome is None:
            await self._say("s KILL")
            await _until(self._has_ended)
        await self._say("bye")
        for output in self._outputs:
            await output.close()
        handle, self._control = self._control, None
        await self._agent.close_file(handle)
        await _until(self._is_gone)

    async def _has_ended(self) -> bool:
        self.outcome = await self._agent.ended(self._pid)
        return self.outcome is not None

    async def _is_gone(self) -> bool:
        return not await _exists(self._agent, self._folder)  # an agent opens folders as well


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, a little less often each time."""
    pause_s = _FIRST_POLL_S
    while not await true():
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LAST_POLL_S)


async def _exists(agent: Agent, path: str) -> bool:
    try:
        handle = await agent.open_file(path, "rb")
    except GuestError:
        return False
    await agent.close_file(handle)
    return True


@contextlib.asynccontextmanager
async def follow(
    agent: Agent, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bool = False
) -> AsyncIterator[Following]:
    """Start a command; at the end of the block it is killed if it still runs, and nothing of it is left in the guest.

    Raises `GuestError`, `DeadlineError` and OSError as the agent does.
    """
    if not argv:
        raise UsageError("A command is needed.")
    token = secrets.token_hex(16)
    run, tend = (guest_file(f"exec/{name}").decode() for name in ("run", "tend"))
    script = ["/bin/sh", "-c", run, "run", tend, token, "1" if stdin else "0", *argv]
    following = Following(agent, token, await agent.spawn(script, env=env), stdin)
    try:
        try:
            await following.begin()
        except TimeoutError:
            raise DeadlineError("The command did not start in the guest.") from None
        yield following
    finally:
        await _to_the_end(following.end())


async def _to_the_end(work: Awaitable[None]) -> None:
    """Also when cancelled: the work is bounded, and the cancellation goes on after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
