"""``ramet forward``: a port of this host that leads into a guest."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from ramet.cli.bridge import sockets

MAX_CONNECTIONS = 128


class Forwarder:
    """Listens on loopback and bridges every connection to a stream of its own, in a thread of its own.

    Resource handling: `close` ends the listener and all connections and joins their threads.
    """

    def __init__(
        self, host: str, port: int, dial: Callable[[], socket.socket], complain: Callable[[str], None]
    ) -> None:
        """Raises OSError when the port is taken."""
        self._listener = socket.create_server((host, port), backlog=32)
        self._dial = dial
        self._complain = complain
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def serve(self) -> None:
        """Accept until closed or interrupted."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) >= MAX_CONNECTIONS:
                connection.close()
                continue
            thread = threading.Thread(target=self._carry, args=(connection,), name="forward")
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _carry(self, connection: socket.socket) -> None:
        with connection:
            try:
                stream = self._dial()
            except Exception as error:  # told to the user; the next connection may do better
                self._complain(str(error))
                return
            with stream:
                with self._lock:
                    self._open |= {connection, stream}
                try:
                    sockets(connection, stream)
                finally:
                    with self._lock:
                        self._open -= {connection, stream}
