"""PropertyCollector and its filters, as managed objects.

The well-known collector is one object for all, and what it keeps is each session's own: two clients never see, use up
or cancel one another's updates. Further ones belong to the session that made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ramet.vsphere.collector.collection import Collection, not_found
from ramet.vsphere.collector.plan import plan_of
from ramet.vsphere.collector.reading import content, prepare_all
from ramet.vsphere.collector.selecting import select
from ramet.vsphere.collector.tracking import Tracker
from ramet.vsphere.core.calls import CURRENT, Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.pacing import Pace
from ramet.vsphere.core.world import World
from ramet.vsphere.types import make, vmodl

__all__ = ["WELL_KNOWN", "PropertyCollector", "PropertyFilter", "objects"]

WELL_KNOWN = "propertyCollector"
MAX_FILTERS = 2000
MAX_COLLECTORS = 100
MAX_PAGES = 32
LONGEST_WAIT_S = 1800.0
"""A client that waits without a bound of its own is answered then, with nothing new: its host may be long gone."""
_PC = vmodl.query.PropertyCollector


@dataclass(frozen=True, slots=True)
class _Page:
    """Objects that a retrieval has still to say something of."""

    objects: list[tuple[Mo, tuple[str, ...]]]
    most: int


class PropertyFilter(Mo):
    wire = _PC.Filter

    def __init__(self, world: World, moid: str, collector: PropertyCollector, spec: Any, is_partial: bool) -> None:
        super().__init__(world, moid)
        self.collector = collector
        self._spec = spec
        self._is_partial = is_partial

    @prop("spec")
    def spec(self) -> Any:
        return self._spec

    @prop("partialUpdates")
    def partial_updates(self) -> bool:
        return self._is_partial

    @operation("DestroyPropertyFilter")
    async def destroy(self, call: Call) -> None:
        collection = self.collector.collection(call)
        collection.filters.pop(self.moid, None)
        self.world.drop(call, self.moid)


class PropertyCollector(Mo):
    wire = _PC

    def collection(self, call: Call) -> Collection:
        """The caller's own."""
        state = call.session_or_fault(self).state
        found = state.get(self.moid)
        if found is None:
            found = state[self.moid] = Collection(self.world)
        assert isinstance(found, Collection)
        return found

    @prop("filter")
    def filters(self) -> list[Any]:
        call = CURRENT.get()
        if call is None or call.session is None:
            return []
        return [_PC.Filter(moid) for moid in self.collection(call).filters]

    # -- once ----------------------------------------------------------------------------------------------------------

    @operation("RetrieveProperties", anonymous=True)
    async def retrieve(self, call: Call, specSet: Any) -> Any:
        return _PC.ObjectContent.Array(await self._contents(call, await self._selected(call, specSet)))

    @operation("RetrievePropertiesEx", anonymous=True)
    async def retrieve_ex(self, call: Call, specSet: Any, options: Any) -> Any:
        most = options.maxObjects
        _check_positive("options.maxObjects", most)
        found = await self._selected(call, specSet)
        if call.session is None or not most:
            most = len(found) or 1
        return await self._page(call, found, most) if found else None

    @operation("ContinueRetrievePropertiesEx")
    async def continue_retrieve(self, call: Call, token: str) -> Any:
        page = self._take_page(call, token)
        return await self._page(call, page.objects, page.most)

    @operation("CancelRetrievePropertiesEx")
    async def cancel_retrieve(self, call: Call, token: str) -> None:
        self._take_page(call, token)

    def _take_page(self, call: Call, token: str) -> _Page:
        page = self.collection(call).pages.pop(token, None)
        if page is None:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="token", msg="No retrieval of this session is to be continued with this token."
            )
        assert isinstance(page, _Page)
        return page

    async def _page(self, call: Call, found: list[tuple[Mo, tuple[str, ...]]], most: int) -> Any:
        token = None
        if len(found) > most:
            collection = self.collection(call)
            token = collection.token()
            collection.pages[token] = _Page(found[most:], most)
            if len(collection.pages) > MAX_PAGES:
                collection.pages.popitem(last=False)
        contents = await self._contents(call, found[:most])
        return make(_PC.RetrieveResult, token=token, objects=_PC.ObjectContent.Array(contents))

    async def _selected(self, call: Call, specs: Any) -> list[tuple[Mo, tuple[str, ...]]]:
        found: list[tuple[Mo, tuple[str, ...]]] = []
        for plan in [plan_of(spec, call.version) for spec in specs]:
            selection = await select(self.world, call, plan)
            if selection.missing and not plan.reports_missing:
                raise not_found(selection.missing[0])
            found += [(mo, plan.paths_for(type(mo)) or ()) for mo in selection.found.values()]
        return found

    async def _contents(self, call: Call, found: list[tuple[Mo, tuple[str, ...]]]) -> list[Any]:
        contents: list[Any] = []
        await prepare_all(found)
        pace = Pace()
        for mo, paths in found:
            if self.world.get(mo.moid, call) is mo:  # else it went while others were read
                contents.append(content(mo, paths, call))
            if pace.is_due():
                await pace.rest()
        return contents

    # -- as it changes -------------------------------------------------------------------------------------------------

    @operation("CreateFilter")
    async def create_filter(self, call: Call, spec: Any, partialUpdates: bool) -> Any:
        collection = self.collection(call)
        if len(collection.filters) >= MAX_FILTERS:
            raise vmodl.fault.InvalidRequest(msg=f"There are {MAX_FILTERS} filters already: destroy some of them.")
        plan = plan_of(spec, call.version)
        tracker = Tracker(self.world, plan, partialUpdates, collection.count)
        await tracker.refresh(call)
        if tracker.lost is not None and not plan.reports_missing:
            raise not_found(tracker.lost)
        made = PropertyFilter(self.world, self.world.moid("filter"), self, spec, partialUpdates)
        collection.filters[made.moid] = tracker
        collection.ring()
        return self.world.keep(call, made)

    @operation("CheckForUpdates")
    async def check_for_updates(self, call: Call, version: str | None = None) -> Any:
        return await self.collection(call).check(call, version, None)

    @operation("WaitForUpdates", waits=True)
    async def wait_for_updates(self, call: Call, version: str | None = None) -> Any:
        found = await self.collection(call).wait(call, version, LONGEST_WAIT_S, None)
        return found if found is not None else make(_PC.UpdateSet, version=version or "")

    @operation("WaitForUpdatesEx", waits=True)
    async def wait_for_updates_ex(self, call: Call, version: str | None = None, options: Any = None) -> Any:
        seconds, most = (options.maxWaitSeconds, options.maxObjectUpdates) if options is not None else (None, None)
        _check_positive("options.maxObjectUpdates", most)
        if seconds is None:
            found = await self.collection(call).wait(call, version, LONGEST_WAIT_S, most)
            return found if found is not None else make(_PC.UpdateSet, version=version or "")
        if seconds < 0:
            raise vmodl.fault.InvalidArgument(
                invalidProperty="options.maxWaitSeconds", msg="A wait lasts no less than 0 s."
            )
        return await self.collection(call).wait(call, version, min(float(seconds), LONGEST_WAIT_S), most)

    @operation("CancelWaitForUpdates")
    async def cancel_wait_for_updates(self, call: Call) -> None:
        self.collection(call).cancel()

    # -- others --------------------------------------------------------------------------------------------------------

    @operation("CreatePropertyCollector")
    async def create_collector(self, call: Call) -> Any:
        own = call.session_or_fault(self).objects.values()
        if sum(isinstance(mo, PropertyCollector) for mo in own) >= MAX_COLLECTORS:
            raise vmodl.fault.InvalidRequest(
                msg=f"There are {MAX_COLLECTORS} collectors already: destroy some of them."
            )
        return self.world.keep(call, PropertyCollector(self.world, self.world.moid("collector")))

    @operation("DestroyPropertyCollector")
    async def destroy_collector(self, call: Call) -> None:
        if self.moid == WELL_KNOWN:
            raise vmodl.fault.NotSupported(msg="The session's own property collector ends with the session.")
        session, collection = call.session_or_fault(self), self.collection(call)
        collection.cancel()
        for moid in collection.filters:
            self.world.drop(call, moid)
        session.state.pop(self.moid, None)
        self.world.drop(call, self.moid)


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value <= 0:
        raise vmodl.fault.InvalidArgument(invalidProperty=name, msg=f"{name} is a number above 0, or left out.")


def objects(world: World) -> list[Mo]:
    return [PropertyCollector(world, WELL_KNOWN)]
