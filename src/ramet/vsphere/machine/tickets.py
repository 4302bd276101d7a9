"""Tickets: secrets that open one thing once, to whoever brings them, for a short time and while their session lasts.

tickets = world.part(Tickets)
tickets.issue("upload", what, session) -> secret
tickets.redeem("upload", secret) -> Ticket or None

What a ticket is for is kept in its session's own state, and nowhere else: it is gone in the moment in which the session
ends, be it by logout, by idleness, or because its user was removed or has another role. Nobody can use up the tickets
of others: a user who has too many that are unused loses the oldest.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

from ramet.vsphere.core.calls import Session

LIFE_S = 60.0
MOST_EACH = 64
"""Unused ones of a user: a further one takes the place of the oldest."""
_STATE = "tickets"


@dataclass(frozen=True, slots=True)
class Ticket:
    purpose: str
    what: Any
    session: Session
    until: float
    """On the monotonic clock."""


class Tickets:
    """One a world."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}
        """In whose state each is, in the order in which they were given out."""

    def issue(self, purpose: str, what: Any, session: Session, life_s: float = LIFE_S) -> str:
        now = time.monotonic()
        self._sweep(now)
        self._make_room(session.user_name)
        secret = secrets.token_urlsafe(32)
        key = _key(secret)
        self._sessions[key] = session
        _of(session)[key] = Ticket(purpose, what, session, now + life_s)
        return secret

    def redeem(self, purpose: str, secret: str) -> Ticket | None:
        """It is gone then, whether it was still good or not."""
        key = _key(secret)
        session = self._sessions.get(key)
        ticket = _of(session).get(key) if session is not None else None
        if ticket is None or ticket.purpose != purpose:
            return None
        self._drop(key)
        return ticket if ticket.until > time.monotonic() and not ticket.session.is_over else None

    def _sweep(self, now: float) -> None:
        for key, session in list(self._sessions.items()):
            ticket = _of(session).get(key)
            if ticket is None or ticket.until <= now or session.is_over:
                self._drop(key)

    def _make_room(self, user_name: str) -> None:
        own = [key for key, session in self._sessions.items() if session.user_name == user_name]
        for oldest in own[: max(0, len(own) + 1 - MOST_EACH)]:
            self._drop(oldest)

    def _drop(self, key: bytes) -> None:
        _of(self._sessions.pop(key)).pop(key, None)


def _of(session: Session) -> dict[bytes, Ticket]:
    found: dict[bytes, Ticket] = session.state.setdefault(_STATE, {})
    return found


def _key(secret: str) -> bytes:
    """Looked up by their hash: the time of a look-up tells nothing of the secrets."""
    return hashlib.sha256(secret.encode()).digest()
