"""Carrying bytes between descriptors: ssh's tunnel, forwarded ports, the console.

Our own stdin and stdout stay blocking, as their settings are shared with the shell that started us: a write
there happens only when poll says that it will not block, and takes at most what a pipe takes at once. Sockets
are our own and do not block.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import termios
import tty
from collections.abc import Callable, Iterator, Sequence

CHUNK = 65536
PIPE_ATOMIC = 4096
"""A pipe that polls writable takes this much without blocking."""

Filter = Callable[[bytes], bytes | None]
"""Sees what is read; None ends the bridge."""


class Flow:
    """One direction, with at most one chunk in hand. `at_end` is called once, when the last byte is written."""

    def __init__(
        self,
        source: int,
        sink: int,
        at_end: Callable[[], None] = lambda: None,
        *,
        bite: int = CHUNK,
        look: Filter | None = None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._at_end = at_end
        self._bite = bite
        self._look = look
        self._held = b""
        self._reading = True
        self.escaped = False

    @property
    def active(self) -> bool:
        return self._reading or bool(self._held)

    def wants(self) -> tuple[int, int]:
        """The descriptor and the poll event it waits for now."""
        return (self._sink, select.POLLOUT) if self._held else (self._source, select.POLLIN)

    def step(self) -> None:
        """Read or write once, as `wants` said. Raises OSError when the sink is broken."""
        with contextlib.suppress(BlockingIOError):
            if self._held:
                self._held = self._held[os.write(self._sink, self._held[: self._bite]) :]
            else:
                self._read()
        if not self.active:
            self._at_end()

    def _read(self) -> None:
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            raise
        except OSError:  # a reset connection, a terminal that hung up: the end
            data = b""
        seen = self._look(data) if self._look and data else data
        if seen is None:
            self.escaped = True
        self._held = seen or b""
        self._reading = bool(data) and seen is not None


def run(flows: Sequence[Flow], done: Callable[[], bool]) -> None:
    """Carry until `done`. OSError of a broken sink passes."""
    while not done():
        waiting = {flow.wants(): flow for flow in flows if flow.active}
        masks: dict[int, int] = {}
        for fd, event in waiting:
            masks[fd] = masks.get(fd, 0) | event
        poll = select.poll()
        for fd, mask in masks.items():
            poll.register(fd, mask)
        for fd, happened in poll.poll():
            for event in (select.POLLIN, select.POLLOUT):
                flow = waiting.get((fd, event))
                if flow is not None and happened & (event | select.POLLHUP | select.POLLERR | select.POLLNVAL):
                    flow.step()


def stdio(stream: socket.socket, stdin: int = 0, stdout: int = 1, look: Filter | None = None) -> None:
    """Between our stdin and stdout and a stream, until the stream ends or `look` escapes."""
    stream.setblocking(False)
    inward = Flow(stdin, stream.fileno(), _half_close(stream), look=look)
    outward = Flow(stream.fileno(), stdout, bite=PIPE_ATOMIC)
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        run([inward, outward], lambda: inward.escaped or not outward.active)


def sockets(left: socket.socket, right: socket.socket) -> None:
    """Between two sockets, half-closes included, until both directions have ended. The caller closes them."""
    left.setblocking(False)
    right.setblocking(False)
    flows = [
        Flow(left.fileno(), right.fileno(), _half_close(right)),
        Flow(right.fileno(), left.fileno(), _half_close(left)),
    ]
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        run(flows, lambda: not any(flow.active for flow in flows))


def _half_close(sock: socket.socket) -> Callable[[], None]:
    """Tells the peer that no more will be written."""

    def close() -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    return close


def escape_at(key: int) -> Filter:
    """A filter that ends the bridge at a key, like Ctrl-]."""
    return lambda data: None if key in data else data


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Every key goes through as it is, Ctrl-C too; the terminal's settings come back afterwards."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
