"""Task: one task of the host, for clients to follow and to cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.errors import StateError
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import words_of
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.tasks import record
from ramet.vsphere.tasks.clients import ClientTask
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World
    from ramet.vsphere.tasks.desk import Tasks

_CLIENTS_OWN = "only of tasks that a client has made with CreateTask; otherwise InvalidState"


class TaskObject(Mo):
    wire = vim.Task

    def __init__(self, world: World, task_id: str) -> None:
        super().__init__(world, ids.task_moid(task_id))
        self._task_id = task_id

    @property
    def _tasks(self) -> Tasks:
        from ramet.vsphere.tasks.desk import Tasks

        return self.world.part(Tasks)

    @property
    def _both(self) -> tuple[Any, Any]:
        return self._tasks.task(self._task_id), self._tasks.shown(self._task_id)

    @prop("info")
    def get_info(self) -> Any:
        return record.info(*self._both)

    @prop("info.state")
    def get_state(self) -> str:
        return record.state_of(*self._both)

    @prop("info.progress")
    def get_progress(self) -> int | None:
        return record.progress_of(self._both[0], self.get_state())

    @prop("info.result")
    def get_result(self) -> Any:
        return record.result_of(*self._both) if self.get_state() == "success" else None

    @prop("info.error")
    def get_error(self) -> Any:
        return record.error_of(*self._both) if self.get_state() == "error" else None

    @operation("CancelTask")
    async def cancel(self, call: Call) -> None:
        """By whoever began it, or may cancel others' tasks."""
        shown = self._tasks.shown(self._task_id)
        if shown is None or shown.note.user != call.principal:
            call.require("Global.CancelTask", self)
        if self.get_state() in ("success", "error"):
            raise vim.fault.InvalidState(msg="The task has ended.")
        try:
            await self.world.host.tasks.cancel(self._task_id)
        except StateError as exc:
            raise vmodl.fault.NotSupported(msg=words_of(exc)) from exc

    @operation("SetTaskState", partial=_CLIENTS_OWN)
    async def set_state(self, call: Call, state: str, result: Any = None, fault: Any = None) -> None:
        inner = getattr(fault, "fault", None) or fault
        self._client_task().end(str(state), result, inner)

    @operation("UpdateProgress", partial=_CLIENTS_OWN)
    async def set_progress(self, call: Call, percentDone: int) -> None:
        self._client_task().progress(percentDone)

    @operation("SetTaskDescription", partial=_CLIENTS_OWN)
    async def set_description(self, call: Call, description: Any) -> None:
        self._client_task().describe(description.message or description.key)

    def _client_task(self) -> ClientTask:
        """InvalidState for one that a client has not made, and for one that has ended."""
        found = self._tasks.clients.find(self._task_id)
        if found is None:
            ended = self.get_state() in ("success", "error")
            said = "The task has ended." if ended else "The server does the work of this task, and says how it goes."
            raise vim.fault.InvalidState(msg=said)
        return found
