"""Roles and who has which: the three of this host, and those that clients define.

    roles = Roles(users, store);  await roles.load()
    roles.all() -> list[RoleRecord]              # the API's own and the host's first
    roles.of_user("eve") -> RoleRecord or None
    roles.may(session, "VirtualMachine.Interact.PowerOn") -> bool
    await roles.add(name, privileges) / .update(role_id, name, privileges) / .remove(role_id)
    await roles.grant("eve", role_id) / roles.revoke("eve")
    stop = roles.watch(changed)                  # called after each change of what somebody may

A user has one role, everywhere. A role of this host is the user's own; one that a client has defined is kept beside it,
until somebody says `ramet user role` of that user, or the role is removed: then it is gone for good. The number of a
role is never given again, as what remembers the old role would mean the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from ramet.host.store import Put, Store
from ramet.host.users import Users
from ramet.model.access import Role, User
from ramet.model.base import Model
from ramet.vsphere.access.privileges import SYSTEM, all_privileges, of_role
from ramet.vsphere.core.faults import fault
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.access.sessions import UserSession

log = structlog.stdlib.get_logger(__name__)

ROLE_PREFIX = "vsphere/role/"
GRANT_PREFIX = "vsphere/grant/"
NUMBER_KEY = "vsphere/role-number"
OPERATOR_ID = 1
_IDS = {Role.ADMINISTRATOR: -1, Role.READ_ONLY: -2, Role.OPERATOR: OPERATOR_ID}
_FIRST_CUSTOM = 100
MOST_ROLES = 200
LONGEST_NAME = 80


@dataclass(frozen=True)
class RoleRecord:
    """A role as clients see it. `privileges` is None for everything."""

    role_id: int
    name: str
    label: str
    privileges: frozenset[str] | None
    system: bool


class CustomRole(Model):
    """One that a client has defined, as it is kept."""

    role_id: int
    name: str
    privileges: tuple[str, ...]


class RoleNumber(Model):
    """The one that the next role gets."""

    next: int


class Grant(Model):
    """A custom role of a user; void when the user is no longer the same, or was given a role of this host since."""

    user: str
    role_id: int
    beside: Role
    created_at: float
    role_since: float = 0.0


_SYSTEM_ROLES = (
    RoleRecord(-5, "NoAccess", "No access", frozenset(), True),
    RoleRecord(-4, "Anonymous", "Anonymous", frozenset(SYSTEM[:1]), True),
    RoleRecord(-3, "View", "View", frozenset({"System.Anonymous", "System.View"}), True),
    RoleRecord(-2, "ReadOnly", "Read-only", frozenset(SYSTEM), True),
    RoleRecord(-1, "Admin", "Administrator", None, True),
)


class Roles:
    """Reads are of memory; writes are durable when they return."""

    def __init__(self, users: Users, store: Store) -> None:
        self._users = users
        self._store = store
        operator = RoleRecord(OPERATOR_ID, "Operator", "Operator of VMs", of_role(Role.OPERATOR), True)
        self._fixed = {role.role_id: role for role in (*_SYSTEM_ROLES, operator)}
        self._custom: dict[int, RoleRecord] = {}
        self._grants: dict[str, Grant] = {}
        self._next = _FIRST_CUSTOM
        self._changing = asyncio.Lock()
        self._watching: list[Callable[[], None]] = []

    async def load(self) -> None:
        """What was defined before. A record that is not valid is passed over: it allows nothing."""
        await self._load_roles()
        await self._load_grants()
        used = (*self._custom, *(grant.role_id for grant in self._grants.values()))
        self._next = max([await self._noted_number(), *(number + 1 for number in used)])
        await self._tidy()

    async def _load_roles(self) -> None:
        for entry in await self._store.list(ROLE_PREFIX):
            try:
                role = CustomRole.model_validate(entry.value)
            except ValidationError:
                log.warning("a role was ignored", key=entry.key)
                continue
            self._custom[role.role_id] = _record(role)

    async def _load_grants(self) -> None:
        for entry in await self._store.list(GRANT_PREFIX):
            try:
                grant = Grant.model_validate(entry.value)
            except ValidationError:
                log.warning("a grant was ignored", key=entry.key)
                continue
            self._grants[grant.user] = grant

    async def _tidy(self) -> None:
        """Grants that are void stay so: those of users who are gone or have been given another role, and of no role."""
        for name in list(self._grants):
            user = self._users.get(name)
            if user is None or self._valid_grant(user) is None:
                await self._revoke(name)

    async def _noted_number(self) -> int:
        entry = await self._store.get(NUMBER_KEY)
        try:
            return _FIRST_CUSTOM if entry is None else RoleNumber.model_validate(entry.value).next
        except ValidationError:
            log.warning("the number of the next role was ignored", key=NUMBER_KEY)
            return _FIRST_CUSTOM

    def all(self) -> list[RoleRecord]:
        return [*self._fixed.values(), *self._custom.values()]

    def get(self, role_id: int) -> RoleRecord:
        """vim.fault.NotFound."""
        role = self._fixed.get(role_id) or self._custom.get(role_id)
        if role is None:
            raise fault(vim.fault.NotFound, f"There is no role {role_id}.")
        return role

    def of_user(self, name: str) -> RoleRecord | None:
        user = self._users.get(name)
        if user is None:
            return None
        grant = self._valid_grant(user)
        return self._custom[grant.role_id] if grant else self._fixed[_IDS[user.role]]

    def _valid_grant(self, user: User) -> Grant | None:
        grant = self._grants.get(user.name)
        if grant is None or grant.role_id not in self._custom:
            return None
        same = (grant.beside, grant.created_at, grant.role_since) == (user.role, user.created_at, user.role_since)
        return grant if same else None

    def holders(self) -> list[tuple[str, RoleRecord]]:
        """Every user with the role."""
        pairs = [(view.name, self.of_user(view.name)) for view in self._users.views()]
        return [(name, role) for name, role in pairs if role is not None]

    def may(self, session: UserSession, privilege: str) -> bool:
        """Of several, set apart by spaces, all of them."""
        role = self.of_user(session.user_name)
        return role is not None and has(role, privilege)

    # -- changes -----------------------------------------------------------------------------------------------------

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """`changed` is called when a role that somebody may have was changed, given or taken here. Call what is
        returned to end it."""
        self._watching.append(changed)
        return lambda: self._watching.remove(changed)

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One at a time. It is told also when it was broken off: half of it may be done."""
        async with self._changing:
            try:
                yield
            finally:
                for changed in self._watching:
                    changed()

    async def add(self, name: str, privileges: Iterable[str]) -> int:
        """InvalidName, AlreadyExists; NotFound for a privilege that there is not."""
        async with self._changing:
            self._check_name(name, None)
            checked, number = _checked(privileges), self._next
            if len(self._custom) >= MOST_ROLES:
                raise fault(vim.fault.InvalidState, f"There are {MOST_ROLES} roles already.")
            role = CustomRole(role_id=number, name=name, privileges=checked)
            await self._store.put_all(
                [Put(NUMBER_KEY, RoleNumber(next=number + 1).model_dump(mode="json")), _entry(role)]
            )
            self._next, self._custom[number] = number + 1, _record(role)
        return number

    async def update(self, role_id: int, name: str, privileges: Iterable[str]) -> None:
        async with self._change():
            self._changeable(role_id)
            self._check_name(name, role_id)
            role = CustomRole(role_id=role_id, name=name, privileges=_checked(privileges))
            await self._store.put_all([_entry(role)])
            self._custom[role_id] = _record(role)

    async def remove(self, role_id: int, fail_if_used: bool) -> None:
        """Whoever has it is what they are on this host, from then on. The grants go first: none outlives its role."""
        async with self._change():
            self._changeable(role_id)
            if fail_if_used and any(role.role_id == role_id for _, role in self.holders()):
                raise fault(vim.fault.RemoveFailed, "The role is somebody's.")
            for name in [grant.user for grant in self._grants.values() if grant.role_id == role_id]:
                await self._revoke(name)
            await self._store.delete(f"{ROLE_PREFIX}{role_id}")
            self._custom.pop(role_id, None)

    async def grant(self, name: str, role_id: int) -> None:
        """UserNotFound, NotFound; a StateError for the last administrator's."""
        async with self._change():
            await self._grant(name, role_id)

    async def _grant(self, name: str, role_id: int) -> None:
        user = self._users.get(name)
        role = self.get(role_id)
        if user is None:
            raise fault(vim.fault.UserNotFound, f"There is no user {name!r}.", principal=name, unresolved=True)
        own = next((own for own, number in _IDS.items() if number == role_id), None)
        if own is not None:
            await self._users.set_role(user.name, own)
            await self._revoke(user.name)
        elif role_id in self._custom:
            if user.role is not Role.READ_ONLY:  # without the grant, which may become void, it is the least
                await self._users.set_role(user.name, Role.READ_ONLY)
            await self._put_grant(self._users.get(user.name) or user, role_id)
        else:
            raise fault(vim.fault.NotFound, f"The role {role.name} cannot be given to a user of this host.")

    async def _put_grant(self, user: User, role_id: int) -> None:
        grant = Grant(
            user=user.name, role_id=role_id, beside=user.role, created_at=user.created_at, role_since=user.role_since
        )
        await self._store.put(GRANT_PREFIX + user.name, grant.model_dump(mode="json"))
        self._grants[user.name] = grant

    async def revoke(self, name: str) -> None:
        """Back to the role that the user has on this host."""
        async with self._change():
            await self._revoke(name)

    async def _revoke(self, name: str) -> None:
        if name in self._grants:
            await self._store.delete(GRANT_PREFIX + name)
            self._grants.pop(name, None)

    def _changeable(self, role_id: int) -> None:
        if self.get(role_id).system:
            raise fault(vim.fault.NotFound, f"The role {role_id} is the server's own and cannot be changed.")

    def _check_name(self, name: str, but: int | None) -> None:
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise fault(vim.fault.InvalidName, f"{name[:80]!r} is no name for a role.", name=name[:80])
        if any(role.name.lower() == name.lower() and role.role_id != but for role in self.all()):
            raise fault(vim.fault.AlreadyExists, f"There is a role {name!r} already.", name=name)


def has(role: RoleRecord, privilege: str) -> bool:
    return role.privileges is None or role.privileges.issuperset(privilege.split())


def _entry(role: CustomRole) -> Put:
    return Put(f"{ROLE_PREFIX}{role.role_id}", role.model_dump(mode="json"))


def _record(role: CustomRole) -> RoleRecord:
    return RoleRecord(role.role_id, role.name, role.name, frozenset(role.privileges) | set(SYSTEM), False)


def _checked(privileges: Iterable[str]) -> tuple[str, ...]:
    wanted = sorted(set(privileges))
    known = set(all_privileges())
    strange = next((name for name in wanted if name not in known), None)
    if strange is not None:
        raise fault(vim.fault.NotFound, f"There is no privilege {strange[:80]!r}.")
    return tuple(wanted)
