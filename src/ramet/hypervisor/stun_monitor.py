"""A blocking QMP session for the time of a stun: pipelined, bounded, and awake to the daemon's end.

The asyncio session of the daemon is no use here: between `stop` and `cont` nothing may run that a guest would wait for.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import time
from typing import Any, Final

from ramet.errors import DeadlineError, QemuError, TaskCancelledError

_READ_BYTES: Final = 65536
_MAX_LINE_BYTES: Final = 32 << 20
_MIGRATION_ENDS: Final = frozenset({"completed", "failed", "cancelled"})

NO_WAKE: Final = -1


class MonitorLostError(QemuError):
    """The connection ended, or is of no use any more: QEMU died, or dropped us, or talks nonsense."""


class MonitorAbsentError(MonitorLostError):
    """Nobody listens: QEMU is gone."""


class Monitor:
    """One QMP connection. Not thread-safe; use it as a context manager."""

    def __init__(self, path: str, *, deadline: float, wake_fd: int = NO_WAKE) -> None:
        """Connect and negotiate. `deadline` (monotonic seconds) bounds every wait until it is changed; when `wake_fd`
        becomes readable every wait ends with TaskCancelledError.

        Raises MonitorAbsentError when nobody listens, DeadlineError.
        """
        self.path = path
        self.deadline = deadline
        self.wake_fd = wake_fd
        self._buffer = bytearray()
        self._replies: dict[int, dict[str, Any]] = {}
        self._last_id = 0
        self._migration = ""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._connect(path)
            self.call("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def _connect(self, path: str) -> None:
        self._socket.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            self._socket.connect(path)
        except TimeoutError as exc:
            raise DeadlineError("QEMU's monitor does not take the connection.") from exc
        except OSError as exc:
            raise MonitorAbsentError(f"QEMU's monitor cannot be reached: {exc.strerror}.") from exc
        self._socket.setblocking(False)
        while "QMP" not in self._read_message():
            pass

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, *commands: tuple[str, dict[str, Any]], fd: int | None = None) -> list[int]:
        """Send commands in one piece and return their ids. QEMU runs them in order, each after the one before."""
        ids = list(range(self._last_id + 1, self._last_id + 1 + len(commands)))
        self._last_id += len(commands)
        text = b"".join(
            json.dumps({"execute": name, "arguments": arguments, "id": number}).encode() + b"\n"
            for number, (name, arguments) in zip(ids, commands, strict=True)
        )
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        try:
            sent = self._socket.sendmsg([text], rights, socket.MSG_NOSIGNAL)
            while sent < len(text):
                self._wait(select.POLLOUT)
                sent += self._socket.send(text[sent:], socket.MSG_NOSIGNAL)
        except OSError as exc:
            raise MonitorLostError(f"QEMU's monitor is gone: {os.strerror(exc.errno or 0)}.") from exc
        return ids

    def reply(self, number: int) -> Any:
        """The answer to the command with that id. Raises QemuError with QEMU's own words when it was refused."""
        while number not in self._replies:
            self._keep_reply(self._read_message())
        message = self._replies.pop(number)
        if "error" in message:
            error = message["error"] if isinstance(message["error"], dict) else {}
            raise QemuError(f"QEMU refused: {error.get('desc')}.", error_class=error.get("class"))
        return message.get("return")

    def call(self, command: str, **arguments: Any) -> Any:
        """Send one command and wait for its answer."""
        return self.reply(self.send((command, arguments))[0])

    def migrate(self, uri: str) -> str:
        """Save the VM's state; how it ended: `completed`, `failed` or `cancelled`. The capability `events` must be on.

        Waiting for the event is quicker by a millisecond than asking again and again, which holds up QEMU's main loop.
        """
        self._migration = ""
        self.call("migrate", uri=uri)
        while self._migration not in _MIGRATION_ENDS:
            self._keep_reply(self._read_message())
        return self._migration

    def pause(self, seconds: float) -> None:
        """Wait without asking anything; ends as every wait does."""
        if time.monotonic() + seconds > self.deadline:
            raise DeadlineError("Time ran out.")
        self._poll(0, seconds)

    def _read_message(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise MonitorLostError("QEMU's monitor answered nonsense.") from exc
        if not isinstance(message, dict):
            raise MonitorLostError("QEMU's monitor answered nonsense.")
        if message.get("event") == "MIGRATION" and isinstance(data := message.get("data"), dict):
            self._migration = str(data.get("status"))
        return message

    def _keep_reply(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        if isinstance(number, int) and 0 < number <= self._last_id:
            self._replies[number] = message

    def _fill(self) -> None:
        self._wait(select.POLLIN)
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            raise MonitorLostError("QEMU's monitor is gone.") from exc
        if not data:
            raise MonitorLostError("QEMU closed its monitor.")
        self._buffer += data
        if len(self._buffer) > _MAX_LINE_BYTES:
            raise MonitorLostError("QEMU's monitor answers without end.")

    def _wait(self, events: int) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0 or not self._poll(events, left):
            raise DeadlineError("QEMU did not answer in time.")

    def _poll(self, events: int, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._socket, events)
        if self.wake_fd != NO_WAKE:
            poller.register(self.wake_fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(seconds * 1000)]
        if self.wake_fd in ready:
            raise TaskCancelledError("The stun was called off.")
        return bool(ready)
