"""HTTP over a Unix socket: errors in httpx's words, and no connection that is left to the garbage collector."""

from __future__ import annotations

import gc
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from ramet.api.unix_http import UnixTransport
from ramet.api.wire import Wire
from ramet.errors import DeadlineError, PeerError

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@contextmanager
def no_leak() -> Iterator[None]:
    """A warning of a socket that was not closed would be an unraisable exception, of whichever test runs then."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(one.message) for one in told] == []


@contextmanager
def serving(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Each connection is given to `serve`, one after the other, and closed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    conn = listener.accept()[0]
                except OSError:
                    return
                with conn, suppress(OSError):  # the client may be gone
                    serve(conn)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)


@pytest.fixture(params=["none", "dead", "no socket"])
def nobody(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path at which nobody listens."""
    path = tmp_path / "api.sock"
    if request.param == "dead":
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    elif request.param == "no socket":
        path.write_text("")
    return path


def test_a_refused_connection_leaves_nothing_open(nobody: Path) -> None:
    with no_leak():
        wire = Wire(nobody, 5.0)
        assert list(wire.lines("/x", {})) == []
        with pytest.raises(PeerError, match="does not answer"):
            wire.json("GET", "/x")
        wire.close()


def test_a_connection_is_kept_and_made_anew_when_the_other_side_closed_it(tmp_path: Path) -> None:
    asked = []

    def serve(conn: socket.socket) -> None:
        for _ in range(2):
            asked.append(conn.recv(65536)[:6])
            conn.sendall(ANSWER)

    with no_leak(), serving(tmp_path / "s", serve):
        wire = Wire(tmp_path / "s", 20.0)
        for _ in range(5):
            assert wire.json("GET", "/x") == {}
        wire.close()
    assert asked[:5] == [b"GET /x"] * 5


def test_silence_and_a_broken_connection_are_told_apart(tmp_path: Path) -> None:
    silent = threading.Event()

    def serve(conn: socket.socket) -> None:
        if conn.recv(65536).startswith(b"GET /silent"):
            silent.wait(20)
        conn.sendall(ANSWER[:20])

    with no_leak(), serving(tmp_path / "s", serve):
        wire = Wire(tmp_path / "s", 0.05)
        with pytest.raises(DeadlineError):
            wire.json("GET", "/silent")
        silent.set()
        with pytest.raises(PeerError):
            Wire(tmp_path / "s", 20.0).json("GET", "/broken")
        wire.close()


def test_a_large_body_goes_through(tmp_path: Path) -> None:
    received = bytearray()

    def serve(conn: socket.socket) -> None:
        while len(received) < 5 << 20:
            received.extend(conn.recv(1 << 20))
        conn.sendall(ANSWER)

    with no_leak(), serving(tmp_path / "s", serve), httpx.Client(transport=UnixTransport(str(tmp_path / "s"))) as http:
        assert http.put("http://x/", content=b"x" * (5 << 20), timeout=20).status_code == 200
