"""Programs under the library, and forks of them: what the tests of the native room share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.hypervisor.fork import (
    ZYGOTE,
    ForkClient,
    ForkReply,
    ForkRequest,
    NativePaths,
    create_ram,
    environment,
    listen_control,
)

NATIVE = Path(__file__).resolve().parents[3] / "native"
PROGRAMS = Path(__file__).resolve().parent / "programs"
LIBRARY_SOURCES = ("ram.c", "server.c", "fork.c", "zygote.c", "layout.c", "request.c", "leap_x86_64.S")
WARNINGS = ("-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-Werror")
TIMEOUT_S = 20.0
RAM_BYTES = 8 << 20


def compile_c(target: Path, *arguments: str) -> Path:
    """Compiles with every warning an error. Raises CalledProcessError with the compiler's words on stderr."""
    subprocess.run(["cc", *WARNINGS, "-o", os.fspath(target), *arguments], check=True, timeout=TIMEOUT_S * 3)
    return target


class Lines:
    """One end of a socket pair that is another program's stdin and stdout: a line out, a line back."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(TIMEOUT_S)
        self._socket = end
        self._file = end.makefile("rw", encoding="utf-8")

    def read(self) -> str:
        return self._file.readline().strip()

    def ask(self, line: str) -> str:
        self._file.write(line + "\n")
        self._file.flush()
        return self.read()

    def number(self, line: str) -> int:
        return int(self.ask(line))

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@dataclass
class Process:
    """A running guest program, launched or forked. `hello` is its first line."""

    pid: int
    pidfd: int
    control: Path
    stderr: Path
    lines: Lines
    hello: str = ""
    fork_ms: float = 0.0

    def ask(self, line: str) -> str:
        return self.lines.ask(line)

    def number(self, line: str) -> int:
        return self.lines.number(line)

    def proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text(encoding="utf-8", errors="replace")

    def fds(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/fd"))

    def connect(self) -> ForkClient:
        return ForkClient.connect(self.control, TIMEOUT_S)

    def wait(self) -> int:
        """Reaps; the exit status, or minus the signal."""
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        assert result is not None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Kills and reaps, when somebody has not yet. Closes all."""
        self.lines.close()
        try:
            self.kill()
            self.wait()
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.pidfd)


@dataclass(frozen=True)
class Handed:
    """What a program gets from us: our copies, closed when it has its own."""

    ram: int
    log: int
    listener: socket.socket
    line: socket.socket
    ours: socket.socket
    control: Path
    log_path: Path


class Nursery:
    """Launches and forks guest programs in `directory`, and leaves none behind. Use as a context manager."""

    def __init__(self, directory: Path, paths: NativePaths, program: Path) -> None:
        self.directory = directory
        self.paths = paths
        self.program = program
        self._count = 0
        self._all: dict[int, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in list(self._all.values()):
            self.end(process)

    def end(self, process: Process) -> None:
        del self._all[process.pid]
        process.end()

    def launch(self, *, ram_bytes: int = RAM_BYTES, user: int | None = None, program: Path | None = None) -> Process:
        """Starts the program under the library and waits until it has its RAM."""
        with self._handed(ram_bytes) as handed:
            child = subprocess.Popen(
                [os.fspath(program or self.program), "launched"],
                env=environment(
                    self.paths, ram_fd=handed.ram, control_fd=handed.listener.fileno(), owner_uid=os.getuid()
                ),
                stdin=handed.line.fileno(),
                stdout=handed.line.fileno(),
                stderr=handed.log,
                pass_fds=[handed.ram, handed.listener.fileno()],
                user=user,
            )
            child.returncode = 0  # reaped by `Process.end`, not by Popen
            process = self._process(ForkReply(child.pid, os.pidfd_open(child.pid), 0.0), handed)
        return self._greet(process)

    def fork(
        self,
        source: Process | ForkClient,
        *,
        ram_bytes: int = RAM_BYTES,
        program: Path | None = None,
        env: dict[str, str] | None = None,
        greet: bool = True,
    ) -> Process:
        """Forks the program again over the RAM of `source`, and waits until it has adopted it."""
        with ExitStack() as stack:
            handed = stack.enter_context(self._handed(ram_bytes))
            client = source if isinstance(source, ForkClient) else stack.enter_context(source.connect())
            request = ForkRequest(
                argv=(os.fspath(program or self.program), "forked", f"number {self._count}"),
                env={**environment(self.paths, ram_fd=3, control_fd=4, owner_uid=os.getuid()), **(env or {})},
                fds=(handed.line.fileno(), handed.line.fileno(), handed.log, handed.ram, handed.listener.fileno()),
                name=f"guest-{self._count}",
            )
            process = self._process(client.fork(request), handed)
        return self._greet(process) if greet else process

    def hold(self, source: Process) -> Process:
        """Forks a holder over the RAM of `source`. Nothing is said over its lines."""
        return self.fork(source, program=self.paths.holder, greet=False)

    def zygote(self, source: Process, program: Path | None = None) -> Process:
        """Forks the program over the RAM of `source`, to wait before its main. Nothing is said over its lines."""
        return self.fork(source, program=program, env={ZYGOTE: "1"}, greet=False)

    def _process(self, reply: ForkReply, handed: Handed) -> Process:
        lines = Lines(handed.ours.dup())
        process = Process(reply.pid, reply.pidfd, handed.control, handed.log_path, lines, fork_ms=reply.fork_ms)
        self._all[process.pid] = process
        return process

    def _greet(self, process: Process) -> Process:
        process.hello = process.lines.read()
        assert process.hello.startswith("ready"), process.stderr.read_text()
        return process

    @contextmanager
    def _handed(self, ram_bytes: int) -> Iterator[Handed]:
        self._count += 1
        control, log_path = self.directory / f"{self._count}.fork", self.directory / f"{self._count}.log"
        with ExitStack() as stack:
            ram = create_ram(ram_bytes)
            stack.callback(os.close, ram)
            log = os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            stack.callback(os.close, log)
            listener = stack.enter_context(listen_control(control))
            ours, theirs = socket.socketpair()
            yield Handed(ram, log, listener, stack.enter_context(theirs), stack.enter_context(ours), control, log_path)


def raw_packets(path: Path, packet: bytes, fds: tuple[int, ...] = ()) -> bytes:
    """Sends one packet as it is; the answer, b"" when the library hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(TIMEOUT_S)
        s.connect(os.fspath(path))
        socket.send_fds(s, [packet], fds) if fds else s.send(packet)
        return s.recv(4096)
