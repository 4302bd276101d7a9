"""What one filter has seen of its objects, and what of that is news to a client of a certain version.

    tracker = Tracker(world, plan, is_partial, count)
    await tracker.refresh(call)              # look at what may have changed
    tracker.news(since) -> [News]            # in order, oldest first
    tracker.update(call, news, since) -> ObjectUpdate

`count()` gives the next number. Each object has the number of its last change, each property too: what is newer than
the number that a client brings is news to it, as often as it asks. Nothing is used up by telling it, so that any number
of clients may follow one filter.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from ramet.vsphere.collector.marks import differences, is_inside, mark, part_of, parts
from ramet.vsphere.collector.plan import Plan
from ramet.vsphere.collector.reading import missing_set, prepare_all, read
from ramet.vsphere.collector.selecting import Selection, select
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.pacing import Pace
from ramet.vsphere.core.updates import Changes
from ramet.vsphere.core.world import World
from ramet.vsphere.types import is_a, make, vim, vmodl, wire_name

__all__ = ["News", "Tracker"]

KEPT_LEFT = 2000
"""Objects that left and are remembered; a client that is further behind begins anew."""
_PC = vmodl.query.PropertyCollector
_Update, _Change = _PC.ObjectUpdate, _PC.Change


class News:
    """An object's last change. `entered` and `number` are in the same count; `left` says that it is there no more."""

    __slots__ = ("changed", "entered", "faults", "first", "left", "marks", "mo", "number", "paths")

    def __init__(self, mo: Mo, paths: tuple[str, ...]) -> None:
        self.mo = mo
        self.paths = paths
        self.number = 0
        self.entered = 0
        self.first = 0
        """When it entered for the first time: since then somebody may know of it."""
        self.left = False
        self.marks: list[Any] = []
        """One for each path; Parts of it when updates are partial."""
        self.faults: dict[str, str] = {}
        self.changed: dict[str, dict[str, tuple[int, str]]] | None = None
        """By path and part of it: the number of its last change, and how."""


class Tracker:
    def __init__(self, world: World, plan: Plan, is_partial: bool, count: Callable[[], int]) -> None:
        self._world = world
        self._plan = plan
        self._is_partial = is_partial
        self._count = count
        self._entries: OrderedDict[str, News] = OrderedDict()
        """In the order of their last changes; those that left are among them."""
        self._left: deque[str] = deque()
        """Those that left, oldest first; some have come back."""
        self.stamp = 0
        """Of the changes that were looked at."""
        self._selection: Selection | None = None
        self._roots = {str(root.ref._moId) for root in plan.roots}
        self._views: set[str] = set()
        self.missing: dict[str, tuple[int, Any]] = {}
        """Roots that are not there: since which number, and their references."""
        self.created = count()
        self.forgotten = 0
        """Clients that are further behind cannot be told all that they missed."""

    def is_stale(self) -> bool:
        """Whether something has changed that concerns it. What does not is passed over for good."""
        changes = self._world.updates.since(self.stamp)
        if changes.everything or self._selection is None or self._is_reshaped(changes):
            return True
        if any(moid in self._entries for moid in changes.touched):
            return True
        self.stamp = changes.stamp
        return False

    @property
    def lost(self) -> Any:
        """A reference of the first root that there is not; None when all are there."""
        gone = self._selection.missing if self._selection is not None else ()
        return gone[0] if gone else None

    def concerns(self, moid: str, shape: bool, kind: Any) -> bool:
        if moid in self._entries or moid in self._roots:
            return True
        if self._selection is not None and moid in self._selection.sources:
            return True
        return shape and self._plan.has_steps and self._plan.is_reached(kind)

    # -- looking -------------------------------------------------------------------------------------------------------

    async def refresh(self, call: Call) -> None:
        changes = self._world.updates.since(self.stamp)
        await self._refresh(call, changes)
        self.stamp = changes.stamp

    async def _refresh(self, call: Call, changes: Changes) -> None:
        everything = changes.everything or self._selection is None
        suspects = set(self._entries) if everything else {moid for moid in changes.touched if moid in self._entries}
        if everything or self._is_reshaped(changes):
            suspects |= self._take(await select(self._world, call, self._plan))
        looked = []
        for moid in suspects:
            entry = self._entries.get(moid)
            if entry is not None and not entry.left:
                looked.append(entry)
        looked.sort(key=lambda entry: entry.number)
        await prepare_all((entry.mo, entry.paths) for entry in looked if self._is_there(call, entry))
        pace = Pace()
        for entry in looked:
            if self._is_there(call, entry):
                self._look(call, entry)
            elif not entry.left:
                self._leave(entry.mo.moid, entry)
            if pace.is_due():
                await pace.rest()

    def _is_there(self, call: Call, entry: News) -> bool:
        """It may have gone while others were read."""
        return self._world.get(entry.mo.moid, call) is entry.mo

    def _is_reshaped(self, changes: Changes) -> bool:
        selection = self._selection
        assert selection is not None
        if any(moid in selection.sources or moid in self._roots for moid in changes.touched):
            return True
        return self._plan.has_steps and any(map(self._plan.is_reached, changes.kinds))

    def _take(self, selection: Selection) -> set[str]:
        """What is new comes in, what is gone goes out; returns whom to look at."""
        self._selection = selection
        suspects = set(self._views)
        for moid, mo in selection.found.items():
            known = self._entries.get(moid)
            if known is None or known.left or known.mo is not mo:
                self._enter(moid, mo)
                suspects.add(moid)
        for moid in [moid for moid, entry in self._entries.items() if not entry.left and moid not in selection.found]:
            self._leave(moid, self._entries[moid])
        self._note_missing(selection)
        return suspects

    def _enter(self, moid: str, mo: Mo) -> None:
        old = self._entries.pop(moid, None)
        entry = self._entries[moid] = News(mo, self._plan.paths_for(type(mo)) or ())
        entry.entered = entry.number = self._count()
        entry.first = entry.entered if old is None else old.first
        if is_a(mo.wire, vim.view.View):
            self._views.add(moid)

    def _leave(self, moid: str, entry: News) -> None:
        entry.left, entry.marks, entry.changed = True, [], None
        entry.number = self._count()
        self._entries.move_to_end(moid)
        self._views.discard(moid)
        self._left.append(moid)
        if len(self._left) > KEPT_LEFT:
            oldest = self._left.popleft()
            if oldest in self._entries and self._entries[oldest].left and oldest not in self._left:
                self.forgotten = self._entries.pop(oldest).number

    def _note_missing(self, selection: Selection) -> None:
        if not self._plan.reports_missing:
            return
        gone = {str(ref._moId): ref for ref in selection.missing}
        self.missing = {moid: known for moid, known in self.missing.items() if moid in gone}
        for moid, ref in gone.items():
            if moid not in self.missing:
                self.missing[moid] = (self._count(), ref)

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _look(self, call: Call, entry: News) -> None:
        said = read(entry.mo, entry.paths, call)
        faults = {path: wire_name(type(fault)) for path, fault in said.faults.items()}
        take = parts if self._is_partial else mark
        marks: list[Any] = [take(said.values.get(path), self._plan.version) for path in entry.paths]
        if entry.marks and (marks != entry.marks or faults != entry.faults):
            self._note(entry, self._changes(entry, marks, faults))
        entry.marks, entry.faults = marks, faults

    def _changes(self, entry: News, marks: list[Any], faults: dict[str, str]) -> Iterable[tuple[str, str, str]]:
        for path, old, new in zip(entry.paths, entry.marks, marks, strict=True):
            if entry.faults.get(path) != faults.get(path):
                yield path, "", "assign"
            elif old != new:
                for part, op in differences(old, new) if self._is_partial else (("", "assign"),):
                    yield path, part, op

    def _note(self, entry: News, changes: Iterable[tuple[str, str, str]]) -> None:
        entry.number = self._count()
        self._entries.move_to_end(entry.mo.moid)
        entry.changed = entry.changed or {}
        for path, part, op in changes:
            known = entry.changed.setdefault(path, {})
            for inner in [inner for inner in known if is_inside(inner, part)]:
                del known[inner]
            known[part] = (entry.number, op)

    # -- telling -------------------------------------------------------------------------------------------------------

    def news(self, since: int) -> list[News]:
        found = []
        for entry in reversed(self._entries.values()):
            if entry.number <= since:
                break
            if not entry.left or entry.first <= since:
                found.append(entry)
        found.reverse()
        return found

    def update(self, call: Call, entry: News, since: int) -> Any:
        if entry.left or not self._is_there(call, entry):
            return make(_Update, kind=_Update.Kind.leave, obj=entry.mo.ref)
        said = read(entry.mo, entry.paths, call)
        if entry.entered > since:
            kind = _Update.Kind.enter
            changes = [_change(path, "assign", value) for path, value in said.values.items()]
            faults = said.faults
        else:
            kind = _Update.Kind.modify
            told = list(_told(entry, since))
            changes = [
                _change(path + part, op, None if op == "remove" else part_of(said.values.get(path), part))
                for path, part, op in told
                if path not in said.faults
            ]
            faults = {path: said.faults[path] for path in {path for path, _, _ in told} if path in said.faults}
        made = make(_Update, kind=kind, obj=entry.mo.ref, changeSet=_Change.Array(changes))
        if faults:
            made.__dict__["missingSet"] = missing_set(faults)
        return made


def _told(entry: News, since: int) -> Iterable[tuple[str, str, str]]:
    for path, known in (entry.changed or {}).items():
        for part, (number, op) in known.items():
            if number > since:
                yield path, part, op


def _change(name: str, op: str, value: Any) -> Any:
    return make(_Change, name=name, op=getattr(_Change.Op, op), val=value)


