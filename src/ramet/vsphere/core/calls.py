"""One call of a client: who makes it, and what it may.

    call = Call(session, version, peer)
    call.require("VirtualMachine.Interact.PowerOn", mo)      # NotAuthenticated, NoPermission
    call.session_or_fault(mo) -> Session                     # NotAuthenticated
    call.known_or_fault(reference) -> Session                # the same, of what may not be there
    call.principal -> "root", or "" before a login
    call.reply.session = session             # whoever logs in: its secret goes back to the client with the answer
    CURRENT.get() -> Call or None            # for the few properties that differ by who reads them
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ramet.vsphere.types import NEWEST, vim

if TYPE_CHECKING:
    from ramet.vsphere.core.objects import Mo


class Session(Protocol):
    """What a call needs to know of a session; the room `access` has the real one."""

    key: str
    """Shown to clients; not the secret of the cookie."""
    secret: str
    """What the cookie carries."""
    user_name: str
    is_over: bool
    """Set when it ends, before `Updates.wake`: whoever waits in it for changes then hears that it is over."""
    objects: dict[str, Mo]
    """Views, filters, collectors: they belong to it, nobody else sees them, and they end with it."""
    state: dict[str, Any]
    """What well-known objects keep for each session, by the object's id."""

    def may(self, privilege: str) -> bool: ...


@dataclass(slots=True)
class Reply:
    """What a call has to say beside its result."""

    session: Session | None = None
    """The session that it has opened: the protocol hands its secret to the client, as cookie or header."""


@dataclass(frozen=True, slots=True)
class Call:
    session: Session | None
    """None before a login."""
    version: str = NEWEST
    peer: str = ""
    """The client's address, for the audit log."""
    user_agent: str = ""
    host: str = ""
    """As the client names this server, with the port unless it is the usual one: 'esx1:8443'."""
    reply: Reply = field(default_factory=Reply)

    @property
    def principal(self) -> str:
        return self.session.user_name if self.session else ""

    def session_or_fault(self, mo: Mo, privilege: str = "System.View") -> Session:
        return self.known_or_fault(mo.ref, privilege)

    def known_or_fault(self, reference: Any, privilege: str = "System.View") -> Session:
        if self.session is None:
            raise vim.fault.NotAuthenticated(
                object=reference, privilegeId=privilege, msg="The session is not authenticated."
            )
        return self.session

    def require(self, privilege: str, mo: Mo, about: Any = None) -> None:
        """Refuse a user whose role has not this privilege. `about`: the reference that is told, if not that of `mo`."""
        if not self.session_or_fault(mo, privilege).may(privilege):
            raise vim.fault.NoPermission(
                object=mo.ref if about is None else about,
                privilegeId=privilege,
                msg=f"Permission to perform this operation was denied. It needs the privilege {privilege}.",
            )


CURRENT: ContextVar[Call | None] = ContextVar("CURRENT", default=None)
"""The call that is being served, in the task that serves it."""


class Attendant(Protocol):
    """Who is told of every call: for the audit log, and so that a session in use does not grow old."""

    def came(self, call: Call) -> None: ...

    def went(self, call: Call, moid: str, name: str, fault: Any) -> None:
        """`fault` is None when it succeeded."""
