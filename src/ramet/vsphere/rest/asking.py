"""How the operations of the automation API reach the managed objects: with the caller's session, through one door.

    ask = Ask(world, call)
    mo = ask.find("vm-17", vim.VirtualMachine)              # not_found when it is no such thing
    values = await ask.read(mo, "name", "runtime.powerState")
    result = await ask.do(mo, "PowerOnVM_Task")             # a task is waited for: its result, or the fault it ended in
    async for mo in ask.each(vim.VirtualMachine): …
    ask.is_under(mo, moids)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import read_all, value_at
from ramet.vsphere.core.world import World
from ramet.vsphere.rest.errors import ApiError
from ramet.vsphere.types import Support, is_a, vim, vmodl, wire_name

__all__ = ["Ask"]

PATIENCE_S = 3600.0
"""For a task that an operation waits for. The operation ends in timed_out; the task goes on."""
GLANCE_S = 5.0
_TURN = 50


@dataclass(frozen=True, slots=True)
class Ask:
    world: World
    call: Call
    _above: dict[str, frozenset[str]] = field(default_factory=dict)

    def find(self, moid: str, kind: Any) -> Mo:
        """The object of that id and kind, if the caller may see it."""
        mo = self.world.get(moid, self.call)
        if mo is None or not is_a(mo.wire, kind):
            raise ApiError("not_found", f"There is no {wire_name(kind)} {moid!r}.")
        self.call.require("System.View", mo)
        return mo

    def all_of(self, kind: Any) -> list[Mo]:
        """All objects of a kind. Whoever is not logged in sees none of them."""
        root = self.world.find("ServiceInstance")
        self.call.require("System.View", root)
        return self.world.of_kind(kind)

    async def read(self, mo: Mo, *paths: str) -> dict[str, Any]:
        return await read_all(mo, paths)

    async def do(self, mo: Mo, method: str, **arguments: Any) -> Any:
        given = {name: value for name, value in arguments.items() if value is not None}
        result = await invoke(self.world, self.call, mo.moid, method, given)
        return await self.wait(result) if isinstance(result, vim.Task) else result

    async def wait(self, task: Any) -> Any:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._until_done(task._moId)
        except TimeoutError:
            raise ApiError("timed_out", f"{task._moId} is still running; ask for it at cis/tasks.") from None

    async def _until_done(self, moid: str) -> Any:
        with self.world.updates.watch(lambda touched, shape, kind: touched == moid) as event:
            while True:
                event.clear()
                info = await self._info(moid)
                if info.state == "success":
                    return info.result
                if info.state == "error":
                    raise info.error or vmodl.fault.SystemError(msg="The task failed.")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), GLANCE_S)

    async def _info(self, moid: str) -> Any:
        mo = self.world.get(moid, self.call)
        info = None if mo is None else (await read_all(mo, ("info",))).get("info")
        if info is None:
            raise ApiError("not_found", f"The task {moid} is gone.")
        return info

    def is_under(self, mo: Mo, moids: Collection[str]) -> bool:
        """Whether one of these is above the object, at any height."""
        return not self.above(mo).isdisjoint(moids)

    def above(self, mo: Mo) -> frozenset[str]:
        """The ids of everything above an object. What stands side by side is asked about once in an operation."""
        parent = value_at(mo, "parent") if "parent" in mo.getters else None
        if parent is None:
            return frozenset()
        found = self._above.get(parent._moId)
        if found is None:
            higher = self.world.get(parent._moId, self.call)
            self._above[parent._moId] = frozenset()  # should one stand above itself
            found = frozenset({parent._moId}) | (self.above(higher) if higher is not None else frozenset())
            self._above[parent._moId] = found
        return found

    async def each(self, kind: Any) -> AsyncIterator[Mo]:
        """All objects of a kind that are still there; others have their turn in between."""
        for number, mo in enumerate(self.all_of(kind)):
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            if self.world.get(mo.moid) is mo:
                yield mo

    def reference(self, kind: Any, moid: str | None) -> Any:
        """To an object that there is; None for none."""
        return None if moid is None else self.find(moid, kind).ref

    async def content(self) -> Any:
        return (await read_all(self.world.find("ServiceInstance"), ("content",)))["content"]

    def same(self, reference: Any) -> Mo:
        """The object that a property of another one leads to."""
        if not isinstance(reference, Support.ManagedObject):
            raise ApiError("unsupported", "This server has nothing that does it.")
        return self.world.find(reference._moId, self.call)
