"""The daemon around a host: one at a time per state folder, its signals, its readiness, its end.

    run(settings, open_host, open_surfaces, ready_fd=None, stop_vms=False) -> int      # exit code; blocks

`open_host(settings)` is the host's async context manager (``ramet.host.service.Host.open``);
`open_surfaces(host, settings, on_death)` that of everything which serves it (``ramet.api.server.serve``). They are
handed in by ``ramet.serve``, which composes the program: this room knows nothing of those above it.

SIGTERM and SIGINT end the daemon: surfaces first, then the host. VMs go on, unless `stop_vms`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from ramet.errors import ConflictError, PrivilegeError, RametError
from ramet.host import log as daemon_log
from ramet.host.rotate import Rotator
from ramet.host.settings import Settings, unknown_variables

log = structlog.stdlib.get_logger(__name__)


class Stoppable(Protocol):
    """What the daemon itself asks of a host."""

    async def stop_all_vms(self) -> None:
        """Cut the power of every VM."""


_NICENESS = -5

H = TypeVar("H", bound=Stoppable)
OpenHost = Callable[[Settings], AbstractAsyncContextManager[H]]
OpenSurfaces = Callable[[H, Settings, Callable[[], None]], AbstractAsyncContextManager[None]]


def run(
    settings: Settings,
    open_host: OpenHost[H],
    open_surfaces: OpenSurfaces[H],
    *,
    ready_fd: int | None = None,
    stop_vms: bool = False,
) -> int:
    """Serve until a signal comes. Returns the exit code; says on stderr, in a line 'error: …', why it could not.

    `ready_fd`, if given, gets one byte when the daemon answers, and is closed in any case.
    """
    _go_before_guests()
    os.umask(0o077)  # whatever is made without a mode of its own is ours alone
    daemon_log.configure(settings)
    try:
        prepare(settings.state_dir)
        with single_instance(settings.state_dir):
            return asyncio.run(serve(settings, open_host, open_surfaces, ready_fd=ready_fd, stop_vms=stop_vms))
    except RametError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        return exc.exit_code
    except Exception as exc:
        log.exception("the daemon failed by a bug of ours")
        print(f"error: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
        return 1
    finally:
        _close(ready_fd)


def _go_before_guests() -> None:
    """Where it may, the loop's thread has three times the weight of any other task: a hundred busy guests must not hold
    up the one that serves them. What it starts has no part in this."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER or os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return  # its owner has chosen
    with suppress(OSError):  # not root
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


async def serve(
    settings: Settings,
    open_host: OpenHost[H],
    open_surfaces: OpenSurfaces[H],
    *,
    ready_fd: int | None = None,
    stop_vms: bool = False,
) -> int:
    """See `run`; needs the lock. 1 when a surface died, else 0."""
    stop, died = asyncio.Event(), asyncio.Event()

    def on_death() -> None:
        died.set()
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    for sentence in unknown_variables(os.environ):
        log.warning(sentence)
    own_log = (settings.state_dir / "run" / "daemon.log", settings.log_quota_bytes)  # where the client lets it go
    rotator = asyncio.create_task(Rotator(lambda: [own_log], settings.rotate_every_s).run(), name="rotate own log")
    try:
        async with open_host(settings) as host:
            async with open_surfaces(host, settings, on_death):
                _tell_ready(ready_fd)
                log.info("ready", socket=str(settings.api_socket), pid=os.getpid())
                await stop.wait()
                notify("STOPPING=1")
                log.info("stopping")
            if stop_vms:
                await host.stop_all_vms()
    finally:
        rotator.cancel()
        await asyncio.wait([rotator])
    return 1 if died.is_set() else 0


def prepare(state_dir: Path) -> None:
    """Make the state folder and `run` in it: others may pass through to what is theirs, and list nothing."""
    try:
        for folder in (state_dir, state_dir / "run"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711)
    except OSError as exc:
        raise PrivilegeError(
            f"The state folder {state_dir} cannot be used: {exc.strerror}.", hint="Choose another with --state."
        ) from exc


@contextmanager
def single_instance(state_dir: Path) -> Iterator[None]:
    """Hold the lock of the state folder. ConflictError when another daemon does; the kernel frees it at our death."""
    fd = os.open(state_dir / "run" / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise ConflictError(
                f"A daemon{f' (process {pid})' if pid else ''} serves {state_dir} already.",
                hint="Use that one, or another folder with --state.",
            ) from exc
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def notify(message: str) -> None:
    """Tell systemd, if it listens (NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _tell_ready(ready_fd: int | None) -> None:
    notify("READY=1")
    if ready_fd is not None:
        with suppress(OSError):  # whoever waited has gone
            os.write(ready_fd, b"1")
        _close(ready_fd)


def _close(fd: int | None) -> None:
    if fd is not None:
        with suppress(OSError):
            os.close(fd)
