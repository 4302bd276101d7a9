"""Tasks of the host, shown to clients as Tasks.

    tasks = Tasks(world); await tasks.load(); await tasks.run()        # until cancelled
    await tasks.show(task, name="InstantClone_Task", entity=mo, call=call, result=…, fault=…) -> Task reference
    await tasks.run_work(call, "Destroy_Task", mo, work) -> Task reference      # work of a task of its own
    tasks.recent(moid) -> references of the entity's tasks: those that run, and those of the last ten minutes
    tasks.known() -> list[(Task, Shown | None)]                        # newest first

Every task of the host has its Task here, whoever began it, from before its first change is told until the host forgets
it. What is remembered beside the host's record is written when the task has ended, behind the client's back; like the
host's own history it is not worth a copy for the case of damage.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog

from ramet.errors import NotFoundError, RametError, StateError
from ramet.host.inventory import Table
from ramet.host.tasks import TaskHandle
from ramet.model.host import Task
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault_of
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.tasks import record
from ramet.vsphere.tasks.clients import ClientTasks
from ramet.vsphere.tasks.record import OWN, FaultOf, Shown, TaskNote, note_of
from ramet.vsphere.tasks.task import TaskObject
from ramet.vsphere.types import Support, vim, vmodl, wire_name

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

log = structlog.stdlib.get_logger(__name__)

RECENT_S = 600.0
PROGRESS_S = 0.25
QUICK_S = 0.04
Result = Callable[[Task], Awaitable[Any]]


class Tasks:
    """One a world; does what `machine.long_work.Shower` asks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._notes = Table(world.store, "vsphere-task/", TaskNote, lambda one: one.id, "task")
        self._shown: dict[str, Shown] = {}
        self._results: dict[str, Result] = {}
        self._raised: dict[str, Any] = {}
        """Faults that works of this surface have ended with, until their tasks' ends are shown."""
        self._of_entity: dict[str, list[str]] = {}
        """Entity -> ids of its tasks, oldest first."""
        self._later: dict[str, asyncio.TimerHandle] = {}
        """By task, when those who wait hear of its progress."""
        self._group: asyncio.TaskGroup | None = None
        self.clients = ClientTasks(self)

    async def load(self) -> None:
        """Show what the host remembers, and follow it."""
        for entry in await self._world.store.list(self._notes.prefix):
            self._notes.learn(entry.key.removeprefix(self._notes.prefix), entry.value, entry.revision)
        for note in self._notes.all():
            self._shown[note.id] = Shown(note)
        for task in reversed(self._world.host.tasks.list()):
            self._enter(task)
        self._world.host.tasks.watchers.append(self._told)

    async def run(self) -> None:
        """Own what follows tasks. Until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for gone in {note.id for note in self._notes.all()} - {task.id for task in self._all()}:
                    self._shown.pop(gone, None)
                    group.create_task(self._forget(gone), name="vsphere: forget a task")
                await asyncio.Event().wait()
            finally:
                self._group = None

    def close(self) -> None:
        """Follow the host no more."""
        for later in self._later.values():
            later.cancel()
        self._later.clear()
        watchers = self._world.host.tasks.watchers
        if self._told in watchers:
            watchers.remove(self._told)

    # -- what is shown ---------------------------------------------------------------------------------------------

    def _all(self) -> list[Task]:
        return self._world.host.tasks.list()

    def task(self, task_id: str) -> Task:
        """ManagedObjectNotFound for one that the host has forgotten."""
        try:
            return self._world.host.tasks.get(task_id)
        except NotFoundError:
            raise vmodl.fault.ManagedObjectNotFound(
                obj=vim.Task(ids.task_moid(task_id)), msg="The task is no longer remembered."
            ) from None

    def shown(self, task_id: str) -> Shown | None:
        return self._shown.get(task_id)

    def known(self) -> list[tuple[Task, Shown | None]]:
        return [(task, self._shown.get(task.id)) for task in self._all()]

    def recent(self, moid: str) -> list[Any]:
        found = (self._world.host.tasks.get(one) for one in self._of_entity.get(moid, ()))
        return [vim.Task(ids.task_moid(task.id)) for task in found if is_recent(task)]

    def recent_of_all(self) -> list[Any]:
        return [vim.Task(ids.task_moid(task.id)) for task in self._all() if is_recent(task)]

    async def show(
        self,
        task: Task,
        *,
        name: str,
        entity: Mo,
        call: Call,
        result: Result | None = None,
        fault: FaultOf = fault_of,
    ) -> Any:
        """Show a task of the host as that of a method. `result` makes its result, and is awaited before its success."""
        entity_name = str(entity.getters["name"](entity)) if "name" in entity.getters else task.target
        note = TaskNote(
            id=task.id, name=name, entity=entity.moid, entity_type=wire_name(entity.wire), entity_name=entity_name,
            user=call.principal,
        )  # fmt: skip
        self._leave(task.id)
        self._shown[task.id] = Shown(note, fault, finishing=result is not None)
        if result is not None:
            self._results[task.id] = result
        self._told(task.id)
        await self._quick_end(task.id)
        return vim.Task(ids.task_moid(task.id))

    async def _quick_end(self, task_id: str) -> None:
        """Most work is done in some hundredths of a second. Who hears of the task only then finds it ended at the first
        look; who heard of it at once would ask for all of it three times meanwhile, and hold up the work itself."""
        moid = ids.task_moid(task_id)
        watch = self._world.updates.watch(lambda changed, *_: changed == moid)
        with watch as news, contextlib.suppress(TimeoutError, vmodl.fault.ManagedObjectNotFound):
            async with asyncio.timeout(QUICK_S):
                while record.state_of(self.task(task_id), self.shown(task_id)) not in ("success", "error"):
                    news.clear()
                    await news.wait()

    async def run_work(
        self,
        call: Call,
        name: str,
        entity: Mo,
        work: Callable[[TaskHandle], Awaitable[Any]],
        *,
        vm_id: str | None = None,
        cancellable: bool = False,
        result: Result | None = None,
        fault: FaultOf = fault_of,
    ) -> Any:
        """Work of this surface's own, as a task of the host. It may raise errors of the host, and faults of the API."""

        async def guarded(handle: TaskHandle) -> Any:
            try:
                return await work(handle)
            except vmodl.MethodFault as raised:
                self._raised[handle.id] = raised
                raise StateError(raised.msg or wire_name(type(raised))) from raised

        target = str(entity.getters["name"](entity)) if "name" in entity.getters else entity.moid
        task = await self._world.host.tasks.start(OWN + name, target, guarded, vm_id=vm_id, cancellable=cancellable)
        return await self.show(task, name=name, entity=entity, call=call, result=result, fault=fault)

    # -- following the host ----------------------------------------------------------------------------------------

    def _told(self, task_id: str) -> None:
        """A task of the host began, went on, ended, or was forgotten."""
        try:
            task = self._world.host.tasks.get(task_id)
        except NotFoundError:
            self._gone(task_id)
            return
        self._enter(task)
        if not task.state.is_final:
            self._touch_soon(task_id)
            return
        self._ended(task)
        shown = self._shown.get(task_id)
        if shown is None or not shown.finishing:  # else it does not show its end before it has its result
            self._touch(task_id)

    def _touch_soon(self, task_id: str) -> None:
        """Progress is told some times a second: clients ask for all of the task again, three or four times, whenever
        anything of it changes, and would hear of its end that much later."""
        if task_id not in self._later:
            self._later[task_id] = asyncio.get_running_loop().call_later(PROGRESS_S, self._touch, task_id)

    def _touch(self, task_id: str) -> None:
        later = self._later.pop(task_id, None)
        if later is not None:
            later.cancel()
        self._world.updates.touch(ids.task_moid(task_id))

    def _enter(self, task: Task) -> None:
        moid = ids.task_moid(task.id)
        entity = self._entity_of(task)
        of_entity = self._of_entity.setdefault(entity, [])
        if task.id not in of_entity:
            of_entity.append(task.id)
            self._touch_entity(entity)
        if self._world.get(moid) is None:
            self._world.add(TaskObject(self._world, task.id))

    def _entity_of(self, task: Task) -> str:
        shown = self._shown.get(task.id)
        return shown.note.entity if shown is not None else note_of(task).entity

    def _touch_entity(self, entity: str) -> None:
        self._world.updates.touch(entity)
        self._world.updates.touch(ids.TASK_MANAGER)

    def _leave(self, task_id: str) -> None:
        """Whose it is is known better now, or it is gone."""
        for entity in [entity for entity, tasks in self._of_entity.items() if task_id in tasks]:
            self._of_entity[entity].remove(task_id)
            if not self._of_entity[entity]:
                del self._of_entity[entity]

    def _gone(self, task_id: str) -> None:
        self._leave(task_id)
        if task_id in self._later:
            self._later.pop(task_id).cancel()
        self._shown.pop(task_id, None)
        self._results.pop(task_id, None)
        self._raised.pop(task_id, None)
        self._world.remove(ids.task_moid(task_id))
        if self._group is not None and self._notes.get(task_id) is not None:
            self._group.create_task(self._forget(task_id), name="vsphere: forget a task")

    def _ended(self, task: Task) -> None:
        shown = self._shown.get(task.id)
        if shown is None or shown.ended or self._notes.get(task.id) is not None:
            return
        shown.ended = True
        shown.fault = self._raised.pop(task.id, None)
        result = self._results.pop(task.id, None)
        if self._group is not None:
            self._group.create_task(self._finish(task, shown, result), name=f"vsphere: end of {shown.note.name}")
        elif result is not None:  # the surface is closing: an end that is said now is better than none
            shown.finishing = False

    async def _finish(self, task: Task, shown: Shown, result: Result | None) -> None:
        """What follows the host's work; then the note, durably. Whatever happens, the task has an end."""
        try:
            if result is not None and task.error is None:
                shown.value = await result(task)
        except (Exception, asyncio.CancelledError) as exc:
            shown.fault = self._fault_of(shown, exc)
            if isinstance(exc, asyncio.CancelledError):
                raise
        finally:
            shown.finishing = False
            self._touch(task.id)
            self._touch_entity(shown.note.entity)
        await self._keep(shown)

    @staticmethod
    def _fault_of(shown: Shown, exc: BaseException) -> Any:
        if isinstance(exc, asyncio.CancelledError):
            return vmodl.fault.RequestCanceled(msg="The server is stopping.")
        fault = shown.fault_of(exc)
        if fault is None:
            log.error("a task's end failed by a bug of ours", task=shown.note.id, exc_info=exc)
            said = "Something went wrong inside the server; its log has the details."
            fault = vmodl.fault.SystemError(reason="Internal error.", msg=said)
        return fault

    async def _keep(self, shown: Shown) -> None:
        found: dict[str, Any] = {"failed": shown.fault is not None}
        if isinstance(shown.value, Support.ManagedObject):
            found |= {"result_type": wire_name(type(shown.value)), "result_moid": shown.value._moId}
        shown.note = shown.note.model_copy(update=found)
        try:
            await self._notes.put(shown.note)
        except (RametError, OSError) as exc:  # history alone
            log.warning("what a task was is not remembered", task=shown.note.id, error=str(exc))

    async def _forget(self, task_id: str) -> None:
        try:
            await self._notes.remove(task_id)
        except (RametError, OSError) as exc:
            log.warning("a task's note was not removed", task=task_id, error=str(exc))


def is_recent(task: Task) -> bool:
    return not task.state.is_final or (task.ended_at or 0.0) > time.time() - RECENT_S
