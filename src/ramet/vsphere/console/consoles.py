"""Tickets to consoles, and the consoles that are open.

    consoles = world.part(Consoles)
    consoles.ticket(mo, "4f2a…", call) -> secret
    consoles.redeem(secret) -> Grant or None         # once, within 30 s, while its session lasts and its user may
    with consoles.place(grant) as gone: …            # CapacityError; `gone` is set when this one has to end

A console that is open goes on when its session ends, as in the original: scripts ask for a ticket, log out and hand it
to a browser that came in time. It ends when its user is removed, has another password or role, or a role that allows
no consoles any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from ramet.errors import CapacityError
from ramet.vsphere.access.roles import Roles, has
from ramet.vsphere.core.calls import Call, Session
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.machine.tickets import Tickets

PATH = "/ticket"
PURPOSE = "console"
PRIVILEGE = "VirtualMachine.Interact.ConsoleInteract"
TICKET_S = 30.0
MOST = 64
"""Of a host: each holds a connection and some hundred KiB."""
MOST_EACH = 16
"""Of a user."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a ticket was given out for."""

    vm_id: str
    moid: str
    session: Session


class Consoles:
    """One a world; made by `opened`."""

    def __init__(self, tickets: Tickets, roles: Roles) -> None:
        self._tickets = tickets
        self._roles = roles
        self._open: dict[asyncio.Event, str] = {}
        """What ends each console, and its user's name."""

    def ticket(self, mo: Mo, vm_id: str, call: Call) -> str:
        session = call.session_or_fault(mo)
        return self._tickets.issue(PURPOSE, Grant(vm_id, mo.moid, session), session, TICKET_S)

    def redeem(self, secret: str) -> Grant | None:
        found = self._tickets.redeem(PURPOSE, secret)
        grant = found.what if found is not None else None
        return grant if isinstance(grant, Grant) and grant.session.may(PRIVILEGE) else None

    @contextmanager
    def place(self, grant: Grant) -> Iterator[asyncio.Event]:
        name = grant.session.user_name
        if len(self._open) >= MOST:
            raise CapacityError(f"{MOST} consoles are open already.", hint="Close one of them.")
        if list(self._open.values()).count(name) >= MOST_EACH:
            raise CapacityError(f"{MOST_EACH} consoles of {name!r} are open already.", hint="Close one of them.")
        gone = asyncio.Event()
        self._open[gone] = name
        try:
            yield gone
        finally:
            del self._open[gone]

    def end_of(self, user_name: str) -> None:
        for gone, name in self._open.items():
            if name == user_name:
                gone.set()

    def end_of_those_who_may_not(self) -> None:
        """By the roles as they are now. Their sessions may be over: it is the user who counts."""
        for gone, name in self._open.items():
            role = self._roles.of_user(name)
            if role is None or not has(role, PRIVILEGE):
                gone.set()

    def end_all(self) -> None:
        for gone in self._open:
            gone.set()

    def __len__(self) -> int:
        return len(self._open)


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[None]:
    """world.part(Consoles), until the end of the block."""
    roles = world.part(Roles)
    consoles = world.parts[Consoles] = Consoles(world.part(Tickets), roles)
    stops = [world.host.access.users.watch(consoles.end_of), roles.watch(consoles.end_of_those_who_may_not)]
    try:
        yield
    finally:
        for stop in stops:
            stop()
        consoles.end_all()
