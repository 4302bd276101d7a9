"""Logging in, roles and privileges, as clients ask for them; through the one door that all protocols use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ramet.host.service import Host
from ramet.model.access import AddUser, Role
from ramet.vsphere import ids
from ramet.vsphere.access.attending import is_audited
from ramet.vsphere.access.privileges import all_privileges, of_role
from ramet.vsphere.access.roles import GRANT_PREFIX, NUMBER_KEY, ROLE_PREFIX, Roles
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.types import NEWEST, operation_info, vim, vmodl, wire_name
from tests.vsphere.kit import record_vm, seen, until
from tests.vsphere.web_kit import browsing

PASSWORD = "correct horse"
MANAGER = "AuthorizationManager"


async def logged_in(world: World, role: Role, name: str = "eve") -> Call:
    access = world.host.access
    if access.users.get(name) is None:
        await access.add_user(AddUser(name=name, role=role, password=SecretStr(PASSWORD)))
    call = Call(None, NEWEST, "10.0.0.7", "test")
    await invoke(world, call, "SessionManager", "Login", {"userName": name, "password": PASSWORD})
    assert call.reply.session is not None
    return Call(call.reply.session, NEWEST, "10.0.0.7", "test")


async def current(world: World, call: Call) -> Any:
    return await invoke(world, call, "SessionManager", "Fetch", {"prop": "currentSession"})


async def test_a_login_opens_a_session_and_a_logout_ends_it(world: World) -> None:
    assert await current(world, Call(None)) is None
    call = await logged_in(world, Role.OPERATOR)
    session = await current(world, call)
    assert (session.userName, session.ipAddress, session.userAgent) == ("eve", "10.0.0.7", "test")
    assert session.callCount == 1
    assert await invoke(world, call, "SessionManager", "SessionIsActive", {"sessionID": session.key, "userName": "eve"})
    await invoke(world, call, "SessionManager", "Logout", {})
    assert world.part(Sessions).all() == []
    with pytest.raises(vim.fault.NoPermission):
        await invoke(world, call, "SessionManager", "Logout", {})


async def test_who_is_not_logged_in_is_told_so(world: World) -> None:
    for moid, name, arguments in (
        (ids.ROOT_FOLDER, "Fetch", {"prop": "name"}),
        (MANAGER, "RetrieveAllPermissions", {}),
        ("SessionManager", "AcquireCloneTicket", {}),
    ):
        with pytest.raises(vim.fault.NotAuthenticated):
            await invoke(world, Call(None), moid, name, arguments)


async def test_a_stranger_learns_of_no_object_whether_it_is_there(world: World, host: Host) -> None:
    """The whole answer is the same, on each way that leads to an object."""
    vm = await seen(world, await record_vm(host, "web"))

    async def told(moid: str, method: str, arguments: Any) -> tuple[str, Any]:
        with pytest.raises(vim.fault.NotAuthenticated) as caught:
            await invoke(world, Call(None), moid, method, arguments)
        fault: Any = caught.value
        return fault.msg, (fault.privilegeId, fault.object._moId == moid, type(fault.object))

    for method, arguments in (
        ("Fetch", {"prop": "name"}),
        ("PowerOnVM_Task", {}),
        ("AcquireMksTicket", {}),
        ("CreateFolder", {"name": "x"}),
        ("No_Such", {}),
    ):
        assert await told(vm.moid, method, arguments) == await told("vm-7", method, arguments), method
    await same_over_the_wire(world, vm.moid)


ENVELOPE = (
    '<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body xmlns="urn:vim25" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">%s</Body></Envelope>'
)
SOAP_CALLS = (
    '<PowerOnVM_Task><_this type="VirtualMachine">vm-7</_this></PowerOnVM_Task>',
    '<Fetch><_this type="Folder">vm-7</_this><prop>name</prop></Fetch>',
    '<RetrieveProperties><_this type="PropertyCollector">propertyCollector</_this><specSet><propSet>'
    '<type>VirtualMachine</type><pathSet>name</pathSet></propSet><objectSet><obj type="VirtualMachine">vm-7</obj>'
    "</objectSet></specSet></RetrieveProperties>",
)


async def same_over_the_wire(world: World, moid: str) -> None:
    from ramet.vsphere.vijson.app import make_app as vi_json
    from ramet.vsphere.wire.endpoint import make_app as soap

    async with browsing(soap(world)) as client:
        for one in SOAP_CALLS:
            bodies = [ENVELOPE % one.replace("vm-7", there) for there in (moid, "vm-7")]
            said = [(await client.post("/sdk", content=body)).text for body in bodies]
            assert "NotAuthenticated" in said[0]
            assert said[0].replace(moid, "vm-7") == said[1], one
    async with browsing(vi_json(world)) as client:
        for path in ("VirtualMachine/{}/name", "VirtualMachine/{}/nothing", "Folder/{}/name", "No/{}/name"):
            answers = [await client.get("/sdk/vim25/8.0.3.0/" + path.format(one)) for one in (moid, "vm-7")]
            assert [answer.status_code for answer in answers] == [401, 401], path
            assert answers[0].text.replace(moid, "vm-7") == answers[1].text, path


@pytest.mark.parametrize("name", ["LoginByToken", "LoginBySSPI"])
async def test_other_ways_in_are_refused_with_a_sentence(world: World, name: str) -> None:
    arguments = {"base64Token": "x"} if name == "LoginBySSPI" else {}
    with pytest.raises(vmodl.fault.NotSupported, match="name and password"):
        await invoke(world, Call(None), "SessionManager", name, arguments)


async def test_a_session_may_be_cloned_once(world: World) -> None:
    call = await logged_in(world, Role.READ_ONLY)
    ticket = await invoke(world, call, "SessionManager", "AcquireCloneTicket", {})
    fresh = Call(None)
    clone = await invoke(world, fresh, "SessionManager", "CloneSession", {"cloneTicket": ticket})
    assert clone.userName == "eve"
    assert fresh.reply.session is not None
    with pytest.raises(vim.fault.InvalidLogin):
        await invoke(world, Call(None), "SessionManager", "CloneSession", {"cloneTicket": ticket})


async def test_sessions_of_others_are_seen_and_ended_by_administrators_only(world: World) -> None:
    eve, root = await logged_in(world, Role.OPERATOR), await logged_in(world, Role.ADMINISTRATOR, "root")
    listed = {"prop": "sessionList"}
    assert [one.userName for one in await invoke(world, eve, "SessionManager", "Fetch", listed)] == ["eve"]
    assert len(await invoke(world, root, "SessionManager", "Fetch", listed)) == 2
    keys = [one.key for one in world.part(Sessions).all()]
    with pytest.raises(vim.fault.NoPermission):
        await invoke(world, eve, "SessionManager", "TerminateSession", {"sessionId": keys})
    with pytest.raises(vmodl.fault.InvalidArgument):
        await invoke(world, root, "SessionManager", "TerminateSession", {"sessionId": keys})
    with pytest.raises(vim.fault.NotFound):
        await invoke(world, root, "SessionManager", "TerminateSession", {"sessionId": [keys[0], "none"]})
    await invoke(world, root, "SessionManager", "TerminateSession", {"sessionId": keys[:1]})
    assert [one.user_name for one in world.part(Sessions).all()] == ["root"]


async def test_a_role_decides_what_a_user_may_do(world: World) -> None:
    reader, operator = await logged_in(world, Role.READ_ONLY), await logged_in(world, Role.OPERATOR, "ops")
    folder = {"name": "made"}
    with pytest.raises(vim.fault.NoPermission) as caught:
        await invoke(world, reader, ids.VM_FOLDER, "CreateFolder", folder)
    assert caught.value.privilegeId == "Folder.Create"
    assert await invoke(world, operator, ids.VM_FOLDER, "CreateFolder", folder)
    with pytest.raises(vim.fault.NoPermission):
        await invoke(world, operator, MANAGER, "AddAuthorizationRole", {"name": "x", "privIds": []})


async def test_privileges_are_told_as_they_are(world: World) -> None:
    call = await logged_in(world, Role.OPERATOR)
    root = world.ref(ids.ROOT_FOLDER)
    key = (await current(world, call)).key
    asked = ["VirtualMachine.Provisioning.Clone", "Global.Settings", "Resource.AssignVMToPool", "No.Such"]
    arguments = {"entity": root, "sessionId": key, "privId": asked}
    assert await invoke(world, call, MANAGER, "HasPrivilegeOnEntity", arguments) == [True, False, True, False]
    [each] = await invoke(world, call, MANAGER, "HasPrivilegeOnEntities", {**arguments, "entity": [root]})
    assert [one.isGranted for one in each.privAvailability] == [True, False, True, False]
    arguments = {"entities": [root], "userName": "eve"}
    [found] = await invoke(world, call, MANAGER, "FetchUserPrivilegeOnEntities", arguments)
    assert frozenset(found.privileges) == of_role(Role.OPERATOR)


async def test_an_entity_tells_who_has_which_role_there(world: World) -> None:
    call = await logged_in(world, Role.OPERATOR)
    for moid, standing in ((ids.ROOT_FOLDER, [("eve", 1)]), (ids.VM_FOLDER, [])):
        found = await invoke(world, call, moid, "Fetch", {"prop": "permission"})
        assert [(one.principal, one.roleId) for one in found or ()] == standing
        assert await invoke(world, call, moid, "Fetch", {"prop": "effectiveRole"}) == [1]


async def test_instant_cloning_needs_no_more_than_an_operator_has() -> None:
    needed = {
        "VirtualMachine.Provisioning.Clone", "VirtualMachine.Interact.PowerOn",
        "VirtualMachine.Inventory.CreateFromExisting", "Datastore.AllocateSpace", "Resource.AssignVMToPool",
    }  # fmt: skip
    assert needed <= (of_role(Role.OPERATOR) or set())
    assert needed <= set(all_privileges())


async def test_roles_are_defined_given_and_taken(world: World, host: Host) -> None:
    root = await logged_in(world, Role.ADMINISTRATOR, "root")
    eve = await logged_in(world, Role.READ_ONLY)
    arguments = {"name": "Power user", "privIds": ["VirtualMachine.Interact.PowerOn"]}
    role = await invoke(world, root, MANAGER, "AddAuthorizationRole", arguments)
    with pytest.raises(vim.fault.AlreadyExists):
        await invoke(world, root, MANAGER, "AddAuthorizationRole", arguments)
    with pytest.raises(vim.fault.NotFound):
        await invoke(world, root, MANAGER, "AddAuthorizationRole", {"name": "y", "privIds": ["No.Such"]})
    assert not eve.session or not eve.session.may("VirtualMachine.Interact.PowerOn")
    given = vim.AuthorizationManager.Permission(principal="eve", group=False, roleId=role, propagate=True)
    place = {"entity": world.ref(ids.ROOT_FOLDER)}
    await invoke(world, root, MANAGER, "SetEntityPermissions", {**place, "permission": [given]})
    assert eve.session is not None
    assert eve.session.may("VirtualMachine.Interact.PowerOn")
    assert not eve.session.may("VirtualMachine.Interact.PowerOff")
    permissions = await invoke(world, root, MANAGER, "RetrieveEntityPermissions", {**place, "inherited": False})
    assert {one.principal: one.roleId for one in permissions} == {"root": -1, "eve": role}
    with pytest.raises(vim.fault.RemoveFailed):
        await invoke(world, root, MANAGER, "RemoveAuthorizationRole", {"roleId": role, "failIfUsed": True})

    again = Roles(host.access.users, world.store)
    await again.load()
    found = again.of_user("eve")
    assert found is not None
    assert found.role_id == role

    await host.access.set_role("eve", Role.OPERATOR)
    assert world.part(Roles).may(eve.session, "VirtualMachine.Interact.PowerOff")  # type: ignore[arg-type]
    await invoke(world, root, MANAGER, "RemoveAuthorizationRole", {"roleId": role, "failIfUsed": True})
    with pytest.raises(vim.fault.NotFound):
        await invoke(world, root, MANAGER, "RemoveAuthorizationRole", {"roleId": role, "failIfUsed": True})


async def test_a_role_that_is_removed_is_nobodys_and_its_number_is_not_given_again(world: World, host: Host) -> None:
    await logged_in(world, Role.READ_ONLY)
    roles = world.part(Roles)
    first = await roles.add("First", ["Datastore.Browse"])
    await roles.grant("eve", first)
    await roles.remove(first, fail_if_used=False)
    assert role_of(roles, "eve") == -2
    second = await roles.add("Second", ["Host.Config.Settings"])
    assert second > first
    again = Roles(host.access.users, world.store)
    await again.load()
    assert role_of(again, "eve") == -2
    await again.remove(second, fail_if_used=True)
    assert await again.add("Third", []) > second
    assert [entry.key for entry in await world.store.list(GRANT_PREFIX)] == []


async def test_roles_of_an_older_inventory_are_put_right(world: World, host: Host) -> None:
    """Where a role was removed and its grants stayed, and nothing says which number is the next."""
    await logged_in(world, Role.READ_ONLY)
    roles = world.part(Roles)
    await roles.grant("eve", await roles.add("First", []))
    for entry in (*await world.store.list(ROLE_PREFIX), *await world.store.list(NUMBER_KEY)):
        await world.store.delete(entry.key)
    again = Roles(host.access.users, world.store)
    await again.load()
    assert await world.store.list(GRANT_PREFIX) == []
    assert await again.add("Second", ["Host.Config.Settings"]) == 101
    assert role_of(again, "eve") == -2


@pytest.mark.parametrize("said", [(Role.READ_ONLY,), (Role.OPERATOR, Role.READ_ONLY)])
async def test_what_the_host_says_of_a_user_ends_a_role_for_good(
    world: World, host: Host, said: tuple[Role, ...]
) -> None:
    await logged_in(world, Role.OPERATOR)
    roles = world.part(Roles)
    given = await roles.add("Own", ["Host.Config.Settings"])
    await roles.grant("eve", given)
    assert role_of(roles, "eve") == given
    for role in said:
        await host.access.set_role("eve", role)
    assert role_of(roles, "eve") == -2
    again = Roles(host.access.users, world.store)
    await again.load()
    assert role_of(again, "eve") == -2


async def test_many_changes_of_roles_at_a_time_leave_none_half_done(world: World) -> None:
    await logged_in(world, Role.READ_ONLY)
    roles = world.part(Roles)
    numbers = await asyncio.gather(*(roles.add(f"role {n}", []) for n in range(5)))
    assert len(set(numbers)) == 5
    grants = (roles.grant("eve", number) for number in numbers)
    await asyncio.gather(*grants, *(roles.remove(number, False) for number in numbers), return_exceptions=True)
    assert role_of(roles, "eve") == -2
    assert await world.store.list(GRANT_PREFIX) == []


def role_of(roles: Roles, name: str) -> int:
    found = roles.of_user(name)
    assert found is not None
    return found.role_id


async def with_privileges(world: World, *privileges: str, name: str = "eve") -> Call:
    """Somebody with these, and no more."""
    call = await logged_in(world, Role.READ_ONLY, name)
    await world.part(Roles).grant(name, await world.part(Roles).add(f"of {name}", privileges))
    return call


def permission(name: str, role: int) -> dict[str, Any]:
    given = vim.AuthorizationManager.Permission(principal=name, group=False, roleId=role, propagate=True)
    return {"entity": vim.Folder(ids.ROOT_FOLDER), "permission": [given]}


MODIFY = ("Authorization.ModifyPermissions", "Authorization.ModifyRoles", "Datastore.Browse")


async def test_nobody_gives_what_they_have_not(world: World) -> None:
    await logged_in(world, Role.ADMINISTRATOR, "root")
    eve, roles = await with_privileges(world, *MODIFY), world.part(Roles)
    own, strong = role_of(roles, "eve"), await roles.add("Strong", ["Host.Config.Settings"])
    for method, arguments in (
        ("AddAuthorizationRole", {"name": "x", "privIds": ["Datastore.Browse", "Host.Config.Settings"]}),
        ("UpdateAuthorizationRole", {"roleId": own, "newName": "x", "privIds": [*MODIFY, "Host.Config.Settings"]}),
        ("SetEntityPermissions", permission("eve", -1)),
        ("SetEntityPermissions", permission("eve", 1)),
        ("SetEntityPermissions", permission("EVE@vsphere.local", strong)),
        ("ResetEntityPermissions", permission("eve", strong)),
    ):
        with pytest.raises(vim.fault.NoPermission):
            await invoke(world, eve, MANAGER, method, arguments)
        assert role_of(roles, "eve") == own, method
        assert roles.get(own).name == "of eve"
    weak = await invoke(world, eve, MANAGER, "AddAuthorizationRole", {"name": "Weak", "privIds": ["Datastore.Browse"]})
    renamed = {"roleId": weak, "newName": "Renamed", "privIds": ["Datastore.Browse"]}
    await invoke(world, eve, MANAGER, "UpdateAuthorizationRole", renamed)
    await logged_in(world, Role.READ_ONLY, "mal")
    await invoke(world, eve, MANAGER, "SetEntityPermissions", permission("mal", weak))
    assert role_of(roles, "mal") == weak


async def test_nobody_takes_a_role_from_those_who_may_more(world: World) -> None:
    await logged_in(world, Role.ADMINISTRATOR, "root")
    await logged_in(world, Role.ADMINISTRATOR, "second")
    await with_privileges(world, "Host.Config.Settings", name="mal")
    eve, roles = await with_privileges(world, *MODIFY), world.part(Roles)
    strong = role_of(roles, "mal")
    taking = {"entity": vim.Folder(ids.ROOT_FOLDER), "user": "mal", "isGroup": False}
    for method, arguments in (
        ("SetEntityPermissions", permission("root", -2)),
        ("SetEntityPermissions", permission("mal", -2)),
        ("ResetEntityPermissions", permission("eve", role_of(roles, "eve"))),
        ("RemoveEntityPermission", taking),
    ):
        with pytest.raises(vim.fault.NoPermission):
            await invoke(world, eve, MANAGER, method, arguments)
    assert [role_of(roles, name) for name in ("root", "mal")] == [-1, strong]
    for method, arguments in (
        ("RemoveAuthorizationRole", {"roleId": strong, "failIfUsed": False}),
        ("UpdateAuthorizationRole", {"roleId": strong, "newName": "Empty", "privIds": []}),
        ("UpdateAuthorizationRole", {"roleId": -1, "newName": "Empty", "privIds": []}),
    ):
        with pytest.raises(vim.fault.NoPermission):
            await invoke(world, eve, MANAGER, method, arguments)
    assert roles.get(strong).name == "of mal"
    assert role_of(roles, "mal") == strong
    root = await logged_in(world, Role.ADMINISTRATOR, "root")
    await invoke(world, root, MANAGER, "RemoveEntityPermission", taking)
    await invoke(world, root, MANAGER, "SetEntityPermissions", permission("second", -2))
    assert [role_of(roles, name) for name in ("second", "mal")] == [-2, -2]


async def test_what_permissions_cannot_say_here_is_refused(world: World) -> None:
    root = await logged_in(world, Role.ADMINISTRATOR, "root")

    async def set_(moid: str, **change: Any) -> None:
        base = {"principal": "root", "group": False, "roleId": -2, "propagate": True}
        permission = vim.AuthorizationManager.Permission(**{**base, **change})
        arguments = {"entity": world.ref(moid), "permission": [permission]}
        await invoke(world, root, MANAGER, "SetEntityPermissions", arguments)

    with pytest.raises(vmodl.fault.NotSupported, match="root folder"):
        await set_(ids.VM_FOLDER)
    with pytest.raises(vmodl.fault.NotSupported, match="no groups"):
        await set_(ids.ROOT_FOLDER, group=True)
    with pytest.raises(vim.fault.UserNotFound):
        await set_(ids.ROOT_FOLDER, principal="nobody")
    with pytest.raises(vim.fault.NotFound):
        await set_(ids.ROOT_FOLDER, roleId=4711)
    with pytest.raises(vim.fault.InvalidState, match="last administrator"):
        await set_(ids.ROOT_FOLDER)


async def test_users_are_found(world: World) -> None:
    root = await logged_in(world, Role.ADMINISTRATOR, "root")
    await logged_in(world, Role.READ_ONLY)

    async def search(text: str, exact: bool = False, **more: Any) -> list[str]:
        base = {"searchStr": text, "exactMatch": exact, "findUsers": True, "findGroups": True}
        found = await invoke(world, root, "UserDirectory", "RetrieveUserGroups", {**base, **more})
        return [one.principal for one in found]

    assert await search("") == ["eve", "root"]
    assert await search("OO") == ["root"]
    assert await search("oo", exact=True) == []
    assert await search("", findUsers=False) == []
    with pytest.raises(vim.fault.NotFound):
        await search("", belongsToGroup="wheel")


async def audited(state_dir: Path, count: int) -> list[Any]:
    """So many lines: they are written a moment after they are noted."""
    path = state_dir / "audit.jsonl"

    async def written() -> bool:
        return path.exists() and len(path.read_text().splitlines()) >= count

    await until(written)
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_what_changes_something_is_audited_and_reads_are_not(world: World, state_dir: Path) -> None:
    call = await logged_in(world, Role.OPERATOR)
    await invoke(world, call, ids.VM_FOLDER, "CreateFolder", {"name": "made"})
    with pytest.raises(vim.fault.DuplicateName):
        await invoke(world, call, ids.VM_FOLDER, "CreateFolder", {"name": "made"})
    with pytest.raises(vim.fault.NoPermission):
        await invoke(world, call, MANAGER, "AddAuthorizationRole", {"name": "x", "privIds": []})
    await invoke(world, call, ids.VM_FOLDER, "Fetch", {"prop": "name"})
    with pytest.raises(vim.fault.InvalidLogin):
        await invoke(world, Call(None), "SessionManager", "Login", {"userName": "eve", "password": "wrong word"})
    lines = await audited(state_dir, 6)
    assert [(line["action"], line["result"]) for line in lines] == [
        ("user.add", "ok"),
        ("session.login", "ok"),
        ("Folder.CreateFolder", "ok"),
        ("Folder.CreateFolder", "DuplicateName"),
        ("AuthorizationManager.AddAuthorizationRole", "NoPermission"),
        ("session.login", "InvalidLogin"),
    ]
    made = lines[2]
    assert (made["user"], made["peer"], made["object"], made["name"]) == ("eve", "10.0.0.7", ids.VM_FOLDER, "vm")
    assert PASSWORD not in (state_dir / "audit.jsonl").read_text()


def test_methods_that_change_machines_are_audited() -> None:
    machine = vim.VirtualMachine
    names = ("InstantClone_Task", "ReconfigVM_Task", "Destroy_Task", "PowerOnVM_Task", "AcquireTicket", "Rename_Task")
    for name in names:
        assert operation_info(machine, name) is not None
        assert is_audited(machine, name), name
    for wire, name in (
        (vim.Task, "CancelTask"),
        (vim.Datacenter, "PowerOnMultiVM_Task"),
        (vim.vm.guest.FileManager, "CreateTemporaryFileInGuest"),
        (vim.AuthorizationManager, "SetEntityPermissions"),
    ):
        assert is_audited(wire, name), name
    for name in ("CancelWaitForUpdates", "CreateFilter", "RetrievePropertiesEx"):
        assert not is_audited(vmodl.query.PropertyCollector, name), name
    assert not is_audited(vim.vm.check.ProvisioningChecker, "CheckInstantClone_Task")
    assert not is_audited(vim.view.ViewManager, "CreateContainerView")
    assert not is_audited(vmodl.query.PropertyCollector, "WaitForUpdatesEx")


READING = (
    "Retrieve", "Query", "Find", "Read", "List", "Has", "Fetch", "Check", "Wait", "Cancel", "Continue", "Create",
    "Destroy", "Current", "Decode", "Refresh", "Reload", "Reset", "Rewind", "Set", "Modify", "Open", "Close",
)  # fmt: skip
OWN = ("View", "ViewManager", "Collector", "Filter", "SearchIndex", "ServiceInstance", "SessionManager", "EventManager")
"""Ends of the names of types whose methods work on the caller's own session, or only answer."""


def kinds_of(cls: Any) -> Iterator[Any]:
    for kind in cls.__subclasses__():
        yield kind
        yield from kinds_of(kind)


def test_what_changes_something_needs_more_than_to_look() -> None:
    """Where neither the schema nor the class names a privilege, the method must only read, or ask for it by itself."""
    looking, changing = {"System.View", "System.Read", "System.Anonymous", None}, set()
    for kind in (kind for kind in kinds_of(Mo) if hasattr(kind, "wire") and kind.__module__.startswith("ramet.")):
        for name, offered in kind.operations.items():
            info = operation_info(kind.wire, name)
            privilege = offered.privilege or (info.privId if info else None)
            own = wire_name(kind.wire).endswith(OWN)
            reads = name.startswith(READING) and (own or name.startswith((*READING[:8], "Current", "Decode", "Re")))
            if privilege in looking and not own and not reads and offered.refusal is None:
                changing.add(f"{wire_name(kind.wire)}.{name}")
    assert changing <= {
        "VirtualMachine.AcquireTicket", "VirtualMachine.ReconfigVM_Task", "VirtualMachine.CloneVM_Task",
        "Task.CancelTask", "TaskManager.CreateCollectorForTasks", "TaskManager.CreateCollectorWithInfoFilterForTasks",
    }  # fmt: skip


async def test_who_may_only_look_is_refused_by_those_that_ask_by_themselves(world: World, host: Host) -> None:
    reader = await logged_in(world, Role.READ_ONLY)
    vm = await seen(world, await record_vm(host, "web"))

    async def work(handle: Any) -> None:
        await asyncio.Event().wait()

    task = await host.tasks.start("vm.start", "web", work, cancellable=True)
    for moid, name, arguments in (
        (vm.moid, "AcquireTicket", {"ticketType": "webmks"}),
        (vm.moid, "ReconfigVM_Task", {"spec": vim.vm.ConfigSpec(name="other")}),
        (vm.moid, "ReconfigVM_Task", {"spec": vim.vm.ConfigSpec(memoryMB=1024)}),
        (vm.moid, "ReconfigVM_Task", {"spec": vim.vm.ConfigSpec(guestId="otherLinux64Guest")}),
        (vm.moid, "ReconfigVM_Task", {"spec": vim.vm.ConfigSpec(annotation="")}),
        (vm.moid, "ReconfigVM_Task", {"spec": vim.vm.ConfigSpec()}),
        (ids.task_moid(task.id), "CancelTask", {}),
        (ids.RESOURCE_POOL, "UpdateConfig", {"name": "x"}),
        (ids.RESOURCE_POOL, "Destroy_Task", {}),
        (ids.DATACENTER, "Destroy_Task", {}),
    ):
        with pytest.raises((vim.fault.NoPermission, vmodl.fault.NotSupported)):
            await invoke(world, reader, moid, name, arguments)
    await host.tasks.cancel(task.id)


async def test_a_task_that_is_cancelled_is_audited(world: World, host: Host, state_dir: Path) -> None:
    call = await logged_in(world, Role.OPERATOR)

    async def work(handle: Any) -> None:
        await asyncio.Event().wait()

    task = await host.tasks.start("vm.start", "web", work, cancellable=True)
    await invoke(world, call, ids.task_moid(task.id), "CancelTask", {})
    last = (await audited(state_dir, 3))[-1]
    assert (last["action"], last["user"], last["result"]) == ("Task.CancelTask", "eve", "ok")


async def test_a_login_that_is_no_request_leaves_no_session(world: World) -> None:
    from ramet.vsphere.rest.app import make_app

    await logged_in(world, Role.ADMINISTRATOR, "root")
    before = len(world.part(Sessions).all())
    login = {"securityCtx": {"userName": "root", "password": PASSWORD}}
    call = {"serviceId": "com.vmware.cis.session", "operationId": "create", "ctx": login}
    strange = {"STRUCTURE": {"operation-input": {"colour": "red"}}}
    async with browsing(make_app(world)) as client:
        for params, said in (({**call, "input": strange}, "invalid_argument"), (call, "output")):
            request = {"jsonrpc": "2.0", "id": 1, "method": "invoke", "params": params}
            answer = await client.post("/api", json=request)
            assert said in answer.text
            count = len(world.part(Sessions).all())
            assert count == before + (said == "output")
