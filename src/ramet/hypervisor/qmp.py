"""The daemon's monitor session with one QEMU: the commands of the modules `qmp_*` over one connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate

from ramet.errors import DeadlineError, QemuError
from ramet.hypervisor.process import QemuProcess
from ramet.hypervisor.qmp_balloon import BalloonCommands
from ramet.hypervisor.qmp_block import BlockCommands
from ramet.hypervisor.qmp_devices import DeviceCommands
from ramet.hypervisor.qmp_migration import MigrationCommands
from ramet.hypervisor.qmp_run import RunCommands

DEFAULT_TIMEOUT_S = 30.0

_DEATH_S = 2.0
"""How long after its monitor closed a QEMU may take to be gone."""


class _Listener(EventListener):
    """The library's own keeps a history of all events, which a VM that lives long, or a guest, makes as long as it
    likes."""

    async def put(self, event: Message) -> None:
        await super().put(event)
        self._history.clear()


def _nothing(event: Message) -> bool:
    """For the listener that every client has, and that nobody reads."""
    return False


class Events:
    """Events of one QEMU, from the moment the listener was made. Ends when the connection does."""

    def __init__(self, listener: EventListener, lost: asyncio.Event) -> None:
        self._listener = listener
        self._lost = lost

    async def next(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next event, or None once the connection has ended. Raises DeadlineError when none came in time."""
        if not self._listener.empty():
            return dict(await self._listener.get())
        getting = asyncio.ensure_future(self._listener.get())
        losing = asyncio.ensure_future(self._lost.wait())
        try:
            done, _ = await asyncio.wait((getting, losing), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise DeadlineError(f"QEMU reported nothing within {timeout_s:g} s.")
            return dict(getting.result()) if getting in done else None
        finally:
            await _cancel(getting, losing)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while (event := await self.next()) is not None:
            yield event


class QmpSession(RunCommands, BlockCommands, DeviceCommands, BalloonCommands, MigrationCommands):
    """One connection to one QEMU's monitor; `close` it, or use it as a context manager.

    Every command takes a bound. When it passes, or the connection is lost, whether QEMU carried the command out is
    unknown: ask its state again. Commands may be issued from several tasks.
    """

    def __init__(self, client: QMPClient, name: str) -> None:
        """Use `connect`."""
        self.name = name
        self._client = client
        self._fd_lock = asyncio.Lock()
        self._lost = asyncio.Event()
        self._watch = asyncio.create_task(self._watch_connection(), name=f"qmp-{name}")

    @classmethod
    async def connect(cls, path: Path, timeout_s: float, *, name: str = "", process: QemuProcess | None = None) -> Self:
        """Connect to the monitor at `path` and negotiate.

        `process`, when given, is asked why it died if it did. Raises QemuError, DeadlineError.
        """
        client = QMPClient()  # without a name: each name would make a logger, and loggers stay for ever
        client.events.event_filter = _nothing
        # What is lost or refused is raised here, with a sentence; the library would log it as well.
        client.logger = _wire_log()
        try:
            async with asyncio.timeout(timeout_s):
                await client.connect(str(path))
        except TimeoutError as exc:
            raise DeadlineError(f"QEMU's monitor did not answer within {timeout_s:g} s.") from exc
        except (QMPError, OSError, EOFError) as exc:
            raise QemuError(f"QEMU's monitor cannot be reached: {await _death(process) or _words(exc)}.") from exc
        return cls(client, name)

    # -- commands --------------------------------------------------------------------------------------------------

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Any:
        """Run a command; its ``return`` value. Raises QemuError with QEMU's words, DeadlineError."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.execute(command, dict(arguments) if arguments else None)
        except TimeoutError as exc:
            raise DeadlineError(f"QEMU did not answer {command} within {timeout_s:g} s.", command=command) from exc
        except ExecuteError as exc:
            words = exc.error.error.desc.rstrip(".")
            raise QemuError(f"QEMU refused {command}: {words}.", command=command, qemu=words) from exc
        except (ExecInterruptedError, QMPError, OSError, EOFError) as exc:
            raise QemuError(f"The connection to QEMU ended during {command}.", command=command, lost=True) from exc

    async def execute_with_fd(
        self,
        fd: int,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:
        """Run a command that takes a descriptor. QEMU gets a copy; `fd` stays the caller's. Raises as `execute`."""
        # A descriptor goes to the next command that asks for one, so the two must not be parted by another pair.
        async with self._fd_lock:
            try:
                self._client.send_fd_scm(fd)
            except (QMPError, OSError) as exc:
                raise QemuError(f"The connection to QEMU ended before {command}.", command=command, lost=True) from exc
            return await self.execute(command, arguments, timeout_s)

    @contextmanager
    def events(self, *names: str) -> Iterator[Events]:
        """Listen for events of these names (none: all) while the context lasts."""
        listener = _Listener(names or None)
        self._client.register_listener(listener)
        try:
            yield Events(listener, self._lost)
        finally:
            with suppress(QMPError):
                self._client.remove_listener(listener)

    # -- the end ---------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return not self._lost.is_set()

    async def wait_lost(self) -> None:
        """Wait until the connection has ended, whoever ended it."""
        await self._lost.wait()

    async def _watch_connection(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._lost.set()

    async def close(self) -> None:
        """End the session; QEMU runs on. A second call does nothing."""
        with suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()
        await _cancel(self._watch)
        self._lost.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _death(process: QemuProcess | None) -> str | None:
    """Why `process` died, if it did."""
    if process is None:
        return None
    try:
        await process.wait_exit(_DEATH_S)
    except DeadlineError:
        return None
    return process.exit_reason()


def _words(exc: BaseException) -> str:
    return str(exc).rstrip(".") or type(exc).__name__


def _wire_log() -> logging.Logger:
    logger = logging.getLogger("ramet.qmp.wire")
    logger.addFilter(_is_traffic)
    return logger


def _is_traffic(record: logging.LogRecord) -> bool:
    return record.levelno < logging.INFO
