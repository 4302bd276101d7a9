"""A source for stuns without QEMU: a monitor that behaves as QEMU's does, and the fork library's end of its protocol.

Each can be told what to do when a command comes: refuse it, drop the connection, die, or call back into the test.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from ramet.hypervisor import fork as wire
from ramet.hypervisor.fork import ForkRequest
from ramet.hypervisor.stun_plan import SnapshotStep, StunPlan

WAIT_S = 20.0


class RefuseError(Exception):
    """Raised by a hook: the command is answered with an error."""


class DropError(Exception):
    """Raised by a hook: the connection is closed, the command is not run; QEMU lives on."""


class DieError(Exception):
    """Raised by a hook: the process is gone, with its sockets."""


Hook = Callable[[], None]


def once(action: Hook) -> Hook:
    """Only the first command that comes is met by it; what comes to restore the source is not."""
    left = [action]

    def run() -> None:
        if left:
            left.pop()()

    return run


def failing(error: type[Exception]) -> Hook:
    def fail() -> None:
        raise error("said the test")

    return once(fail)


class Server:
    """A thread that accepts one connection after the other at a path."""

    def __init__(self, path: Path, kind: socket.SocketKind) -> None:
        self.hooks: dict[str, Hook] = {}
        self.dead = False
        self.failure: Exception | None = None
        self._stop = os.eventfd(0)
        self._listener = socket.socket(socket.AF_UNIX, kind)
        self._listener.bind(os.fspath(path))
        self._listener.listen(8)
        self.path = os.fspath(path)
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join(WAIT_S)
        self._listener.close()
        os.close(self._stop)
        assert not self._thread.is_alive()
        assert self.failure is None, self.failure

    def _accept(self) -> None:
        while not self.dead and self._readable(self._listener):
            connection, _ = self._listener.accept()
            with connection:
                try:
                    self.serve(connection)
                except (DropError, OSError):
                    pass
                except DieError:
                    self.dead = True
                    self._listener.close()
                except Exception as exc:
                    self.failure = exc

    def _readable(self, sock: socket.socket) -> bool:
        """Wait for something to read; False when the test is over."""
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        poller.register(self._stop, select.POLLIN)
        return self._stop not in [fd for fd, _ in poller.poll()]

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


class FakeQemu(Server):
    """Status, migration and block graph of a VM, changed by the same commands as QEMU's."""

    def __init__(self, path: Path, status: str = "running") -> None:
        super().__init__(path, socket.SOCK_STREAM)
        self.status = status
        self.migration = "none"
        self.blocked: list[str] = []
        self.commands: list[str] = []
        self.backing: list[tuple[str, str]] = []
        self.migration_ends = "completed"
        self.chatter: dict[str, bytes] = {}
        """A line to say once before the answer to a command."""
        self._state_fd = -1
        self._events: list[dict[str, Any]] = []

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if self._state_fd >= 0:
            os.close(self._state_fd)

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(b'{"QMP": {"version": {}}}\r\n')
        buffer = b""
        while self._readable(connection):
            data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(64))
            if not data:
                return
            for _, _, payload in ancillary:
                self._state_fd = array.array("i", payload)[0]
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                connection.sendall(self._answer(json.loads(line)))

    def _answer(self, message: dict[str, Any]) -> bytes:
        command, self._events = message["execute"], []
        self.commands.append(command)
        try:
            self.hooks.get(command, lambda: None)()
            handler = getattr(self, "do_" + command.replace("-", "_"), None)
            value = handler(**message.get("arguments", {})) if handler else {}
            reply: dict[str, Any] = {"return": value}
        except RefuseError as exc:
            reply = {"error": {"class": "GenericError", "desc": str(exc)}}
        said = self.chatter.pop(command, b"")
        messages = [*self._events[:1], {**reply, "id": message["id"]}, *self._events[1:]]
        return (said + b"\n" if said else b"") + b"".join(json.dumps(m).encode() + b"\r\n" for m in messages)

    def do_query_status(self) -> dict[str, Any]:
        return {"status": self.status, "running": self.status == "running"}

    def do_query_migrate(self) -> dict[str, Any]:
        return {"status": self.migration, **({"blocked-reasons": self.blocked} if self.blocked else {})}

    def do_stop(self) -> None:
        if self.status == "running":
            self.status = "paused"

    def do_transaction(self, actions: list[dict[str, Any]]) -> None:
        assert self.status == "paused"
        self.backing += [(a["data"]["overlay"], a["data"]["node"]) for a in actions]

    def do_migrate(self, uri: str) -> None:
        """`migration_ends` "active": it does not end until it is cancelled."""
        assert (uri, self.status) == ("fd:ramet-state", "paused")
        self.migration = self.migration_ends
        self._events = [{"event": "MIGRATION", "data": {"status": s}} for s in ("setup", "active", self.migration)]
        if self.migration == "completed":
            os.write(self._state_fd, b"state")
            self.status = "postmigrate"

    def do_migrate_cancel(self) -> None:
        assert self.migration == "active"
        self.migration = "cancelled"

    def do_cont(self) -> None:
        assert self.status in ("paused", "postmigrate"), self.status
        assert self.migration not in ("active", "setup")
        self.status = "running"

    def do_x_debug_query_block_graph(self) -> dict[str, Any]:
        names = sorted({name for pair in self.backing for name in pair})
        edges = [{"parent": names.index(o), "child": names.index(n), "name": "backing"} for o, n in self.backing]
        return {"nodes": [{"id": i, "type": "block-driver", "name": n} for i, n in enumerate(names)], "edges": edges}


class FakeForkLibrary(Server):
    """Answers FORK as ``native/server.c`` does; the child is a real process, so that its end can be seen."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, socket.SOCK_SEQPACKET)
        self.children: list[subprocess.Popen[bytes]] = []
        self.requests: list[tuple[bytes, int]] = []

    def __exit__(self, *exc: object) -> None:
        try:
            super().__exit__(*exc)
        finally:
            for child in self.children:
                child.kill()
                child.wait()

    def serve(self, connection: socket.socket) -> None:
        while self._readable(connection):
            packet, ancillary, _, _ = connection.recvmsg(wire.MAX_PACKET_BYTES, socket.CMSG_SPACE(4 * 253))
            if not packet:
                return
            fds = [fd for _, _, payload in ancillary for fd in array.array("i", payload)]
            for fd in fds:
                os.close(fd)
            self.requests.append((packet, len(fds)))
            self._fork(connection)

    def _fork(self, connection: socket.socket) -> None:
        try:
            self.hooks.get("fork", lambda: None)()
        except RefuseError as exc:
            connection.send(self._reply(wire.FORKED, 12, str(exc).encode()))
            return
        child = subprocess.Popen(["sleep", "60"])
        self.children.append(child)
        pidfd = os.pidfd_open(child.pid)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))]
        try:
            connection.sendmsg([self._reply(wire.FORKED, 0, b"", child.pid, 1_500_000)], rights)
        except OSError:
            child.kill()
            raise
        finally:
            os.close(pidfd)
        try:
            self.hooks.get("leap", lambda: None)()
        except RefuseError as exc:
            child.kill()
            connection.send(self._reply(wire.LEAPT, 8, str(exc).encode()))
            return
        connection.send(self._reply(wire.LEAPT, 0, b"", 900_000))

    @staticmethod
    def _reply(kind: int, error: int, reason: bytes, *values: int) -> bytes:
        padded = (*values, *[0] * (6 - len(values)))
        return wire._REPLY.pack(wire.MAGIC, wire.VERSION, kind, error, len(reason), *padded) + reason

    def alive(self) -> list[int]:
        return [child.pid for child in self.children if child.poll() is None]

    def assert_no_child(self) -> None:
        wait_until(lambda: self.alive() == [], "children end")


class Source:
    """Both ends of one fake source, and plans for it."""

    def __init__(self, directory: Path, name: str = "vm") -> None:
        self.qemu = FakeQemu(directory / f"{name}.stun")
        self.library = FakeForkLibrary(directory / f"{name}.fork")
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        self.qemu.__enter__()
        self.library.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.library.__exit__(*exc)
        self.qemu.__exit__(*exc)
        for fd in self._fds:
            os.close(fd)

    def state_fd(self) -> int:
        self._fds.append(os.memfd_create("state"))
        return self._fds[-1]

    def request(self, name: str = "child", fds: int = 3, env: dict[str, str] | None = None) -> ForkRequest:
        handed = [os.open("/dev/null", os.O_RDWR) for _ in range(fds)]
        self._fds += handed
        return ForkRequest(("/bin/true", "-name", name), env or {"A": "b"}, tuple(handed), name)

    def plan(self, **changes: Any) -> StunPlan:
        given: dict[str, Any] = {
            "qmp_path": self.qemu.path,
            "fork_path": self.library.path,
            "state_fd": self.state_fd(),
            "snapshots": (SnapshotStep("base", "overlay"),),
            "forks": (self.request(),),
            "bound_ms": 10_000.0,
        }
        return StunPlan(**{**given, **changes})


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """For what other processes do, and nobody tells us of."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    try:
        yield fd
    finally:
        os.close(fd)


class Told:
    """What a stun has told the daemon; descriptors are kept open as the daemon would."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, what: str, fields: dict[str, Any], handed: Sequence[int] = (), /) -> None:
        self.messages.append((what, fields))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.messages]

    def fields(self, what: str) -> dict[str, Any]:
        return next(fields for name, fields in self.messages if name == what)
