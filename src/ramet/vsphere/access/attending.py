"""What is told of every call: sessions in use do not grow old, and what changes something goes to the audit log.

Reads are not audited: their privileges are those that everybody has, and a client that waits for a task makes hundreds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ramet.host.audit import Audit
from ramet.vsphere.access.privileges import SYSTEM
from ramet.vsphere.access.sessions import Sessions, UserSession
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.world import World
from ramet.vsphere.types import operation_info, wire_name

_SESSIONS_OWN = ("SessionManager",)
"""It notes by itself who comes and goes."""
_READING = ("Retrieve", "Query", "Find", "Read", "List", "Has", "Fetch", "Check", "Wait")
_OF_A_SESSION = ("Collector", "Filter", "View", "ViewManager", "SearchIndex", "ServiceInstance")
"""Ends of the names of types whose objects belong to one session, or only answer."""


class Attendant:
    def __init__(self, world: World, sessions: Sessions, audit: Audit) -> None:
        self._world = world
        self._sessions = sessions
        self._audit = audit

    def came(self, call: Call) -> None:
        if isinstance(call.session, UserSession):
            self._sessions.enter(call.session)

    def went(self, call: Call, moid: str, name: str, fault: Any) -> None:
        if isinstance(call.session, UserSession):
            self._sessions.leave(call.session)
        mo = self._world.get(moid, call)
        if mo is None or not is_audited(mo.wire, name):
            return
        self._audit.note(
            f"{wire_name(mo.wire)}.{name}",
            user=call.principal,
            via="vsphere",
            peer=call.peer,
            session=call.session.key if call.session else None,
            object=moid,
            name=self._name_of(mo),
            result="ok" if fault is None else wire_name(type(fault)),
        )

    @staticmethod
    def _name_of(mo: Any) -> Any:
        try:
            name = mo.name
        except Exception:  # it has none, or is being removed
            return None
        return name if isinstance(name, str) else None


@cache
def is_audited(wire: Any, name: str) -> bool:
    """Whether calling it may change something that others see."""
    kind = wire_name(wire)
    if name == "Fetch" or kind in _SESSIONS_OWN or kind.endswith(_OF_A_SESSION):
        return False
    info = operation_info(wire, name)
    privilege = info.privId if info is not None else None
    if name.endswith("_Task"):  # some of them change something, and the schema asks no more than to look
        return privilege not in SYSTEM or not name.startswith(_READING)
    return privilege not in SYSTEM and not (privilege is None and name.startswith(_READING))
