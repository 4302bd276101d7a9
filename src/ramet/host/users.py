"""Users: who they are, what role they have, and whether a password is theirs.

    users = Users(inventory.users, limits)
    await users.add(AddUser(name="eve")) -> Credentials            # ConflictError; with the password if one was made
    await users.remove(name) / await users.set_role(name, role) / await users.set_password(name, password)
    await users.check(name, password) -> User | None               # None: wrong, unknown or locked; never which
    await users.first_administrator() -> Credentials | None        # None when there is a user already
    users.watch(gone)                     # gone(name) is called when a user's sessions must end

Passwords are kept as Argon2id hashes. Verifying one takes some tens of milliseconds of a processor and 19 MiB, in a
thread, and only a few at a time. A password that was right a moment ago is known again by a keyed digest in memory, so
that clients that log in for every call do not pay for it each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import structlog

from ramet.errors import BusyError, ConflictError, StateError, UsageError
from ramet.host.inventory import Table
from ramet.host.lockout import Lockout
from ramet.model.access import (
    LONGEST_PASSWORD,
    AddUser,
    Credentials,
    Role,
    User,
    UserView,
    check_password,
    user_name,
)

if TYPE_CHECKING:
    from argon2 import PasswordHasher

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

FIRST_ADMINISTRATOR = "administrator"
MOST_USERS = 1000
AT_ONCE = 2
"""Passwords that are verified at the same time: each takes 19 MiB and a processor."""
MOST_WAITING = 256
PROVEN_S = 300.0
_RANDOM = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Letters and digits that nobody takes for others."""


@dataclass(frozen=True)
class LoginLimits:
    failures: int = 5
    window_s: float = 600.0
    lock_s: float = 900.0


@dataclass
class _Proof:
    digest: bytes
    until: float


@dataclass
class Users:
    """`now` is Unix time. Records change in the inventory first."""

    table: Table[User]
    limits: LoginLimits = LoginLimits()
    now: Callable[[], float] = time.time
    hasher: Hasher = field(default_factory=lambda: Hasher())

    def __post_init__(self) -> None:
        limits = self.limits
        self._lockout = Lockout(limits.failures, limits.window_s, limits.lock_s)
        self._key = secrets.token_bytes(32)
        self._proven: dict[str, _Proof] = {}
        self._verifying: dict[bytes, asyncio.Future[bool]] = {}
        self._gone: list[Callable[[str], None]] = []
        self._changing = asyncio.Lock()

    def watch(self, gone: Callable[[str], None]) -> Callable[[], None]:
        """`gone` is told the name of each user that was removed, or whose password or role changed. Call what is
        returned to end it."""
        self._gone.append(gone)
        return lambda: self._gone.remove(gone)

    def views(self, sessions: Callable[[str], int] = lambda name: 0) -> list[UserView]:
        return [self._view(user, sessions(user.name)) for user in self.table.all()]

    def get(self, name: str) -> User | None:
        try:
            return self.table.get(user_name(name))
        except ValueError:
            return None

    async def first_administrator(self) -> Credentials | None:
        """An administrator with a random password where there is no user at all."""
        if self.table.all():
            return None
        return await self.add(AddUser(name=FIRST_ADMINISTRATOR, role=Role.ADMINISTRATOR))

    async def add(self, request: AddUser) -> Credentials:
        """ConflictError when there is one of that name."""
        given = request.password.get_secret_value() if request.password else None
        password = given or random_password()
        async with self._changing:
            if len(self.table.all()) >= MOST_USERS:
                raise StateError(f"There are {MOST_USERS} users already.", hint="Remove one first.", operation="add")
            if self.table.get(request.name) is not None:
                raise ConflictError(
                    f"There is a user {request.name!r} already.", hint="Choose another name.", name=request.name
                )
            hashed, now = await self.hasher.hash(password), self.now()
            await self.table.add(
                User(name=request.name, role=request.role, password_hash=hashed, created_at=now, changed_at=now)
            )
        return Credentials(name=request.name, password=None if given else password)

    async def remove(self, name: str) -> None:
        """NotFoundError; StateError for the last administrator while there are others."""
        async with self._changing:
            user = self._find(name)
            if user.role is Role.ADMINISTRATOR and len(self.table.all()) > 1:
                self._check_another(user, "remove")
            await self.table.remove(user.name)
            self._lockout.succeeded(user.name)
        self._end(user.name)

    async def set_role(self, name: str, role: Role) -> UserView:
        """Sessions that are open end, as they may have begun what is no longer allowed."""
        async with self._changing:
            user = self._find(name)
            if role is not Role.ADMINISTRATOR and user.role is Role.ADMINISTRATOR:
                self._check_another(user, "role")
            changed = user.changed(role=role, role_since=self.now())
            await self.table.put(changed)
        if role is not user.role:
            self._end(user.name)
        return self._view(changed, 0)

    async def set_password(self, name: str, password: str | None) -> Credentials:
        """A random one for None, which is told. Locks and sessions end."""
        _check_password(password)
        self._find(name)
        fresh = password or random_password()
        hashed = await self.hasher.hash(fresh)
        async with self._changing:
            user = self._find(name)
            await self.table.put(user.changed(password_hash=hashed, changed_at=self.now(), locked_until=0.0))
            self._lockout.succeeded(user.name)
        self._end(user.name)
        return Credentials(name=user.name, password=None if password else fresh)

    async def unlock(self, name: str) -> UserView:
        async with self._changing:
            changed = self._find(name).changed(locked_until=0.0)
            await self.table.put(changed)
            self._lockout.succeeded(changed.name)
        return self._view(changed, 0)

    async def check(self, name: str, password: str) -> User | None:
        """The user when the password is right and nothing is locked. It takes as long for a name that nobody has.

        BusyError when too many wait already.
        """
        user = self.get(name)
        if len(password) > LONGEST_PASSWORD:
            return None
        if user is None:
            await self.hasher.verify_nobody(password)
            return None
        if self.now() < self._locked_until(user):
            await self.hasher.verify_nobody(password)  # the time that it takes tells nothing either
            return None
        if self._is_proven(user, password):
            self._lockout.succeeded(user.name)
            return user
        return await self._judge(user, await self._verify(user, password), password)

    async def _verify(self, user: User, password: str) -> bool:
        """Clients that log in at the same moment with the same words cost one verification."""
        digest = self._digest(user, password)
        work = self._verifying.get(digest)
        if work is None:
            work = self._verifying[digest] = asyncio.ensure_future(self.hasher.verify(user.password_hash, password))
            work.add_done_callback(lambda done: self._verified(digest, done))
        return await asyncio.shield(work)

    def _verified(self, digest: bytes, done: asyncio.Future[bool]) -> None:
        self._verifying.pop(digest, None)
        if not done.cancelled():
            done.exception()  # whoever waits has it; with nobody there it is of no interest

    async def _judge(self, before: User, right: bool, password: str) -> User | None:
        """It may have been removed, changed or locked while the password was verified."""
        user = self.table.get(before.name)
        if user is None or user.password_hash != before.password_hash:
            return None
        if self.now() < self._locked_until(user):
            return None
        if right:
            self._lockout.succeeded(user.name)
            self._proven[user.name] = _Proof(self._digest(user, password), self.now() + PROVEN_S)
            return user
        until = self._lockout.failed(user.name, self.now())
        if until is not None:
            log.warning("a user is locked after wrong passwords", user=user.name)
            await self._lock(user, until)
        return None

    async def _lock(self, before: User, until: float) -> None:
        """It holds in memory already. It is written in turn with the other changes, so that none of them is lost, and
        not at all when one of them ended it."""
        async with self._changing:
            user = self.table.get(before.name)
            if user is not None and self._lockout.until(user.name) == until:
                await self.table.put(user.changed(locked_until=until))

    def _locked_until(self, user: User) -> float:
        """As it was written, or will be in a moment."""
        return max(user.locked_until, self._lockout.until(user.name))

    def _is_proven(self, user: User, password: str) -> bool:
        proof = self._proven.get(user.name)
        if proof is None or self.now() >= proof.until:
            self._proven.pop(user.name, None)
            return False
        return hmac.compare_digest(proof.digest, self._digest(user, password))

    def _digest(self, user: User, password: str) -> bytes:
        """Good for this hash only: a password that was changed proves nothing."""
        said = f"{user.password_hash}\0{password}".encode(errors="surrogatepass")
        return hmac.new(self._key, said, hashlib.sha256).digest()

    def _end(self, name: str) -> None:
        self._proven.pop(name, None)
        for gone in list(self._gone):
            gone(name)

    def _find(self, name: str) -> User:
        try:
            return self.table.find(user_name(name))
        except ValueError as exc:
            raise UsageError(f"{exc}.") from exc

    def _check_another(self, user: User, operation: str) -> None:
        if not any(other.role is Role.ADMINISTRATOR and other.name != user.name for other in self.table.all()):
            raise StateError(
                f"{user.name!r} is the last administrator.",
                hint="Make another one first: ramet user add NAME --role administrator",
                operation=operation,
            )

    def _view(self, user: User, sessions: int) -> UserView:
        locked_until = self._locked_until(user)
        return UserView(
            name=user.name,
            role=user.role,
            created_at=user.created_at,
            password_changed_at=user.changed_at,
            locked_until=locked_until if locked_until > self.now() else None,
            sessions=sessions,
        )


class Hasher:
    """Argon2id in threads, a few at a time. The cost is what OWASP names as the least: 19 MiB, twice over it."""

    def __init__(self, time_cost: int = 2, memory_kib: int = 19 * 1024) -> None:
        self._cost = (time_cost, memory_kib)
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._argon().hash(_bytes(password)))

    async def verify(self, hashed: str, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        def verify() -> bool:
            try:
                return bool(self._argon().verify(hashed, _bytes(password)))
            except (VerificationError, InvalidHashError):
                return False

        return await self._run(verify)

    async def verify_nobody(self, password: str) -> None:
        """As much work as a real one."""
        if self._nobody is None:
            self._nobody = await self.hash(random_password())
        await self.verify(self._nobody, password)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise BusyError("Too many logins wait already.", hint="Try again in a moment.", operation="login")
        self._waiting += 1
        try:
            async with self._gate:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1

    def _argon(self) -> PasswordHasher:
        from argon2 import PasswordHasher  # late: a host without users does not need it

        return PasswordHasher(time_cost=self._cost[0], memory_cost=self._cost[1], parallelism=1)


def random_password() -> str:
    """20 letters and digits, 115 bits."""
    return "".join(secrets.choice(_RANDOM) for _ in range(20))


def _bytes(password: str) -> bytes:
    """Halves of characters, which JSON can carry and UTF-8 cannot, are no more than a wrong password."""
    return password.encode(errors="surrogatepass")


def _check_password(password: str | None) -> None:
    if password is None:
        return
    try:
        check_password(password)
    except ValueError as exc:
        raise UsageError(f"{str(exc).capitalize()}.") from exc
