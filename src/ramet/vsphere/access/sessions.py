"""Sessions of clients: opened by a login, ended by a logout, by idleness, or with their user.

    sessions = world.part(Sessions)
    await sessions.login(name, password, peer=…, user_agent=…) -> UserSession      # vim.fault.InvalidLogin
    sessions.find(secret) -> UserSession or None       # touches it; None when unknown or expired
    sessions.end(session)
    sessions.all() -> list
    sessions.ticket(session) -> str;  sessions.redeem(ticket, …) -> UserSession    # InvalidLogin

A session in which a call is running does not grow old, however long that waits. Nobody can fill the server for others:
a user has so many sessions and no more, and when there are too many in all, whoever has the most gives way. Why a login
failed is never told: a wrong password, an unknown user and a locked one look the same.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import structlog

from ramet.errors import BusyError
from ramet.host.audit import Audit
from ramet.host.users import Users
from ramet.model.access import Role, User
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.types import vim, vmodl

log = structlog.stdlib.get_logger(__name__)

TICKET_S = 300.0
MOST_TICKETS = 20
"""Of a user: a further one takes the place of the oldest."""
YIELDS_AFTER_S = 60.0
"""Where there are too many sessions, the one that was left alone longest ends, if that is as long ago."""


@dataclass(slots=True, eq=False)
class UserSession:
    """One login. `secret` is what the client shows; `key` may be shown to others."""

    user_name: str
    role: Role
    allowed: Callable[[UserSession, str], bool]
    peer: str
    user_agent: str
    login_at: float
    last_active_at: float
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    secret: str = field(default_factory=lambda: secrets.token_hex(20))
    objects: dict[str, Mo] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    locale: str = "en"
    is_over: bool = False
    running: int = 0
    """Calls that are being served in it."""
    calls: int = 0

    def may(self, privilege: str) -> bool:
        return not self.is_over and self.allowed(self, privilege)


@dataclass(frozen=True)
class _Ticket:
    user_name: str
    until: float


class Sessions:
    """All that are open: at most `most`, and `most_each` of a user. `now` is Unix time; `on_end` is called after
    sessions have ended."""

    def __init__(
        self,
        users: Users,
        audit: Audit,
        allowed: Callable[[UserSession, str], bool],
        *,
        idle_s: float,
        most: int,
        most_each: int,
        now: Callable[[], float] = time.time,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._users = users
        self._audit = audit
        self._allowed = allowed
        self._idle_s = idle_s
        self._most = most
        self._most_each = most_each
        self._now = now
        self._on_end = on_end
        self._open: dict[str, UserSession] = {}
        self._tickets: dict[str, _Ticket] = {}

    # -- in ----------------------------------------------------------------------------------------------------------

    async def login(self, user_name: str, password: str, *, peer: str = "", user_agent: str = "") -> UserSession:
        """vim.fault.InvalidLogin, whatever is wrong; a SystemError when there are too many sessions, or logins."""
        try:
            user = await self._users.check(user_name, password)
        except BusyError as exc:
            raise vmodl.fault.SystemError(reason="Busy.", msg=str(exc)) from exc
        if user is None:
            self._audit.note("session.login", user=user_name, via="vsphere", peer=peer, result="InvalidLogin")
            raise invalid_login()
        return self._begin(user, peer, user_agent, "session.login")

    def _begin(self, user: User, peer: str, user_agent: str, action: str) -> UserSession:
        self._make_room(user.name)
        now = self._now()
        session = UserSession(user.name, user.role, self._allowed, peer, user_agent[:256], now, now)
        self._open[session.secret] = session
        self._audit.note(action, user=user.name, via="vsphere", peer=peer, session=session.key, result="ok")
        return session

    def _make_room(self, user_name: str) -> None:
        self.sweep()
        held = Counter(one.user_name for one in self._open.values())
        if held[user_name] >= self._most_each:
            self._push_out({user_name}, f"{user_name!r} has {held[user_name]} sessions already.")
        elif len(self._open) >= self._most:
            highest = max(held.values())
            greedy = {name for name, count in held.items() if count == highest}
            self._push_out(greedy & {user_name} or greedy, f"There are {self._most} sessions already.")

    def _push_out(self, users: Collection[str], said: str) -> None:
        """The session of these that was left alone longest. A SystemError when all of them are in use."""
        idle = [one for one in self._open.values() if one.user_name in users and not one.running]
        oldest = min(idle, key=lambda one: one.last_active_at, default=None)
        if oldest is None or oldest.last_active_at > self._now() - YIELDS_AFTER_S:
            hint = "Log out of those that are not needed."
            raise vmodl.fault.SystemError(reason="Too many sessions.", msg=f"{said} {hint}")
        self.end(oldest, "gave way to another")

    def ticket(self, session: UserSession) -> str:
        """For one further session of the same user, within five minutes."""
        now = self._now()
        self._tickets = {secret: one for secret, one in self._tickets.items() if one.until > now}
        own = [secret for secret, one in self._tickets.items() if one.user_name == session.user_name]
        for oldest in own[: max(0, len(own) + 1 - MOST_TICKETS)]:
            del self._tickets[oldest]
        secret = "cst-" + secrets.token_hex(20)
        self._tickets[secret] = _Ticket(session.user_name, now + TICKET_S)
        return secret

    def redeem(self, ticket: str, *, peer: str = "", user_agent: str = "") -> UserSession:
        """vim.fault.InvalidLogin when it was used, is too old, or the user is gone or locked."""
        found = self._tickets.pop(ticket, None)
        user = self._users.get(found.user_name) if found and found.until > self._now() else None
        if user is None or user.locked_until > self._now():
            self._audit.note("session.clone", via="vsphere", peer=peer, result="InvalidLogin")
            raise invalid_login()
        return self._begin(user, peer, user_agent, "session.clone")

    # -- there -------------------------------------------------------------------------------------------------------

    def find(self, secret: str | None) -> UserSession | None:
        """The session of that secret, which is in use from now; None when there is none, or it has expired."""
        session = self._open.get(secret) if secret else None
        if session is None:
            return None
        if self._is_stale(session):
            self.end(session, "expired")
            return None
        session.last_active_at = self._now()
        return session

    def by_key(self, key: str) -> UserSession | None:
        return next((one for one in self.all() if one.key == key), None)

    def all(self) -> list[UserSession]:
        """In the order in which they began."""
        self.sweep()
        return list(self._open.values())

    def count(self, user_name: str | None = None) -> int:
        return sum(user_name in (None, one.user_name) for one in self.all())

    def _is_stale(self, session: UserSession) -> bool:
        return not session.running and self._now() - session.last_active_at >= self._idle_s

    # -- out ---------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """End those that were left alone for too long."""
        for session in [one for one in self._open.values() if self._is_stale(one)]:
            self.end(session, "expired")

    def end(self, session: UserSession, why: str = "ok") -> None:
        """What belongs to it goes with it; who waits in it hears of it."""
        if self._open.pop(session.secret, None) is None:
            return
        session.is_over = True
        self._audit.note("session.end", user=session.user_name, via="vsphere", session=session.key, result=why)
        self._on_end()
        session.objects.clear()
        session.state.clear()

    def end_of(self, user_name: str) -> None:
        """All of a user's, and the tickets too: the user was removed, or has another password."""
        self._tickets = {secret: one for secret, one in self._tickets.items() if one.user_name != user_name}
        for session in [one for one in self._open.values() if one.user_name == user_name]:
            self.end(session, "ended by the administrator")

    def end_all(self) -> None:
        self._tickets.clear()
        for session in list(self._open.values()):
            self.end(session, "server closed")

    # -- calls -------------------------------------------------------------------------------------------------------

    def enter(self, session: UserSession) -> None:
        session.running += 1
        session.calls += 1

    def leave(self, session: UserSession) -> None:
        session.running -= 1
        session.last_active_at = self._now()


def invalid_login() -> Exception:
    fault: Exception = vim.fault.InvalidLogin(msg="Cannot complete login due to an incorrect user name or password.")
    return fault
