"""Following commands in guests: their output as it comes, our input, Ctrl-C as a signal to them."""

from __future__ import annotations

import base64
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ramet.cli.output import Output
from ramet.errors import PeerError

if TYPE_CHECKING:
    from ramet.api.client import Client
    from ramet.model.execution import ExecEvent, FollowExec

PIECE_BYTES = 1 << 16
KEPT_BYTES = 16 << 20
"""Of each output, with --json."""
ESCALATION = ("INT", "TERM", "KILL")
"""What the first Ctrl-C sends, the second, the third."""


@dataclass
class Collected:
    """Where a command's output goes: to ours, or into memory for --json."""

    out: Output
    kept: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    truncated: bool = False

    def take(self, event: ExecEvent) -> None:
        if event.kind == "lost":
            self.truncated = True
            self.out.warn(f"{event.lost_bytes} bytes of the output were lost.")
        if event.kind not in ("stdout", "stderr"):
            return
        data = base64.b64decode(event.data_base64 or "")
        if self.out.as_json:
            room = KEPT_BYTES - len(self.kept[event.kind])
            self.kept[event.kind] += data[:room]
            self.truncated |= len(data) > room
        else:
            self.out.raw(data, error=event.kind == "stderr")

    def as_json(self) -> dict[str, Any]:
        """stdout and stderr as text, and as they are."""
        texts = {name: bytes(data).decode(errors="replace") for name, data in self.kept.items()}
        exact = {f"{name}_base64": base64.b64encode(data).decode() for name, data in self.kept.items()}
        return {**texts, **exact, "truncated": self.truncated}


def run(client: Client, ref: str, request: FollowExec, collected: Collected) -> ExecEvent:
    """Run a command to its end; its last event. Our standard input is handed on when the request says so."""
    begun: list[str] = []

    def interrupt(count: int) -> None:
        client.signal_exec(begun[0], ESCALATION[min(count, len(ESCALATION)) - 1])

    with interrupts(interrupt, ready=lambda: bool(begun), most=len(ESCALATION)):
        for event in client.follow_exec(ref, request):
            if event.kind == "started" and event.id:
                begun.append(event.id)
                if request.stdin:
                    _feed(client, event.id)
            collected.take(event)
            if event.kind == "exited":
                return event
    raise PeerError("The daemon ended the connection before the command had ended.")


def _feed(client: Client, exec_id: str) -> None:
    """Hand our input on, in a thread that ends with the program: nothing else ends a read of a terminal."""
    read = _reader()

    def feed() -> None:
        try:
            while data := read():
                client.write_exec(exec_id, data)
            client.write_exec(exec_id, b"", end=True)
        except Exception:  # the command has ended, or the connection: its followers are told
            return

    threading.Thread(target=feed, name="input", daemon=True).start()


def _reader() -> Callable[[], bytes]:
    """What is there, as soon as anything is. Not by a buffer, whose lock a thread would hold when the program ends."""
    try:
        fd = sys.stdin.fileno()
    except (OSError, ValueError):  # not a file
        return lambda: sys.stdin.buffer.read(PIECE_BYTES)
    return lambda: os.read(fd, PIECE_BYTES)


@contextmanager
def interrupts(act: Callable[[int], None], *, ready: Callable[[], bool], most: int) -> Iterator[None]:
    """Inside, Ctrl-C calls `act` with its count, in a thread: who waits for an answer goes on waiting for it.

    Not `ready`, or more than `most` times: an ordinary KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: queue.SimpleQueue[int] = queue.SimpleQueue()
    count = 0

    def press(signum: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count > most or not ready():
            raise KeyboardInterrupt
        pressed.put(count)

    worker = threading.Thread(target=_serve, args=(pressed, act), name="interrupts", daemon=True)
    worker.start()
    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        pressed.put(0)
        worker.join()


def _serve(pressed: queue.SimpleQueue[int], act: Callable[[int], None]) -> None:
    for number in _until_zero(pressed):
        try:
            act(number)
        except Exception:  # it has ended meanwhile: whoever follows it sees that
            continue


def _until_zero(pressed: queue.SimpleQueue[int]) -> Iterable[int]:
    while number := pressed.get():
        yield number
