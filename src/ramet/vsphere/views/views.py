"""Views: what a client wants to look at together. They belong to its session, and what is in them is always current.

A container view holds what is below an object; a list view what was put into it; an inventory view the root folder and
the children of what was opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ramet.vsphere.core.calls import CURRENT, Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.world import World
from ramet.vsphere.types import Support, is_a, vim, vmodl
from ramet.vsphere.views import tree

__all__ = ["ContainerView", "InventoryView", "ListView", "ViewManager", "objects"]

MAX_VIEWS = 2000
ROOT_FOLDER = "group-d1"


class _View(Mo):
    @operation("DestroyView")
    async def destroy(self, call: Call) -> None:
        self.world.drop(call, self.moid)
        self.world.updates.touch(self.moid)


class ContainerView(_View):
    wire = vim.view.ContainerView

    def __init__(self, world: World, moid: str, container: Mo, types: Any, is_recursive: bool) -> None:
        super().__init__(world, moid)
        self._container = container
        self._types = tuple(types or ())
        self._is_recursive = is_recursive
        self._stamp = -1
        self._known: list[Any] = []
        self._sources: set[str] = set()

    @prop("container")
    def container(self) -> Any:
        return self._container.ref

    @prop("type")
    def types(self) -> Any:
        return list(self._types)

    @prop("recursive")
    def recursive(self) -> bool:
        return self._is_recursive

    @prop("view")
    def view(self) -> Any:
        if self._stamp < 0 or self._is_stale():
            self._known = self._look()
        self._stamp = self.world.updates.stamp
        return Support.ManagedObject.Array(self._known)

    def _is_stale(self) -> bool:
        changes = self.world.updates.since(self._stamp)
        return (
            changes.everything
            or any(kind is None or is_a(kind, vim.ManagedEntity) for kind in changes.kinds)
            or not self._sources.isdisjoint(changes.touched)
        )

    def _look(self) -> list[Any]:
        if self.world.get(self._container.moid) is not self._container:
            return []
        if self._is_recursive:
            found, self._sources = tree.below(self.world, self._container)
        else:
            found, self._sources = tree.children(self._container), {self._container.moid}
        wanted: dict[Any, bool] = {}
        return [reference for reference in found if self._wants(type(reference), wanted)]

    def _wants(self, kind: Any, known: dict[Any, bool]) -> bool:
        if kind not in known:
            known[kind] = not self._types or any(is_a(kind, wanted) for wanted in self._types)
        return known[kind]


class _Holding(_View):
    """A view that is a list of objects, of which those are shown that there still are."""

    def __init__(self, world: World, moid: str) -> None:
        super().__init__(world, moid)
        self._held: dict[str, Any] = {}

    @prop("view")
    def view(self) -> Any:
        call = CURRENT.get()
        there = (reference for moid, reference in self._held.items() if self.world.get(moid, call) is not None)
        return Support.ManagedObject.Array(list(there))

    def _put(self, call: Call, references: Iterable[Any]) -> list[Any]:
        """Returns what there is not."""
        unresolved = []
        for reference in references:
            found = self.world.get(reference._moId, call)
            if found is None:
                unresolved.append(reference)
            else:
                self._held[found.moid] = found.ref
        return unresolved

    def _changed(self) -> None:
        self.world.updates.touch(self.moid)


class ListView(_Holding):
    wire = vim.view.ListView

    @operation("ModifyListView")
    async def modify(self, call: Call, add: Any = (), remove: Any = ()) -> Any:
        for reference in remove or ():
            self._held.pop(reference._moId, None)
        unresolved = self._put(call, add or ())
        self._changed()
        return Support.ManagedObject.Array(unresolved)

    @operation("ResetListView")
    async def reset(self, call: Call, obj: Any = ()) -> Any:
        self._held.clear()
        unresolved = self._put(call, obj or ())
        self._changed()
        return Support.ManagedObject.Array(unresolved)

    @operation("ResetListViewFromView")
    async def reset_from_view(self, call: Call, view: Any) -> None:
        seen = seen_in(self.world, call, view)
        self._held.clear()
        self._put(call, seen)
        self._changed()


class InventoryView(_Holding):
    wire = vim.view.InventoryView

    def __init__(self, world: World, moid: str) -> None:
        super().__init__(world, moid)
        self._opened: dict[str, Mo] = {}

    @prop("view")
    def view(self) -> Any:
        found = {ROOT_FOLDER: self.world.ref(ROOT_FOLDER)}
        for moid, mo in self._opened.items():
            if self.world.get(moid) is mo:
                found[moid] = mo.ref
                found.update((reference._moId, reference) for reference in tree.children(mo))
        return Support.ManagedObject.Array([reference for reference in found.values() if reference is not None])

    @operation("OpenInventoryViewFolder")
    async def open(self, call: Call, entity: Any) -> Any:
        unresolved = []
        for reference in entity:
            found = self.world.get(reference._moId, call)
            if found is None:
                unresolved.append(reference)
            else:
                self._opened[found.moid] = found
        self._changed()
        return vim.ManagedEntity.Array(unresolved)

    @operation("CloseInventoryViewFolder")
    async def close(self, call: Call, entity: Any) -> Any:
        unresolved = [reference for reference in entity if self.world.get(reference._moId, call) is None]
        for reference in entity:
            self._opened.pop(reference._moId, None)
        self._changed()
        return vim.ManagedEntity.Array(unresolved)


def seen_in(world: World, call: Call, view: Any) -> list[Any]:
    found = world.find(view._moId, call, view)
    if not isinstance(found, ContainerView | ListView | InventoryView):
        raise vmodl.fault.InvalidArgument(invalidProperty="view", msg=f"{view._moId} is no view.")
    return list(found.view())


class ViewManager(Mo):
    wire = vim.view.ViewManager

    @prop("viewList")
    def view_list(self) -> list[Any]:
        call = CURRENT.get()
        own = call.session.objects.values() if call is not None and call.session is not None else ()
        return [mo.ref for mo in own if isinstance(mo, _View)]

    @operation("CreateContainerView")
    async def create_container_view(self, call: Call, container: Any, recursive: bool, type: Any = ()) -> Any:
        found = self.world.find(container._moId, call, container)
        if not is_a(found.wire, vim.ManagedEntity):
            raise vmodl.fault.InvalidArgument(invalidProperty="container", msg="A container is an inventory object.")
        return self._keep(call, ContainerView(self.world, self.world.moid("view"), found, type, recursive))

    @operation("CreateListView")
    async def create_list_view(self, call: Call, obj: Any = ()) -> Any:
        made = ListView(self.world, self.world.moid("view"))
        made._put(call, obj or ())
        return self._keep(call, made)

    @operation("CreateListViewFromView")
    async def create_list_view_from_view(self, call: Call, view: Any) -> Any:
        made = ListView(self.world, self.world.moid("view"))
        made._put(call, seen_in(self.world, call, view))
        return self._keep(call, made)

    @operation("CreateInventoryView")
    async def create_inventory_view(self, call: Call) -> Any:
        return self._keep(call, InventoryView(self.world, self.world.moid("view")))

    def _keep(self, call: Call, view: _View) -> Any:
        own = call.session_or_fault(self).objects.values()
        if sum(isinstance(mo, _View) for mo in own) >= MAX_VIEWS:
            raise vmodl.fault.InvalidRequest(msg=f"There are {MAX_VIEWS} views already: destroy some of them.")
        return self.world.keep(call, view)


def objects(world: World) -> list[Mo]:
    return [ViewManager(world, "ViewManager")]
