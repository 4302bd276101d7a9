"""TaskHistoryCollector: pages through the tasks that fit a filter.

A collector stands between two tasks of the history, at its oldest end at first. Reading next goes towards the newest,
reading previous towards the oldest; what a collector has stood before never moves, for tasks are told apart by when
they were queued, and new ones are always newer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ramet.model.host import Task
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.inventory.shape import utc
from ramet.vsphere.tasks.record import Shown, event_chain, info, note_of, state_of
from ramet.vsphere.types import vim, vmodl

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World
    from ramet.vsphere.tasks.desk import Tasks

MAX_COLLECTORS = 32
MAX_PAGE = 1000
_PAGE = 10
_Place = tuple[float, str]
_OLDEST: _Place = (-1.0, "")
_NEWEST: _Place = (float("inf"), "")
Both = tuple[Task, Shown | None]


class TaskCollector(Mo):
    wire = vim.TaskHistoryCollector

    def __init__(self, world: World, moid: str, spec: Any) -> None:
        super().__init__(world, moid)
        self._spec = spec
        self._page = _PAGE
        self._last: _Place = _OLDEST
        """The newest task that lies behind."""

    @property
    def _tasks(self) -> Tasks:
        from ramet.vsphere.tasks.desk import Tasks

        return self.world.part(Tasks)

    def _matching(self) -> list[Both]:
        """Newest first."""
        return sorted(
            (both for both in self._tasks.known() if _fits(self.world, both, self._spec)),
            key=lambda both: _place(both[0]),
            reverse=True,
        )

    @prop("filter")
    def get_filter(self) -> Any:
        return self._spec

    @prop("latestPage")
    def get_latest(self) -> list[Any]:
        return _infos(self._matching()[: self._page])

    @operation("SetCollectorPageSize")
    async def set_page_size(self, call: Call, maxCount: int) -> None:
        self._page = _checked(maxCount)

    @operation("RewindCollector")
    async def rewind(self, call: Call) -> None:
        """To the oldest."""
        self._last = _OLDEST

    @operation("ResetCollector")
    async def reset(self, call: Call) -> None:
        """To the newest."""
        self._last = _NEWEST

    @operation("DestroyCollector")
    async def destroy(self, call: Call) -> None:
        self.world.drop(call, self.moid)

    @operation("ReadNextTasks")
    async def read_next(self, call: Call, maxCount: int) -> list[Any]:
        ahead = [both for both in reversed(self._matching()) if _place(both[0]) > self._last]
        page = ahead[: _checked(maxCount)]
        if page:
            self._last = _place(page[-1][0])
        return _infos(page)

    @operation("ReadPreviousTasks")
    async def read_previous(self, call: Call, maxCount: int) -> list[Any]:
        behind = [both for both in self._matching() if _place(both[0]) <= self._last]
        count = _checked(maxCount)
        page, rest = behind[:count], behind[count:]
        self._last = _place(rest[0][0]) if rest else _OLDEST
        return _infos(page)


def _place(task: Task) -> _Place:
    return task.created_at, task.id


def _checked(count: int) -> int:
    if not 0 < count <= MAX_PAGE:
        raise vmodl.fault.InvalidArgument(invalidProperty="maxCount", msg=f"A page has 1 to {MAX_PAGE} tasks.")
    return count


def _infos(page: Iterable[Both]) -> list[Any]:
    return [info(task, shown) for task, shown in page]


# -- filters -----------------------------------------------------------------------------------------------------------


def _fits(world: World, both: Both, spec: Any) -> bool:
    task, shown = both
    note = shown.note if shown is not None else note_of(task)
    if spec.tag or spec.parentTaskKey or spec.rootTaskKey or spec.activationId or spec.alarm or spec.scheduledTask:
        return False  # no task of this server has any
    return (
        (not spec.state or state_of(task, shown) in spec.state)
        and (not spec.eventChainId or event_chain(task.id) in spec.eventChainId)
        and (spec.userName is None or _by(note.user, spec.userName))
        and (spec.time is None or _at(task, spec.time))
        and (spec.entity is None or _about(world, note.entity, spec.entity))
    )


def _by(user: str, wanted: Any) -> bool:
    if wanted.systemUser and not user:
        return True
    return user in wanted.userList if wanted.userList else not wanted.systemUser


def _at(task: Task, wanted: Any) -> bool:
    at = {"queuedTime": task.created_at, "startedTime": task.started_at}.get(str(wanted.timeType), task.ended_at)
    if at is None:
        return False
    at = utc(at).timestamp()  # what a client was shown: whole microseconds
    after = wanted.beginTime is None or at >= wanted.beginTime.timestamp()
    return after and (wanted.endTime is None or at <= wanted.endTime.timestamp())


def _about(world: World, entity: str, wanted: Any) -> bool:
    """The entity itself, what is in it, or both."""
    moid, recursion = wanted.entity._moId, str(wanted.recursion)
    if entity == moid:
        return recursion in ("self", "all")
    return recursion in ("children", "all") and moid in _ancestors(world, entity, deep=recursion == "all")


def _ancestors(world: World, moid: str, deep: bool) -> list[str]:
    found: list[str] = []
    mo = world.get(moid)
    while mo is not None and "parent" in mo.getters and (deep or not found):
        parent = mo.getters["parent"](mo)
        if parent is None:
            break
        found.append(parent._moId)
        mo = world.get(parent._moId)
    return found
