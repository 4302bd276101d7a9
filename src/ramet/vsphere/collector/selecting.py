"""Which objects a plan finds: its roots, and what its traversals lead to.

    selection = await select(world, call, plan)
    selection.found                          {moid: object}, in the order in which they were found
    selection.sources                        ids of the objects that were gone through
    selection.missing                        references of roots that there are not

An object is visited once for each traversal, whatever circles there are. Objects that went meanwhile are passed over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ramet.vsphere.collector.plan import Plan, Step
from ramet.vsphere.collector.reading import prepare_all
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.pacing import Pace
from ramet.vsphere.core.properties import reader
from ramet.vsphere.core.world import World
from ramet.vsphere.types import Support, is_a, wire_name

__all__ = ["Selection", "select"]

OPEN_TO_ALL = ("ServiceInstance", "SessionManager")
"""What may be read before a login."""


@dataclass(slots=True)
class Selection:
    found: dict[str, Mo] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    missing: list[Any] = field(default_factory=list)


async def select(world: World, call: Call, plan: Plan) -> Selection:
    """NotAuthenticated when it is about anything but the service itself and there is no session."""
    walk = _Walk(world, call, plan)
    for root in plan.roots:
        mo = world.get(root.ref._moId, call)
        if mo is None or wire_name(mo.wire) not in OPEN_TO_ALL:
            call.known_or_fault(root.ref)  # before a login nobody learns what there is and what not
        if mo is None:
            walk.selection.missing.append(root.ref)
            continue
        walk.visit(mo, root.steps, root.skip)
    await walk.run()
    return walk.selection


class _Walk:
    def __init__(self, world: World, call: Call, plan: Plan) -> None:
        self.selection = Selection()
        self._world = world
        self._call = call
        self._plan = plan
        self._queue: deque[tuple[Mo, list[Step]]] = deque()
        self._seen: set[tuple[str, int]] = set()

    def visit(self, mo: Mo, steps: list[Step], skip: bool) -> None:
        if self._call.session is None and wire_name(mo.wire) not in OPEN_TO_ALL:
            self._call.session_or_fault(mo)
        if not skip and self._plan.paths_for(type(mo)) is not None:
            self.selection.found.setdefault(mo.moid, mo)
        if steps:
            self._queue.append((mo, steps))

    async def run(self) -> None:
        pace = Pace()
        while self._queue:
            mo, steps = self._queue.popleft()
            for step in steps:
                if is_a(mo.wire, step.kind) and (mo.moid, id(step)) not in self._seen:
                    self._seen.add((mo.moid, id(step)))
                    self.selection.sources.add(mo.moid)
                    await self._follow(mo, step)
                    if pace.is_due():
                        await pace.rest()

    async def _follow(self, mo: Mo, step: Step) -> None:
        await prepare_all([(mo, (step.path,))])
        references = _references(reader(type(mo), step.path)(mo))
        for reference in references:
            found = self._world.get(reference._moId, self._call)
            if found is not None:
                self.visit(found, step.steps, step.skip)


def _references(value: Any) -> Any:
    if isinstance(value, Support.ManagedObject):
        return (value,)
    if isinstance(value, list):
        return value if not value or isinstance(value[0], Support.ManagedObject) else ()
    return ()
