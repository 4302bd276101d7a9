"""One stun helper process and the socket to it, as the daemon's event loop sees them. `StunHelper` owns these."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

import ramet
from ramet.errors import InternalError, RametError
from ramet.hypervisor.fork import ForkReply
from ramet.hypervisor.stun_plan import StunPlan
from ramet.hypervisor.stun_wire import FrameDecoder, Message, encode, receive, send_piece

_START_TIMEOUT_S: Final = 30.0
_KILL_TIMEOUT_S: Final = 10.0


class HelperLostError(InternalError):
    """The helper ended, or had to be ended, before it told how a stun went."""


@dataclass(slots=True, eq=False)
class Job:
    """A plan under way, and what the helper has told of it. `ended` gets its last message, or HelperLostError."""

    plan: StunPlan
    on_stopped: Callable[[], None]
    ended: asyncio.Future[Message] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    status_before: str = ""
    """The source's, once the helper is about to stop it; empty before."""
    forks: list[ForkReply] = field(default_factory=list)


class Link:
    """Made by `start`; dead once the helper closed its end. `end` reaps the process either way, and must be called."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, records: socket.socket) -> None:
        self.alive = True
        self._process = process
        self._socket = sock
        self._records = records
        self._decoder = FrameDecoder()
        self._record_decoder = FrameDecoder()
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(sock, self._on_readable)

    @classmethod
    async def start(cls, log_path: Path | None) -> Self:
        """Start a helper and wait until it is ready. Raises InternalError when it does not come up."""
        process, sock, records = await asyncio.to_thread(spawn, log_path)
        link = cls(process, sock, records)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await link._ready
        except BaseException as exc:
            await link.end(grace_s=0.0)
            if isinstance(exc, TimeoutError | HelperLostError):
                hint = f"Its log is {log_path}." if log_path else None
                raise InternalError("The stun helper did not start.", hint=hint) from exc
            raise
        return link

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, job: Job) -> None:
        """Send a plan; `job` is told the rest. Raises HelperLostError, PeerError when the plan is too large."""
        number = next(self._ids)
        plan, fds = job.plan.to_wire()
        pieces = list(encode({"id": number, "what": "stun", "plan": plan}, fds))
        if not self.alive:
            raise HelperLostError("The stun helper has ended.")
        self._jobs[number] = job
        self._outbox.extend((memoryview(data), batch) for data, batch in pieces)
        self._flush()

    def kill(self) -> None:
        """End a helper that hangs; its jobs are lost."""
        self._process.kill()
        self._lost()

    async def end(self, *, grace_s: float) -> None:
        """Let the helper finish what it can within `grace_s`, then kill it; wait for it and close everything."""
        try:
            if self._process.poll() is None and grace_s > 0:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(self._process.wait, grace_s)
        finally:
            self._process.kill()
            self._process.wait(_KILL_TIMEOUT_S)
            self._on_readable()  # what it still said
            self._lost()

    def _flush(self) -> None:
        try:
            while self._outbox:
                data, fds = self._outbox[0]
                sent = send_piece(self._socket, data, fds)
                self._outbox.popleft()
                if sent < len(data):
                    self._outbox.appendleft((data[sent:], ()))
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._lost()
            return
        self._loop.remove_writer(self._socket)

    def _on_readable(self) -> None:
        while self.alive:
            messages = _received(self._socket, self._decoder)
            if messages is None:
                self._lost()
                return
            if not messages:
                return
            for message, fds in messages:
                self._handle(message, fds)

    def _handle(self, message: Message, fds: list[int]) -> None:
        what, job = message.get("what"), self._jobs.get(message.get("id", 0))
        if what == "ready" and not self._ready.done():
            self._ready.set_result(None)
        elif what == "stopped" and job is not None:
            self._tell_stopped(job)
        elif what in ("done", "failed") and job is not None:
            self._read_records()
            del self._jobs[message["id"]]
            if not job.ended.done():
                job.ended.set_result(message)
        for fd in fds:
            os.close(fd)

    def _read_records(self) -> None:
        """Nobody waits for records: they are read when a stun has ended, or the helper has."""
        while messages := _received(self._records, self._record_decoder):
            for message, fds in messages:
                self._note(message, fds)

    def _note(self, message: Message, fds: list[int]) -> None:
        what, job = message.get("what"), self._jobs.get(message.get("id", 0))
        if what == "began" and job is not None:
            job.status_before = message["status"]
        elif what == "forked" and job is not None and fds:
            job.forks.append(ForkReply(message["pid"], fds.pop(), message["fork_ms"]))
        for fd in fds:
            os.close(fd)

    def _tell_stopped(self, job: Job) -> None:
        try:
            job.on_stopped()
        except Exception as exc:
            self._loop.call_exception_handler({"message": "draining at a stun failed", "exception": exc})

    def _lost(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._read_records()
        for sock, decoder in ((self._socket, self._decoder), (self._records, self._record_decoder)):
            sock.close()
            decoder.close()
        _fail(self._ready)
        for job in self._jobs.values():
            _fail(job.ended)
        self._jobs.clear()


def _fail(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(HelperLostError("The stun helper has ended."))
        future.exception()  # looked at here, so that one without a waiter is no warning


def _received(sock: socket.socket, decoder: FrameDecoder) -> list[tuple[Message, list[int]]] | None:
    """Whatever is there; None when nothing more will come, or only nonsense."""
    try:
        return receive(sock, decoder)
    except RametError:
        return None


def spawn(log_path: Path | None) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket]:
    """Start a helper: its process, and our ends of the socket for messages and of the one for records.

    Without site-packages and the working directory on its path: it needs the standard library and us.
    """
    package = Path(ramet.__file__).parent.parent
    argv = [sys.executable, "-S", "-P", "-m", "ramet.hypervisor.stun"]
    env = {"PYTHONPATH": os.fspath(package), "PATH": os.defpath}
    with contextlib.ExitStack() as always, contextlib.ExitStack() as on_failure:
        log: IO[bytes] | int = subprocess.DEVNULL
        if log_path is not None:
            log = always.enter_context(open(log_path, "ab"))
        (ours, theirs), (records, its_records) = socket.socketpair(), socket.socketpair()
        for sock in (theirs, its_records):
            always.enter_context(sock)
        for sock in (ours, records):
            on_failure.enter_context(sock)
            sock.setblocking(False)
        fds = [theirs.fileno(), its_records.fileno()]
        process = subprocess.Popen(
            [*argv, "--fd", str(fds[0]), "--record-fd", str(fds[1])],
            env=env,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        on_failure.pop_all()
        return process, ours, records
