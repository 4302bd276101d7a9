"""The EventManager and its collectors: what happened on the host, filtered and in pages.

A collector stands between two events, at the oldest end at first. Reading next goes towards the newest, reading
previous towards the oldest; events are numbered, so what it has passed never moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ramet.vsphere import ids
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.world import World
from ramet.vsphere.managers.event_kinds import CATEGORIES, POSTED, TYPES, USER_EVENT, Told
from ramet.vsphere.types import is_a, vim, vmodl

MOID = "EventManager"
MOST_COLLECTORS = 32
"""In one session."""
MOST_EVENTS = 1000
"""In one answer."""
LONGEST_MESSAGE = 1024
_PAGE = 10
_ABOVE = (ids.VM_FOLDER, ids.DATACENTER, ids.ROOT_FOLDER)
"""Of a VM that is gone."""


class EventManager(Mo):
    wire = vim.event.EventManager

    @prop("maxCollector")
    def get_most(self) -> int:
        return MOST_COLLECTORS

    @prop("latestEvent")
    def get_latest(self) -> Any:
        last = self.world.host.events.recent(1)
        return Told.of(last[0]).full(self.world) if last else None

    @prop("description")
    def get_description(self) -> Any:
        return vim.event.EventDescription(
            category=[vim.ElementDescription(key=key, label=text, summary=text) for key, text in CATEGORIES.items()],
            eventInfo=[_detail(name) for name in TYPES],
        )

    @operation("QueryEvents")
    async def query(self, call: Call, filter: Any, eventViewSpec: Any = None) -> list[Any]:
        """The newest that fit, in the order in which they happened."""
        most = min(filter.maxCount or MOST_EVENTS, MOST_EVENTS)
        found = list(matching(self.world, filter))
        return [told.full(self.world) for told in found[-most:]]

    @operation("CreateCollectorForEvents")
    async def create_collector(self, call: Call, filter: Any) -> Any:
        own = [mo for mo in call.session_or_fault(self).objects.values() if isinstance(mo, EventCollector)]
        if len(own) >= MOST_COLLECTORS:
            raise fault(vim.fault.InvalidState, f"A session has at most {MOST_COLLECTORS} collectors of events.")
        return self.world.keep(call, EventCollector(self.world, self.world.moid("EventHistoryCollector"), filter))

    @operation("RetrieveArgumentDescription")
    async def arguments(self, call: Call, eventTypeId: str) -> list[Any]:
        if eventTypeId.rpartition(".")[2] not in TYPES:
            raise fault(vmodl.fault.InvalidArgument, "No event here is of that type.", invalidProperty="eventTypeId")
        return []

    @operation("LogUserEvent", privilege="Global.LogEvent")
    async def log_user_event(self, call: Call, entity: Any, msg: str) -> None:
        mo: Any = self.world.find(entity._moId, call)
        name = mo.name if isinstance(getattr(mo, "name", None), str) else ""
        self._emit(USER_EVENT, msg, mo.moid, call, name=name)

    @operation("PostEvent")
    async def post(self, call: Call, eventToPost: Any, taskInfo: Any = None) -> None:
        """Those with an id of their own. InvalidEvent for types that the server itself makes."""
        if not isinstance(eventToPost, vim.event.EventEx):
            raise fault(vim.fault.InvalidEvent, "Post an EventEx: the server makes all other events by itself.")
        moid = eventToPost.objectId or ids.ROOT_FOLDER
        message = eventToPost.message or eventToPost.fullFormattedMessage or eventToPost.eventTypeId
        severity = eventToPost.severity or "info"
        self._emit(POSTED, message, moid[:80], call, type_id=eventToPost.eventTypeId[:200], severity=severity)

    def _emit(self, kind: str, message: str, moid: str, call: Call, **fields: Any) -> None:
        if not message or len(message) > LONGEST_MESSAGE:
            raise fault(
                vmodl.fault.InvalidArgument, f"A message has 1 to {LONGEST_MESSAGE} characters.", invalidProperty="msg"
            )
        vm_id = ids.vm_id(moid)
        vm = self.world.host.floor.inventory.get_vm(vm_id) if vm_id else None
        self.world.host.events.emit(kind, message, vm=vm, moid=moid, user=call.principal, **fields)


class EventCollector(Mo):
    """Belongs to a session."""

    wire = vim.event.EventHistoryCollector

    def __init__(self, world: World, moid: str, spec: Any) -> None:
        super().__init__(world, moid)
        self._spec = spec
        self._page = _PAGE
        self._passed = 0
        """Number of the newest event that lies behind."""

    @prop("filter")
    def get_filter(self) -> Any:
        return self._spec

    @prop("initialized")
    def get_initialized(self) -> bool:
        return True

    @prop("latestPage")
    def get_latest(self) -> list[Any]:
        """Newest first."""
        return self._full(reversed(list(matching(self.world, self._spec))[-self._page :]))

    @operation("SetCollectorPageSize", privilege="System.View")
    async def set_page_size(self, call: Call, maxCount: int) -> None:
        self._page = _checked(maxCount)

    @operation("RewindCollector", privilege="System.View")
    async def rewind(self, call: Call) -> None:
        """To the oldest."""
        self._passed = 0

    @operation("ResetCollector", privilege="System.View")
    async def reset(self, call: Call) -> None:
        """To the newest."""
        self._passed = self.world.host.events.last_seq

    @operation("DestroyCollector", privilege="System.View")
    async def destroy(self, call: Call) -> None:
        self.world.drop(call, self.moid)

    @operation("ReadNextEvents", privilege="System.View")
    async def read_next(self, call: Call, maxCount: int) -> list[Any]:
        most = _checked(maxCount)
        page: list[Told] = []
        for told in matching(self.world, self._spec, self._passed):
            page.append(told)
            if len(page) == most:
                break
        if page:
            self._passed = page[-1].event.seq
        return self._full(page)

    @operation("ReadPreviousEvents", privilege="System.View")
    async def read_previous(self, call: Call, maxCount: int) -> list[Any]:
        """Newest first."""
        behind = [told for told in matching(self.world, self._spec) if told.event.seq <= self._passed]
        page = behind[-_checked(maxCount) :]
        self._passed = page[0].event.seq - 1 if page else 0
        return self._full(reversed(page))

    def _full(self, page: Iterable[Told]) -> list[Any]:
        return [told.full(self.world) for told in page]


def _checked(count: int) -> int:
    if not 0 < count <= MOST_EVENTS:
        raise fault(vmodl.fault.InvalidArgument, f"A page has 1 to {MOST_EVENTS} events.", invalidProperty="maxCount")
    return count


def _detail(name: str) -> Any:
    return vim.event.EventDescription.EventDetail(
        key=getattr(vim.event, name),
        description=name,
        category="warning" if "Warning" in name else "user" if "User" in name else "info",
        formatOnDatacenter="{fullFormattedMessage}",
        formatOnComputeResource="{fullFormattedMessage}",
        formatOnHost="{fullFormattedMessage}",
        formatOnVm="{fullFormattedMessage}",
        fullFormat="{fullFormattedMessage}",
    )


# -- filters -----------------------------------------------------------------------------------------------------------


def matching(world: World, spec: Any, since: int = 0) -> Iterator[Told]:
    """Those after the number `since` that fit, oldest first."""
    if spec.alarm or spec.scheduledTask or spec.tag or spec.auditId:
        return  # no event of this server has any
    for event in world.host.events.recent(1 << 30, since):
        told = Told.of(event)
        if _fits(told, spec) and (spec.entity is None or _is_about(world, told.moid, spec.entity)):
            yield told


def _fits(told: Told, spec: Any) -> bool:
    return (
        (spec.time is None or _is_at(told.event.at, spec.time))
        and (not spec.category or told.category in spec.category)
        and (not spec.eventTypeId or not told.type_names.isdisjoint(spec.eventTypeId))
        and (not spec.type or any(is_a(told.wire, wanted) for wanted in spec.type))
        and (spec.userName is None or _is_by(told.user, spec.userName))
        and (spec.eventChainId in (None, told.event.seq))
    )


def _is_at(at: float, wanted: Any) -> bool:
    after = wanted.beginTime is None or at >= wanted.beginTime.timestamp()
    return after and (wanted.endTime is None or at <= wanted.endTime.timestamp())


def _is_by(user: str, wanted: Any) -> bool:
    if wanted.systemUser and not user:
        return True
    return user in wanted.userList if wanted.userList else not wanted.systemUser


def _is_about(world: World, moid: str, wanted: Any) -> bool:
    """The entity itself, what is in it, or both."""
    target, recursion = wanted.entity._moId, str(wanted.recursion)
    if moid == target:
        return recursion in ("self", "all")
    if recursion == "self":
        return False
    above = ancestors(world, moid)
    return target in (above if recursion == "all" else above[:1]) or (target == ids.HOST and moid.startswith("vm-"))


def ancestors(world: World, moid: str) -> list[str]:
    """The parent first. Of a VM that is gone: where VMs are."""
    found: list[str] = []
    mo: Any = world.get(moid)
    if mo is None:
        return list(_ABOVE)
    while mo is not None and (parent := getattr(mo, "parent_moid", None)):
        found.append(parent)
        mo = world.get(parent)
    return found


async def follow(world: World) -> None:
    """Until cancelled: whoever waits for the latest event, or for a collector's latest page, hears of each."""
    async for _ in world.host.events.follow():
        world.updates.touch(MOID)
        for session in world.part(Sessions).all():
            for mo in list(session.objects.values()):
                if isinstance(mo, EventCollector):
                    world.updates.touch(mo.moid)
