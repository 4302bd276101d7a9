"""The AuthorizationManager: roles, privileges, and who has them where. Here a user has one role everywhere.

Permissions stand on the root folder and are inherited by everything. Setting them there gives users another role;
anywhere else they are refused, and so are those of groups: there are none. Nobody gives what they have not, neither to
others nor to themselves, and nobody takes a role from those who may more, or changes or removes one that allows more
than their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ramet.vsphere import ids
from ramet.vsphere.access.privileges import all_privileges, group_of
from ramet.vsphere.access.roles import RoleRecord, Roles, has
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.types import vim, vmodl

MOID = "AuthorizationManager"
_MODIFY = "Authorization.ModifyPermissions"
_EVERYWHERE = "of users, on the root folder, propagating: a user has one role everywhere, and there are no groups"


class AuthorizationManager(Mo):
    wire = vim.AuthorizationManager

    @property
    def _roles(self) -> Roles:
        return self.world.part(Roles)

    # -- what there is -----------------------------------------------------------------------------------------------

    @prop("privilegeList")
    def get_privileges(self) -> list[Any]:
        kind = vim.AuthorizationManager.Privilege
        return [
            kind(privId=name, onParent=False, name=name.rpartition(".")[2], privGroupName=group_of(name))
            for name in all_privileges()
        ]

    @prop("roleList")
    def get_roles(self) -> list[Any]:
        return [_role(role) for role in self._roles.all()]

    @prop("description")
    def get_description(self) -> Any:
        groups = dict.fromkeys(group_of(name) for name in all_privileges())
        return vim.AuthorizationDescription(
            privilege=[_element(name) for name in all_privileges()], privilegeGroup=[_element(name) for name in groups]
        )

    # -- roles -------------------------------------------------------------------------------------------------------

    @operation("AddAuthorizationRole")
    async def add_role(self, call: Call, name: str, privIds: Sequence[str] = ()) -> int:
        self._require_having(call, privIds)
        return await self._roles.add(name, privIds)

    @operation("UpdateAuthorizationRole")
    async def update_role(self, call: Call, roleId: int, newName: str, privIds: Sequence[str] = ()) -> None:
        self._require_having(call, self._roles.get(roleId).privileges)
        self._require_having(call, privIds)
        await self._roles.update(roleId, newName, privIds)

    @operation("RemoveAuthorizationRole")
    async def remove_role(self, call: Call, roleId: int, failIfUsed: bool) -> None:
        self._require_having(call, self._roles.get(roleId).privileges)
        await self._roles.remove(roleId, failIfUsed)

    # -- permissions -------------------------------------------------------------------------------------------------

    @operation("RetrieveAllPermissions")
    async def retrieve_all(self, call: Call) -> list[Any]:
        return self.permissions()

    @operation("RetrieveRolePermissions")
    async def retrieve_of_role(self, call: Call, roleId: int) -> list[Any]:
        self._roles.get(roleId)
        return [permission for permission in self.permissions() if permission.roleId == roleId]

    @operation("RetrieveEntityPermissions", privilege="System.View")
    async def retrieve_of_entity(self, call: Call, entity: Any, inherited: bool) -> list[Any]:
        self.world.find(entity._moId, call)
        return self.permissions() if inherited or entity._moId == ids.ROOT_FOLDER else []

    def permissions(self) -> list[Any]:
        """Of every user, all on the root."""
        root = self.world.ref(ids.ROOT_FOLDER)
        kind = vim.AuthorizationManager.Permission
        return [
            kind(entity=root, principal=name, group=False, roleId=role.role_id, propagate=True)
            for name, role in self._roles.holders()
        ]

    @operation("SetEntityPermissions", privilege=_MODIFY, partial=_EVERYWHERE)
    async def set_permissions(self, call: Call, entity: Any, permission: Sequence[Any] = ()) -> None:
        self._check_place(call, entity, permission)
        self._check_gifts(call, permission)
        for one in permission:
            await self._roles.grant(one.principal, one.roleId)

    @operation("ResetEntityPermissions", privilege=_MODIFY, partial=_EVERYWHERE)
    async def reset_permissions(self, call: Call, entity: Any, permission: Sequence[Any] = ()) -> None:
        """Those who are not named lose what was given to them here; what they are on this host stays."""
        self._check_place(call, entity, permission)
        self._check_gifts(call, permission)
        named = {one.principal.lower() for one in permission}
        losing = [(name, role) for name, role in self._roles.holders() if not role.system and name not in named]
        for _, role in losing:
            self._require_having(call, role.privileges)
        for name, _ in losing:
            await self._roles.revoke(name)
        for one in permission:
            await self._roles.grant(one.principal, one.roleId)

    @operation("RemoveEntityPermission", privilege=_MODIFY, partial=_EVERYWHERE)
    async def remove_permission(self, call: Call, entity: Any, user: str, isGroup: bool) -> None:
        self._check_place(call, entity, ())
        held = next((role for name, role in self._roles.holders() if name == user.lower()), None)
        if held is None or isGroup:
            raise fault(vim.fault.NotFound, f"There is no permission of {user[:80]!r}.")
        if held.system:
            raise fault(vmodl.fault.NotSupported, "A user of this host has a role: 'ramet user rm' removes both.")
        self._require_having(call, held.privileges)
        await self._roles.revoke(user.lower())

    def _check_place(self, call: Call, entity: Any, permissions: Sequence[Any]) -> None:
        self.world.find(entity._moId, call)
        if entity._moId != ids.ROOT_FOLDER:
            raise fault(vmodl.fault.NotSupported, "A user has one role everywhere: set permissions on the root folder.")
        for one in permissions:
            if one.group:
                raise fault(vmodl.fault.NotSupported, "There are no groups here: name users.")
            if not one.propagate:
                raise fault(vmodl.fault.NotSupported, "A role holds everywhere: let the permission propagate.")

    def _check_gifts(self, call: Call, permissions: Sequence[Any]) -> None:
        """The role that is given, and the one that is taken for it."""
        for one in permissions:
            given, taken = self._roles.get(one.roleId), self._roles.of_user(one.principal)
            for role in (given, taken):
                if role is not None:
                    self._require_having(call, role.privileges)

    def _require_having(self, call: Call, privileges: Collection[str] | None) -> None:
        """NoPermission for the first that the caller lacks. None: everything."""
        for privilege in sorted(all_privileges() if privileges is None else privileges):
            call.require(privilege, self)

    # -- who may what ------------------------------------------------------------------------------------------------

    @operation("HasPrivilegeOnEntity")
    async def has_on_entity(self, call: Call, entity: Any, sessionId: str, privId: Sequence[str] = ()) -> list[bool]:
        self.world.find(entity._moId, call)
        role = self._role_of_session(sessionId)
        return [role is not None and has(role, name) for name in privId]

    @operation("HasPrivilegeOnEntities")
    async def has_on_entities(
        self, call: Call, entity: Sequence[Any], sessionId: str, privId: Sequence[str] = ()
    ) -> list[Any]:
        return self._each(call, entity, self._role_of_session(sessionId), privId)

    @operation("HasUserPrivilegeOnEntities", privilege="System.View")
    async def has_user_on_entities(
        self, call: Call, entities: Sequence[Any], userName: str, privId: Sequence[str] = ()
    ) -> list[Any]:
        return self._each(call, entities, self._roles.of_user(userName), privId)

    @operation("FetchUserPrivilegeOnEntities", privilege="System.View")
    async def fetch_of_user(self, call: Call, entities: Sequence[Any], userName: str) -> list[Any]:
        role = self._roles.of_user(userName)
        names = [name for name in all_privileges() if role is not None and has(role, name)]
        kind = vim.AuthorizationManager.UserPrivilegeResult
        return [kind(entity=self.world.find(one._moId, call).ref, privileges=names) for one in entities]

    def _role_of_session(self, key: str) -> RoleRecord | None:
        session = self.world.part(Sessions).by_key(key)
        return self._roles.of_user(session.user_name) if session else None

    def _each(self, call: Call, entities: Sequence[Any], role: RoleRecord | None, names: Sequence[str]) -> list[Any]:
        available = vim.AuthorizationManager.PrivilegeAvailability
        kind = vim.AuthorizationManager.EntityPrivilege
        return [
            kind(
                entity=self.world.find(one._moId, call).ref,
                privAvailability=[
                    available(privId=name, isGranted=role is not None and has(role, name)) for name in names
                ],
            )
            for one in entities
        ]


def _role(role: RoleRecord) -> Any:
    names = all_privileges() if role.privileges is None else sorted(role.privileges)
    return vim.AuthorizationManager.Role(
        roleId=role.role_id,
        system=role.system,
        name=role.name,
        info=vim.Description(label=role.label, summary=role.label),
        privilege=list(names),
    )


def _element(name: str) -> Any:
    return vim.ElementDescription(key=name, label=name.rpartition(".")[2] or name, summary=name)
