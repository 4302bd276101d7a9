"""GuestOperationsManager and what hangs on it, and the guest customization manager: the objects of this room."""

from __future__ import annotations

from typing import Any

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.core.world import World
from ramet.vsphere.guest.customization import GuestCustomizationManager
from ramet.vsphere.guest.files import FileManager
from ramet.vsphere.guest.login import guest_of
from ramet.vsphere.guest.processes import ProcessManager, Programs
from ramet.vsphere.machine.operations_life import refused
from ramet.vsphere.machine.tickets import Tickets
from ramet.vsphere.types import vim

GUEST_OPERATIONS = "guestOperationsManager"
AUTH, FILES, PROCESSES, ALIASES = (
    "guestOperationsAuthManager",
    "guestOperationsFileManager",
    "guestOperationsProcessManager",
    "guestOperationsAliasManager",
)
CUSTOMIZATION = "GuestCustomizationManager"
_BY_NAME = "Users of a guest are known by name and password: there are no tickets and no aliases."


class GuestOperationsManager(Mo):
    wire = vim.vm.guest.GuestOperationsManager

    @prop("authManager")
    def get_auth_manager(self) -> Any:
        return self.world.ref(AUTH)

    @prop("fileManager")
    def get_file_manager(self) -> Any:
        return self.world.ref(FILES)

    @prop("processManager")
    def get_process_manager(self) -> Any:
        return self.world.ref(PROCESSES)

    @prop("aliasManager")
    def get_alias_manager(self) -> Any:
        return self.world.ref(ALIASES)


class AuthManager(Mo):
    wire = vim.vm.guest.AuthManager

    @operation(
        "ValidateCredentialsInGuest", privilege="VirtualMachine.GuestOperations.Query",
        partial="by name and password",
    )
    async def validate(self, call: Call, vm: Any, auth: Any) -> None:
        await guest_of(self.world, vm, auth).check()

    @operation(
        "ReleaseCredentialsInGuest", privilege="VirtualMachine.GuestOperations.Query",
        partial="nothing is held: it does nothing",
    )
    async def release(self, call: Call, vm: Any, auth: Any) -> None:
        """Nothing is held."""

    acquire = refused("AcquireCredentialsInGuest", _BY_NAME)


class AliasManager(Mo):
    wire = vim.vm.guest.AliasManager

    add_alias = refused("AddGuestAlias", _BY_NAME)
    remove_alias = refused("RemoveGuestAlias", _BY_NAME)
    remove_by_cert = refused("RemoveGuestAliasByCert", _BY_NAME)
    list_aliases = refused("ListGuestAliases", _BY_NAME)
    list_mapped = refused("ListGuestMappedAliases", _BY_NAME)


def objects(world: World) -> list[Mo]:
    """And the parts of the world that they share."""
    world.parts.setdefault(Programs, Programs())
    world.parts.setdefault(Tickets, Tickets())
    return [
        GuestOperationsManager(world, GUEST_OPERATIONS),
        AuthManager(world, AUTH),
        FileManager(world, FILES),
        ProcessManager(world, PROCESSES),
        AliasManager(world, ALIASES),
        GuestCustomizationManager(world, CUSTOMIZATION),
    ]
