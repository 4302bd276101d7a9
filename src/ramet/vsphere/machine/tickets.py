"""Tickets: secrets that open one thing once, for a short time, to whoever brings them. They are kept in memory only.

tickets = world.part(Tickets)
tickets.issue("console", what, user_name) -> secret          # CapacityError when too many are open
tickets.redeem("console", secret) -> Ticket or None
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

from ramet.errors import CapacityError

LIFE_S = 60.0
MAX_OPEN = 1024


@dataclass(frozen=True, slots=True)
class Ticket:
    purpose: str
    what: Any
    user_name: str
    until: float
    """On the monotonic clock."""


class Tickets:
    """One a world."""

    def __init__(self) -> None:
        self._open: dict[bytes, Ticket] = {}

    def issue(self, purpose: str, what: Any, user_name: str, life_s: float = LIFE_S) -> str:
        now = time.monotonic()
        self._open = {key: ticket for key, ticket in self._open.items() if ticket.until > now}
        if len(self._open) >= MAX_OPEN:
            raise CapacityError(f"{MAX_OPEN} tickets are open.", hint="Use them, or wait a minute.")
        secret = secrets.token_urlsafe(32)
        self._open[_key(secret)] = Ticket(purpose, what, user_name, now + life_s)
        return secret

    def redeem(self, purpose: str, secret: str) -> Ticket | None:
        """It is gone then, whether it was still good or not."""
        ticket = self._open.get(_key(secret))
        if ticket is None or ticket.purpose != purpose:
            return None
        del self._open[_key(secret)]
        return ticket if ticket.until > time.monotonic() else None


def _key(secret: str) -> bytes:
    """Looked up by their hash: the time of a look-up tells nothing of the secrets."""
    return hashlib.sha256(secret.encode()).digest()
