"""Tasks of clients: their work is done elsewhere, and this server shows how it goes, because they say so.

    clients = ClientTasks(tasks)
    await clients.begin(call, mo, "com.example.backup", cancelable=True) -> Task reference
    clients.find(task_id) -> ClientTask or None           # None: the task is this server's, or has ended

Each is a task of the host, whose work is to wait for the client's word. So it is listed with the others, survives in
the history, and has an end when the daemon stops, whatever becomes of the client.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ramet.host.tasks import TaskHandle
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.vsphere.tasks.desk import Tasks

MAX_OPEN = 100


@dataclass
class ClientTask:
    """One that is under way."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    handle: TaskHandle | None = None
    result: Any = None
    fault: Any = None

    def end(self, state: str, result: Any, fault: Any) -> None:
        """InvalidArgument for what is no end, and no state that comes before one."""
        if state == "error":
            self.fault = fault or vmodl.fault.SystemError(reason="The client did not say why.", msg="The task failed.")
            self.ended.set()
        elif state == "success":
            self.result = result
            self.ended.set()
        elif state not in ("running", "queued"):
            raise vmodl.fault.InvalidArgument(invalidProperty="state", msg=f"{state!r} is no state of a task.")

    def progress(self, percent: int) -> None:
        if not 0 <= percent <= 100:
            raise vmodl.fault.InvalidArgument(invalidProperty="percentDone", msg="Progress is from 0 to 100 percent.")
        if self.handle is not None:
            self.handle.progress(percent)

    def describe(self, text: str) -> None:
        if self.handle is not None:
            self.handle.progress(0, text[:200])


class ClientTasks:
    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._open: dict[str, ClientTask] = {}

    def find(self, task_id: str) -> ClientTask | None:
        return self._open.get(task_id)

    async def begin(self, call: Call, mo: Mo, kind: str, *, cancelable: bool) -> Any:
        """InvalidState when too many of them wait for a word."""
        if len(self._open) >= MAX_OPEN:
            raise vim.fault.InvalidState(msg=f"{MAX_OPEN} tasks of clients are under way already.")
        one = ClientTask()

        async def work(handle: TaskHandle) -> None:
            one.handle = handle
            self._open[handle.id] = one
            try:
                await one.ended.wait()
            finally:
                self._open.pop(handle.id, None)
            if one.fault is not None:
                raise one.fault

        async def result(_: Any) -> Any:
            return one.result

        reference = await self._tasks.run_work(call, kind, mo, work, cancellable=cancelable, result=result)
        task_id = ids.task_id(reference._moId)
        if task_id is not None and not one.ended.is_set():
            self._open.setdefault(task_id, one)  # its work has not begun yet, and the client may speak already
        return reference
