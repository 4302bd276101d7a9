"""What one property collector of one session keeps: its filters, its count of changes, and who waits at it.

    collection = Collection(world)
    collection.filters                       {id: tracker}, in the order in which they were made
    await collection.check(call, version, most) -> UpdateSet or None
    await collection.wait(call, version, timeout_s, most) -> UpdateSet or None
    collection.cancel()                      # whoever waits hears RequestCanceled

A version is the number of the last change that it covers, as text; the empty one covers nothing. A client that asks
again with an older version is told again what came after it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ramet.vsphere.collector.tracking import News, Tracker
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.pacing import Pace
from ramet.vsphere.core.world import World
from ramet.vsphere.types import make, vim, vmodl

__all__ = ["Collection"]

_PC = vmodl.query.PropertyCollector
_LONGEST_VERSION = 20
_DEAR_S = 0.005
_REST = 4
_LONGEST_REST_S = 0.5
"""To look through a large inventory anew for each of many objects that come is dear: such looks are some time apart."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One thing to tell: an object's news, a root that is not there, or only that there is a filter."""

    number: int
    filter_id: str
    tracker: Tracker
    news: News | None = None
    missing: Any = None


class Collection:
    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0
        self._lock = asyncio.Lock()
        self._waiting: set[asyncio.Event] = set()
        self._cancelled = 0
        self._rests_until = 0.0
        self.filters: dict[str, Tracker] = {}
        self.pages: OrderedDict[str, Any] = OrderedDict()
        """What is left of retrievals that were not ended, by token."""

    def count(self) -> int:
        self._number += 1
        return self._number

    def token(self) -> str:
        return str(self.count())

    def cancel(self) -> None:
        self._cancelled += 1
        for event in self._waiting:
            event.set()

    # -- updates -------------------------------------------------------------------------------------------------------

    async def check(self, call: Call, version: str | None, most: int | None) -> Any:
        """What is news to a client that has seen `version`, of at most so many objects; None when there is none."""
        since = self._since(version)
        async with self._lock:
            began = time.monotonic()
            for tracker in list(self.filters.values()):
                await tracker.refresh(call)
            took_s = time.monotonic() - began
            if took_s > _DEAR_S:
                self._rests_until = began + took_s + min(_REST * took_s, _LONGEST_REST_S)
        return await self._told(call, since, most)

    async def wait(self, call: Call, version: str | None, timeout_s: float, most: int | None) -> Any:
        """The same, as soon as there is any; None when the time has run out. RequestCanceled, NotAuthenticated."""
        until, generation = time.monotonic() + timeout_s, self._cancelled
        while True:
            if version:
                await asyncio.sleep(min(self._rests_until, until) - time.monotonic())
            told = await self.check(call, version, most)
            self._check_going_on(call, generation)
            left_s = until - time.monotonic()
            if told is not None or left_s <= 0:
                return told
            with self._world.updates.watch(self._concerns) as event, self._waits(event):
                if not any(tracker.is_stale() for tracker in self.filters.values()):
                    await _wait(event, left_s)
            self._check_going_on(call, generation)

    def _check_going_on(self, call: Call, generation: int) -> None:
        if call.session is None or call.session.is_over:
            raise vim.fault.NotAuthenticated(
                object=_PC("propertyCollector"), privilegeId="System.View", msg="The session has ended."
            )
        if self._cancelled != generation:
            raise vmodl.fault.RequestCanceled(msg="The wait for updates was cancelled.")

    @contextmanager
    def _waits(self, event: asyncio.Event) -> Iterator[None]:
        self._waiting.add(event)
        try:
            yield
        finally:
            self._waiting.discard(event)

    def ring(self) -> None:
        """A filter came or went: whoever waits looks again."""
        for event in self._waiting:
            event.set()

    def _concerns(self, moid: str, shape: bool, kind: Any) -> bool:
        return any(tracker.concerns(moid, shape, kind) for tracker in self.filters.values())

    # -- versions ------------------------------------------------------------------------------------------------------

    def _since(self, version: str | None) -> int:
        if not version:
            return 0
        if len(version) > _LONGEST_VERSION or not (version.isascii() and version.isdigit()):
            raise _bad_version(version)
        since = int(version)
        forgotten = max((tracker.forgotten for tracker in self.filters.values()), default=0)
        if since > self._number or (since and since < forgotten):
            raise _bad_version(version)
        return since

    async def _told(self, call: Call, since: int, most: int | None) -> Any:
        items = sorted(self._items(since), key=lambda item: item.number)
        if not items:
            return None
        cut = _first(items, most)
        is_cut, newest = len(cut) < len(items), self._number
        made = make(_PC.UpdateSet, version=str(cut[-1].number if is_cut else newest))
        made.__dict__["filterSet"] = await self._filter_set(call, cut, since)
        made.__dict__["truncated"] = True if is_cut else None
        return made

    def _items(self, since: int) -> Iterator[_Item]:
        for filter_id, tracker in self.filters.items():
            if tracker.created > since:
                yield _Item(tracker.created, filter_id, tracker)
            for number, ref in tracker.missing.values():
                if number > since:
                    yield _Item(number, filter_id, tracker, missing=ref)
            for entry in tracker.news(since):
                # What a client has not met yet stands at its beginning: cut off there, it is met the next time.
                number = entry.entered if entry.entered > since and not entry.left else entry.number
                yield _Item(number, filter_id, tracker, entry)

    async def _filter_set(self, call: Call, items: list[_Item], since: int) -> Any:
        by_filter: dict[str, list[_Item]] = {}
        for item in items:
            by_filter.setdefault(item.filter_id, []).append(item)
        return _PC.FilterUpdate.Array(
            [await self._filter_update(call, filter_id, told, since) for filter_id, told in by_filter.items()]
        )

    async def _filter_update(self, call: Call, filter_id: str, items: list[_Item], since: int) -> Any:
        """What changes meanwhile has a higher number than the version that is told: it is told again the next time."""
        tracker = items[0].tracker
        updates: list[Any] = []
        pace = Pace()
        for item in items:
            if item.news is not None and (not item.news.left or item.news.first <= since):
                updates.append(tracker.update(call, item.news, since))
            if pace.is_due():
                await pace.rest()
        gone = [_missing(item.missing) for item in items if item.missing is not None]
        return make(
            _PC.FilterUpdate,
            filter=_PC.Filter(filter_id),
            objectSet=_PC.ObjectUpdate.Array(updates),
            missingSet=_PC.MissingObject.Array(gone),
        )


def _first(items: list[_Item], most: int | None) -> list[_Item]:
    """Up to so many objects, and whatever else there is to tell among them."""
    numbers = [i for i, item in enumerate(items) if item.news is not None]
    return items if most is None or len(numbers) <= most else items[: numbers[most]]


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


def _missing(ref: Any) -> Any:
    return make(_PC.MissingObject, obj=ref, fault=not_found(ref))


def not_found(ref: Any) -> Any:
    return vmodl.fault.ManagedObjectNotFound(
        obj=ref,
        msg="The object has already been deleted or has not been completely created.",
    )


def _bad_version(version: str) -> Exception:
    made: Exception = vmodl.query.InvalidCollectorVersion(
        msg=f"The version {version[:_LONGEST_VERSION]!r} is not one of this collector's, or too old."
    )
    return made
