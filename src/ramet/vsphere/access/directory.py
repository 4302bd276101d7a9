"""The UserDirectory: users of this host, as clients look for them. There are no groups and no other domains."""

from __future__ import annotations

from typing import Any

from ramet.vsphere.access.roles import Roles
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.types import vim

MOID = "UserDirectory"


class UserDirectory(Mo):
    wire = vim.UserDirectory

    @prop("domainList")
    def get_domains(self) -> list[str]:
        return []

    @operation("RetrieveUserGroups", privilege="System.View")
    async def retrieve(
        self,
        call: Call,
        searchStr: str,
        exactMatch: bool,
        findUsers: bool,
        findGroups: bool,
        domain: str | None = None,
        belongsToGroup: str | None = None,
        belongsToUser: str | None = None,
    ) -> list[Any]:
        """NotFound for a group, a user to whom something belongs, or a domain that is not there."""
        if belongsToGroup:
            raise fault(vim.fault.NotFound, f"There is no group {belongsToGroup[:80]!r}.")
        names = [name for name, _ in self.world.part(Roles).holders()]
        if belongsToUser and belongsToUser.lower() not in names:
            raise fault(vim.fault.NotFound, f"There is no user {belongsToUser[:80]!r}.")
        if not findUsers or belongsToUser:
            return []
        wanted = searchStr.lower()
        found = [name for name in names if (name == wanted if exactMatch else wanted in name)]
        return [vim.UserSearchResult(principal=name, fullName=name, group=False) for name in found]
