"""Everything that calls work on: the host, the managed objects by id, and what changed in them.

    world.find("vm-17", call) -> Mo          # ManagedObjectNotFound
    world.get("vm-17", call=None) -> Mo | None
    world.add(mo) / world.remove(moid)       # seen by all; whoever waits for changes is told
    world.keep(call, mo) / world.drop(call, moid)        # of one session: views, filters, collectors
    world.of_kind(vim.VirtualMachine) -> list[Mo]
    world.ref(moid) -> a reference, for properties       # None when there is no such object
    world.moid("view") -> "session[…]view-12"            # a fresh id for an object of a session
    world.host, world.store, world.updates, world.parts
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeVar

from ramet.vsphere.core.calls import Attendant, Call
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.updates import Updates
from ramet.vsphere.types import Support, is_a, vmodl

if TYPE_CHECKING:
    from ramet.host.service import Host
    from ramet.host.store import Store

P = TypeVar("P")


class World:
    def __init__(self, host: Host, store: Store) -> None:
        self.host = host
        self.store = store
        self.updates = Updates()
        self.parts: dict[type[Any], Any] = {}
        """The rooms' own services by their class, put there when the surface opens: `world.part(Sessions)`."""
        self.attendant: Attendant | None = None
        """Told of every call, when there is one."""
        self._objects: dict[str, Mo] = {}
        self._numbers = itertools.count(1)

    def part(self, kind: type[P]) -> P:
        found: P = self.parts[kind]
        return found

    def get(self, moid: str, call: Call | None = None) -> Mo | None:
        mine = call.session.objects.get(moid) if call is not None and call.session is not None else None
        return mine or self._objects.get(moid)

    def find(self, moid: str, call: Call | None = None, reference: Any = None) -> Mo:
        mo = self.get(moid, call)
        if mo is None:
            raise vmodl.fault.ManagedObjectNotFound(
                obj=reference or Support.ManagedObject(moid),
                msg="The object has already been deleted or has not been completely created.",
            )
        return mo

    def ref(self, moid: str) -> Any:
        mo = self._objects.get(moid)
        return None if mo is None else mo.ref

    def of_kind(self, wire: Any) -> list[Mo]:
        return [mo for mo in self._objects.values() if is_a(mo.wire, wire)]

    def add(self, mo: Mo) -> None:
        self._objects[mo.moid] = mo
        self.updates.reshape(mo.moid, mo.wire)

    def remove(self, moid: str) -> None:
        gone = self._objects.pop(moid, None)
        if gone is not None:
            self.updates.reshape(moid, gone.wire)

    def keep(self, call: Call, mo: Mo) -> Any:
        """Give an object to the caller's session; returns its reference."""
        call.session_or_fault(mo).objects[mo.moid] = mo
        return mo.ref

    def drop(self, call: Call, moid: str) -> None:
        if call.session is not None:
            call.session.objects.pop(moid, None)

    def moid(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"
