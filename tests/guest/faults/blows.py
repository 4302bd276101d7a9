"""The faults: each strikes the first time that its step is reached."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ramet.errors import QemuError
from ramet.hypervisor.qmp import QmpSession
from ramet.model.host import Task
from ramet.model.requests import StopVm
from tests.guest.faults.stage import SOURCE, Stage, with_library
from tests.guest.faults.workflows import bare


@dataclass
class Blow:
    """A fault on its way: it strikes the first time that its step is reached."""

    stage: Stage
    step: str
    kind: str
    patch: pytest.MonkeyPatch
    struck: bool = False
    others: list[asyncio.Task[object]] = field(default_factory=list)
    """Operations of others, which the fault consists of."""
    undo: list[Callable[[], object]] = field(default_factory=list)

    def __call__(self, step: str) -> None:
        if step == self.step and not self.struck:
            self.struck = True
            FAULTS[self.kind](self)

    def meanwhile(self, work: Awaitable[object]) -> None:
        self.others.append(asyncio.ensure_future(work))


def _raise(number: int) -> Callable[[Blow], None]:
    def strike(blow: Blow) -> None:
        raise OSError(number, os.strerror(number), f"injected at {blow.step}")

    return strike


def _kill_source(blow: Blow) -> None:
    os.kill(blow.stage.source.require_process().pid, signal.SIGKILL)


def _kill_child(blow: Blow) -> None:
    rooms, source = blow.stage.host.floor.rooms, blow.stage.source.process
    for pid in with_library(rooms.paths.native) - ({source.pid} if source else set()):
        os.kill(pid, signal.SIGKILL)


def _refuse_fork(blow: Blow) -> None:
    """Who holds the source's memory forks no more. (A limit of processes does more: QEMU aborts without threads.)"""
    sockets = [blow.stage.source.run_dir.fork, *blow.stage.host.floor.rooms.paths.run.glob("m-*/fork")]
    for path in filter(Path.exists, sockets):
        path.rename(path.with_name("fork-away"))
        blow.undo.append(lambda path=path: _rename_back(path))  # type: ignore[misc]


def _rename_back(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # the VM is off
        path.with_name("fork-away").rename(path)


def _refuse_qmp(blow: Blow) -> None:
    """QEMU refuses the next command, whichever that is."""
    execute = QmpSession.execute
    refused: list[str] = []

    async def refuse(self: QmpSession, command: str, *args: object, **more: object) -> object:
        if not refused and not command.startswith(("query-", "getfd")):  # one that comes with a descriptor is not alone
            refused.append(command)
            raise QemuError(f"QEMU refused {command}: injected.", command=command, qemu="injected")
        return await execute(self, command, *args, **more)  # type: ignore[arg-type]

    blow.patch.setattr(QmpSession, "execute", refuse)


def _fill_disk(blow: Blow) -> None:
    """The state folder's file system has no byte more, until the case is over."""
    filler = blow.stage.state_dir / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        for size in (1 << 26, 1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), file.tell(), size)
                    file.seek(size, os.SEEK_CUR)
    blow.undo.append(filler.unlink)


def _jump_clock(seconds: float) -> Callable[[Blow], None]:
    def strike(blow: Blow) -> None:
        now = time.time
        blow.patch.setattr(time, "time", lambda: now() + seconds)

    return strike


def _clone_too(blow: Blow) -> None:
    blow.meanwhile(_finish(blow.stage, blow.stage.host.clone_vm(SOURCE, bare("other"))))


def _stop_source(blow: Blow) -> None:
    blow.meanwhile(_finish(blow.stage, blow.stage.host.stop_vm(SOURCE, StopVm(hard=True))))


def _remove_child(blow: Blow) -> None:
    blow.meanwhile(_finish(blow.stage, blow.stage.host.remove_vm("kid", force=True)))


def _remove_network(blow: Blow) -> None:
    async def remove() -> None:
        await blow.stage.host.remove_network("copies")

    blow.meanwhile(remove())


def _cancel(blow: Blow) -> None:
    async def cancel() -> None:
        for task in blow.stage.host.tasks.list():
            if not task.state.is_final and task.cancellable:
                await blow.stage.host.tasks.cancel(task.id)

    blow.meanwhile(cancel())


async def _finish(stage: Stage, starting: Awaitable[Task]) -> None:
    await stage.done(await starting)


FAULTS: dict[str, Callable[[Blow], None]] = {
    "no space": _raise(errno.ENOSPC),
    "no process": _raise(errno.EAGAIN),
    "disk full": _fill_disk,
    "fork refused": _refuse_fork,
    "command refused": _refuse_qmp,
    "source killed": _kill_source,
    "VM killed": _kill_child,
    "cancelled": _cancel,
    "cloned meanwhile": _clone_too,
    "source stopped meanwhile": _stop_source,
    "removed meanwhile": _remove_child,
    "port group removed": _remove_network,
    "clock ahead": _jump_clock(86400.0 * 30),
    "clock back": _jump_clock(-86400.0 * 30),
}
