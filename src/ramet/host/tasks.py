"""Long work: numbered, timed, cancellable, and always ended in a state that says how.

    async with TaskManager.open(store, on_final=...) as tasks:
        task = await tasks.start("clone", "web", work, vm_id=vm.id, cancellable=True, by_uid=0) -> Task
        tasks.get(task_id) -> Task                     # NotFoundError
        tasks.list() -> list[Task]                     # newest first; those that run, and the last 1000
        await tasks.wait(task_id, timeout_s=30, since_version=None) -> Task
        await tasks.cancel(task_id) -> Task            # StateError when it cannot be; a final task is just returned
        await tasks.amend(task_id, result)             # a better result for a task that has succeeded
    tasks.watchers.append(told)                    # told(task_id) of every change, progress too; plain and quick

    async def work(handle: TaskHandle) -> Any:         # the result: JSON, a model, or a tuple or list of models
        handle.id
        with handle.step("prepare"): ...               # timed, and shown as what it is doing
        handle.progress(40.0, "copying layers")
        handle.check_cancelled()                       # in loops that do not await; raises TaskCancelledError
        handle.cancellable = False                     # from here on there is no way back

The work begins when the task is durable. A cancelled task's work sees CancelledError at its
next await, cleans up, and the task ends cancelled. Errors of the work become the task's error: a RametError as it is,
anything else an InternalError whose traceback goes to the log only. A final state is durable before anyone sees it.
What a crash left running is an error at the next start. Closing cancels what runs and waits until it has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from ramet.errors import (
    ConflictError,
    InternalError,
    NotFoundError,
    RametError,
    StateError,
    TaskCancelledError,
    from_os_error,
)
from ramet.host.bell import Bell
from ramet.host.store import Delete, Entry, Put, Store
from ramet.model.base import explain
from ramet.model.host import Step, Task, TaskState

log = structlog.stdlib.get_logger(__name__)

HISTORY = 1000
_PREFIX = "task/"

Work = Callable[["TaskHandle"], Awaitable[Any]]


class TaskHandle:
    """What the work holds of its task. For the event loop's thread only; `check_cancelled` for any thread."""

    def __init__(self, manager: TaskManager, task_id: str) -> None:
        self._manager = manager
        self._t0 = time.monotonic()
        self._cancelled = False
        self.id = task_id

    @property
    def task(self) -> Task:
        """As it is now."""
        return self._manager.get(self.id)

    @property
    def cancellable(self) -> bool:
        return self.task.cancellable

    @cancellable.setter
    def cancellable(self, value: bool) -> None:
        self._manager._change(self.id, cancellable=value)

    @property
    def cancel_requested(self) -> bool:
        return self._cancelled

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step, and show it as what is being done. Steps may nest and overlap."""
        started_ms = self._now_ms()
        index = len(self.task.steps)
        step = Step(name=name, started_ms=started_ms)
        self._manager._change(self.id, steps=(*self.task.steps, step), doing=name)
        try:
            yield
        finally:
            steps = list(self.task.steps)
            steps[index] = Step(name=name, started_ms=started_ms, took_ms=round(self._now_ms() - started_ms, 3))
            self._manager._change(self.id, steps=tuple(steps))

    def add_step(self, name: str, started_ms: float, took_ms: float) -> None:
        """A step that was timed elsewhere; milliseconds, the start since the task's start."""
        step = Step(name=name, started_ms=round(started_ms, 3), took_ms=round(took_ms, 3))
        self._manager._change(self.id, steps=(*self.task.steps, step))

    def progress(self, percent: float, doing: str | None = None) -> None:
        """Of the whole, 0 to 100; never goes back."""
        percent = max(self.task.progress_percent, min(100.0, percent))
        self._manager._change(self.id, progress_percent=percent, **({} if doing is None else {"doing": doing}))

    def check_cancelled(self) -> None:
        """TaskCancelledError once the user has asked for it."""
        if self._cancelled:
            raise TaskCancelledError("The task was cancelled.")

    def _now_ms(self) -> float:
        return round((time.monotonic() - self._t0) * 1000, 3)


class TaskManager:
    """Owns the work of all tasks. Made by `open`, which also ends it."""

    def __init__(self, store: Store, on_final: Callable[[Task], None], history: int) -> None:
        self._store = store
        self._on_final = on_final
        self._history = history
        self._tasks: dict[str, Task] = {}
        """In order of their start."""
        self._handles: dict[str, TaskHandle] = {}
        self._workers: dict[str, asyncio.Task[Any]] = {}
        """The works; what is cancelled."""
        self._keepers: dict[str, asyncio.Task[None]] = {}
        """One beside each work, never cancelled: it writes how the work ended, even if it never began."""
        self._changed: dict[str, Bell] = {}
        self._closing = False
        self.watchers: list[Callable[[str], None]] = []
        """Called with the id of a task that began, went on, ended, or is no longer remembered."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, store: Store, *, on_final: Callable[[Task], None] = lambda task: None, history: int = HISTORY
    ) -> AsyncIterator[TaskManager]:
        """`on_final` is called with each task that has ended. The store stays the caller's."""
        manager = cls(store, on_final, history)
        await manager._load()
        try:
            yield manager
        finally:
            await manager._close()

    async def _load(self) -> None:
        for task in sorted(_read(await self._store.list(_PREFIX)), key=lambda task: (task.created_at, task.id)):
            self._tasks[task.id] = task
            if not task.state.is_final:
                error = StateError("The daemon was restarted while this ran.", hint="Try it again.")
                await self._end(task.id, TaskState.ERROR, error=error.as_dict())

    async def _close(self) -> None:
        self._closing = True
        for worker in self._workers.values():
            worker.cancel()
        if self._keepers:
            await asyncio.wait(list(self._keepers.values()))

    async def start(
        self,
        kind: str,
        target: str,
        work: Work,
        *,
        vm_id: str | None = None,
        cancellable: bool = False,
        by_uid: int | None = None,
        key: str | None = None,
        digest: str | None = None,
    ) -> Task:
        """Begin the work, once its task is durable. StateError when the daemon is stopping; CapacityError."""
        now = time.time()
        task = Task(
            kind=kind,
            target=target,
            vm_id=vm_id,
            state=TaskState.RUNNING,
            cancellable=cancellable,
            created_at=now,
            started_at=now,
            by_uid=by_uid,
            key=key,
            digest=digest,
            version=1,
        )
        await self._persist_start(task)
        self._tasks[task.id] = task
        self._changed[task.id] = Bell()
        self._notify(task.id)
        handle = self._handles[task.id] = TaskHandle(self, task.id)
        worker = asyncio.create_task(_call(work, handle), name=f"{kind} {target}")
        self._workers[task.id] = worker
        self._keepers[task.id] = asyncio.create_task(self._keep(handle, worker), name=f"{kind} {target}: keeper")
        return task

    async def _persist_start(self, task: Task) -> None:
        """Before the work begins, so that a full disk refuses it while nothing has changed."""
        try:
            await self._store.put(_PREFIX + task.id, task.model_dump(mode="json"))
            if self._closing:
                raise StateError("The daemon is stopping.", operation=task.kind)
        except (asyncio.CancelledError, StateError):
            await self._store.delete(_PREFIX + task.id)
            raise

    def get(self, task_id: str) -> Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise NotFoundError(f"There is no task {task_id!r}.", ref=task_id)
        return task

    def by_key(self, key: str, digest: str) -> Task | None:
        """The task that a request with this key has begun, unless it failed: then it may be tried again.

        ConflictError when the key came with another request.
        """
        for task in self.list():
            if task.key == key and task.state not in (TaskState.ERROR, TaskState.CANCELLED):
                if task.digest != digest:
                    raise ConflictError(
                        f"The key {key!r} was used for another request.", hint="Use a new key for a new request."
                    )
                return task
        return None

    def list(self) -> list[Task]:
        """Newest first."""
        return list(reversed(self._tasks.values()))

    async def wait(self, task_id: str, timeout_s: float, since_version: int | None = None) -> Task:
        """The task once it is final, or newer than `since_version`, or as it is when the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            task = self.get(task_id)
            left_s = deadline - time.monotonic()
            if task.state.is_final or left_s <= 0 or (since_version is not None and task.version > since_version):
                return task
            await self._changed[task_id].wait(left_s)

    async def cancel(self, task_id: str) -> Task:
        """Ask the work to stop. It has not ended when this returns: `wait` for that."""
        task = self.get(task_id)
        if task.state.is_final:
            return task
        if not task.cancellable:
            raise StateError(
                f"The task {task.kind} of {task.target!r} cannot be cancelled now.", state=task.state.value
            )
        self._handles[task_id]._cancelled = True
        self._change(task_id, doing="cancelling", cancellable=False)
        self._workers[task_id].cancel()
        return self.get(task_id)

    async def amend(self, task_id: str, result: Any) -> None:
        """Replace the result of a task that has succeeded, durably: by one with numbers that took longer than the work.

        Nothing happens to a task that did not succeed, or is no longer remembered.
        """
        task = self._tasks.get(task_id)
        if task is None or task.state is not TaskState.SUCCESS:
            return
        amended = task.model_copy(update={"result": to_jsonable_python(result), "version": task.version + 1})
        await self._store.put(_PREFIX + task_id, amended.model_dump(mode="json"))
        if task_id in self._tasks:
            self._tasks[task_id] = amended
            self._notify(task_id)
        else:
            await self._store.delete(_PREFIX + task_id)

    # The work

    async def _keep(self, handle: TaskHandle, worker: asyncio.Task[Any]) -> None:
        await asyncio.wait([worker])
        state, result, error = self._outcome(handle, worker)
        await self._end(handle.id, state, result=result, error=error)

    def _outcome(self, handle: TaskHandle, worker: asyncio.Task[Any]) -> tuple[TaskState, Any, dict[str, Any] | None]:
        """Whatever the work did, a state."""
        try:
            return TaskState.SUCCESS, to_jsonable_python(worker.result()), None
        except (asyncio.CancelledError, TaskCancelledError):
            why = "The task was cancelled." if handle.cancel_requested else "The daemon was stopped while this ran."
            return TaskState.CANCELLED, None, TaskCancelledError(why).as_dict()
        except RametError as exc:
            return TaskState.ERROR, None, _as_dict(exc)
        except OSError as exc:
            log.warning("a task failed", task=handle.id, kind=handle.task.kind, exc_info=exc)
            return TaskState.ERROR, None, _as_dict(from_os_error(exc))
        except BaseException:
            log.exception("a task failed by a bug of ours", task=handle.id, kind=handle.task.kind)
            return TaskState.ERROR, None, internal_error().as_dict()

    async def _end(
        self, task_id: str, state: TaskState, *, result: Any = None, error: dict[str, Any] | None = None
    ) -> None:
        task = self._tasks[task_id]
        update: dict[str, Any] = {
            "state": state,
            "result": result,
            "error": error,
            "ended_at": time.time(),
            "cancellable": False,
            "doing": "",
            "version": task.version + 1,
        }
        if state is TaskState.SUCCESS:
            update["progress_percent"] = 100.0
        ended = task.model_copy(update=update)
        await self._persist_end(ended)
        self._tasks[task_id] = ended
        self._handles.pop(task_id, None)
        self._workers.pop(task_id, None)
        self._keepers.pop(task_id, None)
        if bell := self._changed.pop(task_id, None):
            bell.ring()
        self._notify(task_id)
        self._tell(ended)

    async def _persist_end(self, task: Task) -> None:
        """Write the end of one and forget the oldest, in one transaction. A full disk must not keep a task running."""
        final = [old.id for old in self._tasks.values() if old.state.is_final]
        surplus = final[: max(0, len(final) + 1 - self._history)]
        try:
            await self._store.put_all(
                [Put(_PREFIX + task.id, task.model_dump(mode="json")), *(Delete(_PREFIX + old) for old in surplus)]
            )
        except (RametError, OSError) as exc:
            log.error("the end of a task was not written", task=task.id, error=str(exc))
        for old in surplus:
            self._tasks.pop(old, None)
            self._notify(old)

    def _notify(self, task_id: str) -> None:
        for told in self.watchers:
            try:
                told(task_id)
            except Exception:
                log.exception("telling of a task's change failed", task=task_id)

    def _tell(self, task: Task) -> None:
        try:
            self._on_final(task)
        except Exception:
            log.exception("telling of a task's end failed", task=task.id)

    def _change(self, task_id: str, **update: Any) -> None:
        """In memory only: progress need not survive."""
        task = self._tasks[task_id]
        if task.state.is_final:
            return  # a straggler of the work
        self._tasks[task_id] = task.model_copy(update={**update, "version": task.version + 1})
        self._changed[task_id].ring()
        self._notify(task_id)


def _read(entries: list[Entry]) -> Iterator[Task]:
    """History alone is no reason to refuse the start: a record that is not valid is left where it is."""
    for entry in entries:
        try:
            yield Task.model_validate(entry.value)
        except ValidationError as exc:
            log.warning("a task of the past was ignored", key=entry.key, error=explain(exc))


async def _call(work: Work, handle: TaskHandle) -> Any:
    return await work(handle)


def _as_dict(error: RametError) -> dict[str, Any]:
    data: dict[str, Any] = to_jsonable_python(error.as_dict(), fallback=str)
    return data


def internal_error() -> InternalError:
    """What is shown of a bug of ours: nothing of its inside."""
    return InternalError(
        "Something went wrong inside Ramet.", hint="The daemon's log has the details; please report them."
    )
