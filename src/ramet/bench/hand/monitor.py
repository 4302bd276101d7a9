"""A QEMU monitor and a guest agent, spoken to from a plain program: blocking sockets, no event loop."""

from __future__ import annotations

import array
import base64
import json
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ramet.errors import DeadlineError, GuestError, QemuError

QMP_S = 120.0
"""For one command; with savevm among them, which writes all of a guest's memory."""
_AGENT_RETRY_S = 0.5
"""What is said to a guest that has not opened its port yet is lost."""
_CHUNK_BYTES = 192 * 1024


class Monitor:
    """QMP. Raises QemuError when QEMU refuses or is gone."""

    def __init__(self, path: Path) -> None:
        """`path` is bound already: QEMU answers when it is up."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(QMP_S)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")
        self._line()  # its greeting
        self("qmp_capabilities")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __call__(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        message = json.dumps({"execute": command, "arguments": arguments or {}}).encode()
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._socket.sendmsg([message], rights)
        while True:
            reply = self._line()
            if "error" in reply:
                raise QemuError(f"QEMU refused {command}: {reply['error'].get('desc')}.")
            if "return" in reply:
                return reply["return"]

    def _line(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except TimeoutError as exc:
            raise DeadlineError(f"QEMU did not answer within {QMP_S:.0f} s.") from exc
        if not line:
            raise QemuError("A QEMU that was started by hand has ended.")
        return dict(json.loads(line))

    def ignore_shared(self) -> None:
        """Leave RAM that is a shared file out of the device state, and let nothing throttle the rest."""
        self("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]})

    def save_state(self, fd: int) -> None:
        """Device state into a file. Returns when the VM may go on."""
        self("getfd", {"fdname": "state"}, fd=fd)
        self("migrate", {"uri": "fd:state"})
        while (migration := self("query-migrate"))["status"] != "completed":
            if migration["status"] == "failed":
                raise QemuError(f"QEMU did not save its state: {migration.get('error-desc')}.")
        while self("query-status")["status"] != "postmigrate":
            pass  # "completed" comes a moment earlier, and a cont in between aborts QEMU 7.2

    def load_state(self, fd: int) -> None:
        """The inverse; returns when the VM stands still, loaded."""
        self("getfd", {"fdname": "state"}, fd=fd)
        self("migrate-incoming", {"uri": "fd:state"})
        while self("query-status")["status"] == "inmigrate":
            pass

    def hmp(self, command: str) -> None:
        """A command for people, which says what went wrong in words."""
        if said := self("human-monitor-command", {"command-line": command}).strip():
            raise QemuError(f"{command}: {said}.")


class GuestAgent:
    """The guest agent behind a socket. A connection for each command: QEMU takes one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wait(self, timeout_s: float) -> None:
        """Until it answers. DeadlineError when it does not."""
        deadline = time.monotonic() + timeout_s
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._path))
            while (left_s := deadline - time.monotonic()) > 0:
                connection.settimeout(min(_AGENT_RETRY_S, left_s))
                try:
                    return _synchronise(connection)
                except TimeoutError:
                    continue  # on the same connection: QEMU takes one at a time, and a guest that boots keeps it busy
        raise DeadlineError(f"A guest's agent did not answer within {timeout_s:.0f} s.")

    def command(self, name: str, arguments: Mapping[str, Any] | None = None, timeout_s: float = 60.0) -> Any:
        with self._connected(timeout_s) as connection:
            _send(connection, name, arguments or {})
            answer = json.loads(_line(connection))
        if "return" not in answer:
            raise GuestError(f"The guest agent refused {name}: {answer.get('error')}.")
        return answer["return"]

    def run(self, script: str, timeout_s: float = 120.0) -> str:
        """A shell script in the guest; its output. Raises GuestError when it fails."""
        arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self.command("guest-exec", arguments)["pid"]
        deadline = time.monotonic() + timeout_s
        while not (status := self.command("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > deadline:
                raise DeadlineError(f"A script in the guest did not end within {timeout_s:.0f} s.")
            time.sleep(0.02)
        if status.get("exitcode") != 0:
            raise GuestError(f"A script in the guest failed: {script[:60]}")
        return base64.b64decode(status.get("out-data", "")).decode(errors="replace")

    def write(self, path: str, content: bytes) -> None:
        handle = self.command("guest-file-open", {"path": path, "mode": "wb"})
        for at in range(0, len(content), _CHUNK_BYTES):
            piece = base64.b64encode(content[at : at + _CHUNK_BYTES]).decode()
            self.command("guest-file-write", {"handle": handle, "buf-b64": piece})
        self.command("guest-file-close", {"handle": handle})

    def _connected(self, timeout_s: float) -> socket.socket:
        """In step with the agent, which answered: the caller closes."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(self._path))
            _synchronise(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _synchronise(connection: socket.socket) -> None:
    """Throw away what an earlier connection left, until the agent answers this one."""
    number = secrets.randbits(31)
    connection.sendall(b"\xff")
    _send(connection, "guest-sync-delimited", {"id": number})
    while f'"return": {number}'.encode() not in _line(connection):
        pass


def _send(connection: socket.socket, command: str, arguments: Mapping[str, Any]) -> None:
    message = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
    connection.sendall(json.dumps(message).encode() + b"\n")


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            raise GuestError("The connection to a guest's agent ended.")
        data += piece
    return data
