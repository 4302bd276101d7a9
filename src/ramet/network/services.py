"""Programs that serve the namespace (dnsmasq, pasta): started once, kept running, found again after a restart.

They outlive the daemon on purpose: running guests keep their addresses, names and connections while the daemon
is being replaced. The next daemon finds them by an argument that only they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import signal
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.errors import DeadlineError, ToolError, UnsupportedError
from ramet.model.cancellation import to_its_end, uncut
from ramet.network.namespace import TOOL_PATH

logger = logging.getLogger(__name__)

SERVICE_USERS = ("dnsmasq", "nobody")
"""Whom dnsmasq and pasta become once they have started as root."""

_POLL_S = 0.01
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 30.0
_STABLE_S = 60.0
_CMDLINE_BYTES = 65536

Spawn = Callable[["ServiceSpec"], Coroutine[Any, Any, int]]
Ready = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class ServiceSpec:
    """What to run. Only this service of this daemon is a `program` with an argument that begins with `mark`; a
    running one is taken over when it has the argument `exact` too, and replaced otherwise."""

    name: str
    program: str
    argv: tuple[str, ...]
    mark: str
    exact: str
    log: Path


def find_program(name: str, package: str) -> str:
    """Absolute path of a program. Raises UnsupportedError with the remedy."""
    path = shutil.which(name, path=TOOL_PATH)
    if path is None:
        raise UnsupportedError(f"{name} is not installed.", hint=f"Install it: apt-get install {package}.")
    return path


def spawn_detached(spec: ServiceSpec) -> int:
    """Start the program in a session of its own, in the calling thread's namespace; its pid.

    Its output goes to its log, which is begun anew: the log stays small, and no pipe needs a reader.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return os.posix_spawn(
        spec.argv[0],
        spec.argv,
        {"PATH": TOOL_PATH, "LC_ALL": "C"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, spec.log, flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM),
    )


def find_running(program: str, mark: str, processes: Path = Path("/proc")) -> dict[int, list[str]]:
    """pid -> arguments, of every `program` with an argument that begins with `mark`.

    Anybody may give a process such arguments: only those of root and of the services' own users count.
    """
    found = {}
    trusted = _service_uids()
    for entry in processes.iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError), (entry / "cmdline").open("rb") as file:
            arguments = file.read(_CMDLINE_BYTES).decode(errors="replace").split("\0")
            named = os.path.basename(arguments[0]) == program and any(item.startswith(mark) for item in arguments)
            if named and entry.stat().st_uid in trusted:
                found[int(entry.name)] = arguments
    return found


def _service_uids() -> set[int]:
    uids = {0, os.geteuid()}
    for user in SERVICE_USERS:
        with contextlib.suppress(KeyError):
            uids.add(pwd.getpwnam(user).pw_uid)
    return uids


class Child:
    """A process held by a pidfd: signals cannot meet another process that got its number.

    Resource handling: `close` lets go of it, alive or not.
    """

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    async def wait(self) -> None:
        """Until the process ends; it is reaped when it is ours. One waiter at a time."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._fd, _resolve, ended)
        try:
            await ended
        finally:
            loop.remove_reader(self._fd)
        self._reap()

    def _reap(self) -> None:
        # After a restart of the daemon it is init's child, and init reaps it.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)

    async def end(self, timeout_s: float = 3.0) -> None:
        """TERM, then KILL after `timeout_s`, and wait for it."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            async with asyncio.timeout(timeout_s):
                await self.wait()

    def close(self) -> None:
        os.close(self._fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Service:
    """One supervised program: restarted with growing pauses when it ends by itself.

    Life: `start`, then either `stop` (the program ends) or `release` (it goes on without us).
    """

    def __init__(self, spec: ServiceSpec, spawn: Spawn, ready: Ready, start_timeout_s: float = 20.0) -> None:
        self.spec = spec
        self.problem: str | None = None
        self._spawn = spawn
        self._ready = ready
        self._start_timeout_s = start_timeout_s
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self, *, insist: bool = False) -> None:
        """Take over the one that runs, or start it and wait until it serves.

        Raises ToolError with its last words, or DeadlineError; with `insist`, tries again and again in the background
        instead, and `problem` says so meanwhile.
        """
        try:
            self._child = await self._take_over() or await self._launch()
        except (ToolError, DeadlineError, OSError) as exc:
            if not insist:
                raise
            self.problem = str(exc)
            logger.warning("%s; it is tried again", self.problem)
        self._task = asyncio.create_task(self._supervise(), name=f"service {self.spec.name}")

    async def _take_over(self) -> Child | None:
        kept: Child | None = None
        for pid, arguments in (await self._find()).items():
            try:
                child = Child(pid)
            except ProcessLookupError:
                continue
            # The number may have been reused between reading /proc and opening the pidfd: look again.
            if pid not in await self._find():
                child.close()
            elif self.spec.exact in arguments and kept is None and await self._ready():
                kept = child
            else:
                await _end_and_close(child)
        return kept

    async def _find(self) -> dict[int, list[str]]:
        return await asyncio.to_thread(find_running, self.spec.program, self.spec.mark)

    async def _launch(self) -> Child:
        # A thread starts it: whoever were cancelled meanwhile would leave a program that nobody knows of.
        pid, cancelled = await to_its_end(self._spawn(self.spec))
        child = Child(pid)
        try:
            if cancelled:
                raise asyncio.CancelledError
            await self._wait_ready(child)
        except BaseException:
            await _end_and_close(child)
            raise
        return child

    async def _wait_ready(self, child: Child) -> None:
        ended = asyncio.ensure_future(child.wait())
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while not await self._ready():
                    if ended.done():
                        raise ToolError(f"{self.spec.name} did not start: {self._last_words()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as exc:
            words = self._last_words()
            raise DeadlineError(f"{self.spec.name} was not ready after {self._start_timeout_s:g} s: {words}") from exc
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError), self.spec.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2048))
            lines = file.read(2048).decode(errors="replace").strip().splitlines()
            return "; ".join(lines[-3:])[-400:] or "it said nothing"
        return "it left no log"

    async def _supervise(self) -> None:
        pause_s = _FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            if self._child is not None:
                await self._child.wait()
                self.problem = f"{self.spec.name} ended by itself: {self._last_words()}"
                logger.warning("%s; it is started again", self.problem)
                self._child.close()
                self._child = None
            pause_s = _FIRST_BACKOFF_S if loop.time() - started > _STABLE_S else min(pause_s * 2, _LONGEST_BACKOFF_S)
            await asyncio.sleep(pause_s)
            try:
                self._child = await self._launch()
                self.problem = None
            except (ToolError, DeadlineError, OSError) as exc:
                self.problem = str(exc)

    async def stop(self) -> None:
        """End the program and its supervision; idempotent."""
        await self._end_supervision()
        if self._child is not None:
            child, self._child = self._child, None
            await _end_and_close(child)

    async def release(self) -> None:
        """Let the program go on without us."""
        await self._end_supervision()
        if self._child is not None:
            self._child.close()
            self._child = None

    async def _end_supervision(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


Make = Callable[[], Awaitable[Service]]


async def serve(services: MutableMapping[str, Service], key: str, make: Make, *, insist: bool = False) -> None:
    """Have what `make` makes run as the service under `key`; one that runs there with the same specification stays.

    To its end, though the caller be cancelled: those served by the one that is replaced, whose files `make` may
    replace, would be left without. Raises what `make` does, and what `Service.start` does: then none runs.
    """
    await uncut(_serve(services, key, make, insist=insist))


async def _serve(services: MutableMapping[str, Service], key: str, make: Make, *, insist: bool) -> None:
    service, running = await make(), services.get(key)
    if running is not None:
        if running.spec == service.spec:
            return
        del services[key]
        await running.stop()
    await service.start(insist=insist)
    services[key] = service


async def _end_and_close(child: Child) -> None:
    try:
        await child.end()
    finally:
        child.close()


async def end_all(program: str, mark: str) -> None:
    """End every `program` with an argument that begins with `mark`, whichever daemon started it."""
    for pid in await asyncio.to_thread(find_running, program, mark):
        with contextlib.suppress(ProcessLookupError):
            await _end_and_close(Child(pid))
