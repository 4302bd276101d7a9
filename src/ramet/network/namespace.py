"""The daemon's own network namespace, and a thread that lives in it.

The namespace is named in /run/netns, as `ip netns` does it, so that it survives the daemon (the VMs' taps
are in it, and VMs outlive the daemon) and a person can look inside with `ip netns exec`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ramet.errors import DeadlineError, InternalError, ToolError
from ramet.network import kernel
from ramet.network.links import Links

NAMES = Path("/run/netns")
TOOL_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

_PATIENCES_S = (0.1, 0.2, 0.4)
"""Of the first attempts to connect. The kernel sends its first SYN again after a whole second, and a clone's is lost
when it comes between the lease, with which dnsmasq tells the host its MAC, and the guest's taking the address. What is
given up was never accepted by the guest: a late answer to it is refused."""

T = TypeVar("T")


def namespace_name(state_dir: Path) -> str:
    """One namespace for each state directory: two daemons side by side never meet."""
    return "ramet-" + hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:8]


class Namespace:
    """A named network namespace. All methods block for less than a millisecond and need CAP_SYS_ADMIN."""

    def __init__(self, name: str, names: Path = NAMES) -> None:
        self.name = name
        self.path = names / name

    def exists(self) -> bool:
        """Whether a namespace is mounted at the name; a plain file there is what a crash left."""
        try:
            return self.path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
        except FileNotFoundError:
            return False

    def ensure(self) -> bool:
        """Make the namespace if there is none; True when it was made now. The caller's thread stays where it is."""
        if self.exists():
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        in_own_thread(self._make)
        return True

    def _make(self) -> None:
        kernel.unshare_network()
        kernel.bind_mount(Path("/proc/thread-self/ns/net"), self.path)

    def remove(self) -> None:
        """Take the name away; idempotent. The kernel ends the namespace with its last process and descriptor."""
        while self.exists():
            kernel.unmount(self.path)
        self.path.unlink(missing_ok=True)


def in_own_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread made for it, so that what it does to its thread's namespace ends with it."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:
            future.set_exception(exc)

    thread = threading.Thread(target=body, name="ramet-namespace")
    thread.start()
    thread.join()
    return future.result()


def in_namespace(path: Path, work: Callable[..., T], *args: Any) -> T:
    """Run `work(links, *args)` inside a namespace, in a thread of its own, with the namespace's `Links`. Blocks."""

    def body() -> T:
        kernel.enter_network(path)
        with contextlib.closing(Links()) as links:
            return work(links, *args)

    return in_own_thread(body)


class NamespaceThread:
    """One thread inside a namespace; netlink, taps, sockets and children that belong there are made in it.

    setns(2) moves a thread, not the process: the event loop's thread never enters. A single thread also
    puts every change of the namespace in an order.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ramet-network")
        self._links: Links | None = None

    async def start(self) -> None:
        """Enter the namespace; raises OSError, and then runs nothing ever."""
        try:
            self._links = await asyncio.wrap_future(self._pool.submit(self._enter))
        except BaseException:
            self._pool.shutdown(wait=False)
            raise

    def _enter(self) -> Links:
        kernel.enter_network(self._namespace.path)
        return Links()

    async def run(
        self, work: Callable[..., T], *args: Any, timeout_s: float = 15.0, discard: Callable[[T], Any] | None = None
    ) -> T:
        """Run `work(*args)` in the namespace. `discard` gets a result that nobody waits for any more.

        Raises DeadlineError after `timeout_s`; the work itself cannot be interrupted and ends by itself.
        """
        if self._links is None:
            raise InternalError("The network thread is not in its namespace.")
        future = self._pool.submit(work, *args)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await asyncio.wrap_future(future)
        except (TimeoutError, asyncio.CancelledError) as exc:
            if discard is not None:
                future.add_done_callback(_discarding(discard))
            if limit.expired():
                raise DeadlineError(f"The network did not answer within {timeout_s:.0f} s.") from exc
            raise

    async def netlink(self, work: Callable[..., T], *args: Any, discard: Callable[[T], Any] | None = None) -> T:
        """Like `run`, with the namespace's `Links` as the first argument."""
        return await self.run(work, self._links, *args, discard=discard)

    async def connect_tcp(self, address: str, port: int, timeout_s: float) -> socket.socket:
        """A non-blocking socket, connected from inside the namespace; it stays there wherever it is used or sent.

        The caller closes it. Raises DeadlineError or OSError (refused, no route).
        """
        deadline = time.monotonic() + timeout_s
        for patience_s in _PATIENCES_S:
            if time.monotonic() + patience_s < deadline:
                with contextlib.suppress(TimeoutError):
                    return await self._connect(address, port, patience_s)
        try:
            return await self._connect(address, port, deadline - time.monotonic())
        except TimeoutError as exc:
            raise DeadlineError(f"{address} port {port} did not answer within {timeout_s:g} s.") from exc

    async def _connect(self, address: str, port: int, timeout_s: float) -> socket.socket:
        sock = await self.run(_tcp_socket, discard=socket.socket.close)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def close(self) -> None:
        """Wait for the work in hand and end the thread."""
        links, self._links = self._links, None
        if links is not None:
            await asyncio.wrap_future(self._pool.submit(links.close))
        await asyncio.to_thread(self._pool.shutdown)


def _discarding(discard: Callable[[T], Any]) -> Callable[[Future[T]], None]:
    def done(future: Future[T]) -> None:
        if not future.cancelled() and future.exception() is None:
            discard(future.result())

    return done


def _tcp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def run_tool(argv: Sequence[str], text: str, timeout_s: float) -> str:
    """Run a program of the host to its end, with `text` on its standard input; its standard output."""
    environment = {"PATH": TOOL_PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise DeadlineError(f"{argv[0]} did not end within {timeout_s:g} s.") from exc
    if done.returncode != 0:
        raise ToolError(f"{argv[0]} failed: {done.stderr.strip()[-400:] or done.returncode}")
    return done.stdout
