"""Options, licenses, custom fields, events and performance counters, as clients ask for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ramet.host.service import Host
from ramet.model.sharing import PageSharing
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.managers.custom_fields import CustomFields
from ramet.vsphere.managers.event_kinds import INSTANT_CLONED
from ramet.vsphere.types import Support, vim, vmodl
from tests.vsphere.kit import record_vm, seen

SALTING = "Mem.ShareForceSalting"


def option(value: Any, key: str = SALTING) -> dict[str, Any]:
    return {"changedValue": [vim.option.OptionValue(key=key, value=value)]}


async def test_the_service_names_all_managers(world: World, call: Call) -> None:
    content = await invoke(world, call, "ServiceInstance", "RetrieveServiceContent", {})
    assert {name: getattr(content, name)._moId for name in (
        "setting", "licenseManager", "customFieldsManager", "eventManager", "perfManager", "userDirectory",
        "authorizationManager", "sessionManager",
    )} == {
        "setting": "VpxSettings", "licenseManager": "LicenseManager", "customFieldsManager": "CustomFieldsManager",
        "eventManager": "EventManager", "perfManager": "PerfMgr", "userDirectory": "UserDirectory",
        "authorizationManager": "AuthorizationManager", "sessionManager": "SessionManager",
    }  # fmt: skip


# -- options -----------------------------------------------------------------------------------------------------------


async def test_page_sharing_is_an_option_of_the_host(
    world: World, host: Host, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    mo = world.get(ids.HOST)
    assert mo is not None
    manager = (await read_now(mo, "configManager.advancedOption"))._moId
    [shown] = await invoke(world, call, manager, "QueryOptions", {"name": SALTING})
    assert (shown.value, type(shown.value)) == (2, Support.long)

    switched: list[PageSharing] = []

    async def set_(request: Any, by_uid: int | None = None) -> Any:
        async def work(handle: Any) -> None:
            switched.append(request.mode)

        return await host.tasks.start("host.page-sharing", request.mode.value, work)

    monkeypatch.setattr(host.sharing, "set", set_)
    await invoke(world, call, manager, "UpdateOptions", option(2))
    assert switched == []
    await invoke(world, call, manager, "UpdateOptions", option(0))
    assert switched == [PageSharing.HOST]


@pytest.mark.parametrize(
    ("value", "key", "fault"),
    [
        (1, SALTING, vmodl.fault.NotSupported),
        (3, SALTING, vmodl.fault.InvalidArgument),
        ("0", SALTING, vmodl.fault.InvalidArgument),
        (True, SALTING, vmodl.fault.NotSupported),
        (1, "Mem.AllocGuestLargePage", vmodl.fault.NotSupported),
        (1, "Mem.NoSuch", vim.fault.InvalidName),
    ],
)
async def test_what_cannot_hold_is_refused(world: World, call: Call, value: Any, key: str, fault: Any) -> None:
    with pytest.raises(fault):
        await invoke(world, call, ids.HOST_OPTIONS, "UpdateOptions", option(value, key))


async def test_options_are_found_by_the_beginning_of_their_names(world: World, call: Call) -> None:
    async def keys(name: str | None) -> list[str]:
        found = await invoke(world, call, ids.HOST_OPTIONS, "QueryOptions", {"name": name})
        return [one.key for one in found]

    assert await keys("Mem.") == await keys("Mem") == await keys(None)
    with pytest.raises(vim.fault.InvalidName):
        await keys("Me")
    assert await invoke(world, call, "VpxSettings", "QueryOptions", {"name": "VirtualCenter.InstanceName"})


# -- custom fields -----------------------------------------------------------------------------------------------------


async def test_custom_fields_are_defined_set_shown_and_kept(world: World, host: Host, call: Call) -> None:
    vm = await seen(world, await record_vm(host, "web"))

    async def ask(name: str, /, **arguments: Any) -> Any:
        return await invoke(world, call, "CustomFieldsManager", name, arguments)

    owner = await ask("AddCustomFieldDef", name="owner", moType=vim.VirtualMachine)
    place = await ask("AddCustomFieldDef", name="place")
    for name, kind in (("owner", vim.VirtualMachine), ("owner", None), ("place", vim.Folder)):
        with pytest.raises(vim.fault.DuplicateName):
            await ask("AddCustomFieldDef", name=name, moType=kind)
    await ask("SetField", entity=vm.ref, key=owner.key, value="eve")
    await ask("SetField", entity=vm.ref, key=place.key, value="here")
    folder = world.ref(ids.VM_FOLDER)
    with pytest.raises(vmodl.fault.InvalidArgument, match="Folder has no custom field"):
        await ask("SetField", entity=folder, key=owner.key, value="eve")
    assert [one.name for one in await read_now(vm, "availableField")] == ["owner", "place"]
    assert [(one.key, one.value) for one in await read_now(vm, "customValue")] == [
        (owner.key, "eve"), (place.key, "here"),
    ]  # fmt: skip
    await invoke(world, call, vm.moid, "setCustomValue", {"key": "place", "value": "there"})
    with pytest.raises(vmodl.fault.InvalidArgument, match="no custom field 'nope'"):
        await invoke(world, call, vm.moid, "setCustomValue", {"key": "nope", "value": "x"})
    stamp = world.updates.stamp
    await ask("RenameCustomFieldDef", key=owner.key, name="keeper")
    assert vm.moid in world.updates.since(stamp).touched
    again = CustomFields(world)
    await again.load()
    assert [one.name for one in again.definitions()] == ["keeper", "place"]
    assert [one.value for one in again.values_of(vm.moid)] == ["eve", "there"]
    await ask("SetField", entity=vm.ref, key=place.key, value="")
    await ask("RemoveCustomFieldDef", key=owner.key)
    assert await read_now(vm, "customValue") == []
    with pytest.raises(vmodl.fault.InvalidArgument):
        await ask("RemoveCustomFieldDef", key=owner.key)


# -- licenses ----------------------------------------------------------------------------------------------------------


async def test_no_license_is_needed(world: World, call: Call) -> None:
    manager = world.get("LicenseManager")
    assert manager is not None
    [found] = await read_now(manager, "licenses")
    assert found.total == 0
    assigned = await invoke(world, call, "LicenseAssignmentManager", "QueryAssignedLicenses", {"entityId": ids.HOST})
    assert [one.entityId for one in assigned] == [ids.HOST]
    with pytest.raises(vmodl.fault.NotSupported):
        await invoke(world, call, "LicenseManager", "AddLicense", {"licenseKey": "x"})


# -- events ------------------------------------------------------------------------------------------------------------


async def test_the_hosts_events_are_told_in_the_apis_words(world: World, host: Host, call: Call) -> None:
    vm = await record_vm(host, "web")
    await seen(world, vm)
    emit = host.events.emit
    emit("vm.created", "web was created.", vm=vm)
    emit("vm.state", "web is running.", vm=vm, before="starting")
    emit("vm.cloned", "kid was cloned from web in 50 ms.", vm=vm, source=vm.id)
    emit("vm.created", "copy was copied from web.", vm=vm, source=vm.id)
    emit("vm.state", "web is frozen.", vm=vm, before="running")
    emit("vm.state", "web is running.", vm=vm, before="frozen")
    emit("vm.state", "web ended while the daemon was down.", vm=vm)
    emit("host.warning", "Memory is short.")
    emit("image.made", "The image micro is ready.")
    emit("vm.removed", "web was removed.", vm=vm)
    spec = vim.event.EventFilterSpec()
    found = (await invoke(world, call, "EventManager", "QueryEvents", {"filter": spec}))[-10:]
    assert [getattr(one, "eventTypeId", type(one).__name__.removeprefix("vim.event.")) for one in found] == [
        "VmCreatedEvent", "VmPoweredOnEvent", INSTANT_CLONED, "VmClonedEvent", "ramet.vm.frozen", "ramet.vm.running",
        "VmPoweredOffEvent", "GeneralHostWarningEvent", "ramet.image.made", "VmRemovedEvent",
    ]  # fmt: skip
    assert found[0].vm.vm._moId == ids.vm_moid(vm.id)
    assert found[3].sourceVm.name == "web"
    assert found[7].fullFormattedMessage == "Memory is short."
    manager = world.get("EventManager")
    assert manager is not None
    assert (await read_now(manager, "latestEvent")).key == found[-1].key


async def events(world: World, call: Call, **filters: Any) -> list[str]:
    spec = vim.event.EventFilterSpec(**filters)
    found = await invoke(world, call, "EventManager", "QueryEvents", {"filter": spec})
    return [one.fullFormattedMessage for one in found if one.fullFormattedMessage.startswith("e")]


async def test_events_are_filtered(world: World, host: Host, call: Call) -> None:
    one, two = await record_vm(host, "one"), await record_vm(host, "two")
    await seen(world, two)
    host.events.emit("vm.state", "e1 is running.", vm=one, before="off")
    host.events.emit("vm.state", "e2 is off.", vm=two, before="running")
    host.events.emit("host.warning", "e3")
    await invoke(world, call, "EventManager", "LogUserEvent", {"entity": world.ref(ids.HOST), "msg": "e4"})
    assert await events(world, call) == ["e1 is running.", "e2 is off.", "e3", "e4"]
    assert await events(world, call, maxCount=1) == ["e4"]
    assert await events(world, call, category=["warning"]) == ["e3"]
    assert await events(world, call, category=["user", "warning"]) == ["e3", "e4"]
    assert await events(world, call, type=[vim.event.VmEvent]) == ["e1 is running.", "e2 is off."]
    assert await events(world, call, type=[vim.event.VmPoweredOffEvent]) == ["e2 is off."]
    for type_id in ("vim.event.VmPoweredOnEvent", "VmPoweredOnEvent"):
        assert await events(world, call, eventTypeId=[type_id]) == ["e1 is running."]
    by = vim.event.EventFilterSpec.ByEntity
    own = by(entity=vim.VirtualMachine(ids.vm_moid(one.id)), recursion="self")
    assert await events(world, call, entity=own) == ["e1 is running."]
    below = by(entity=vim.Folder(ids.VM_FOLDER), recursion="children")
    assert await events(world, call, entity=below) == ["e1 is running.", "e2 is off."]
    root = by(entity=vim.Folder(ids.ROOT_FOLDER), recursion="all")
    assert await events(world, call, entity=root) == ["e1 is running.", "e2 is off.", "e3", "e4"]
    users = vim.event.EventFilterSpec.ByUsername
    assert await events(world, call, userName=users(systemUser=False, userList=["root"])) == ["e4"]
    times = vim.event.EventFilterSpec.ByTime
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert await events(world, call, time=times(beginTime=later)) == []
    assert len(await events(world, call, time=times(endTime=later))) == 4


async def test_a_collector_reads_in_pages_both_ways(world: World, host: Host, call: Call) -> None:
    spec = vim.event.EventFilterSpec(category=["warning"])
    before = len(await invoke(world, call, "EventManager", "QueryEvents", {"filter": spec}))
    for number in range(5):
        host.events.emit("host.warning", f"w{number}")
    made = await invoke(world, call, "EventManager", "CreateCollectorForEvents", {"filter": spec})

    async def read(name: str, count: int) -> list[str]:
        found = await invoke(world, call, made._moId, name, {"maxCount": count})
        return [one.message for one in found]

    if before:
        await read("ReadNextEvents", before)
    assert await read("ReadNextEvents", 3) == ["w0", "w1", "w2"]
    assert await read("ReadNextEvents", 3) == ["w3", "w4"]
    assert await read("ReadNextEvents", 3) == []
    host.events.emit("host.warning", "w5")
    assert await read("ReadNextEvents", 3) == ["w5"]
    assert await read("ReadPreviousEvents", 2) == ["w5", "w4"]
    assert await read("ReadPreviousEvents", 2) == ["w3", "w2"]
    await invoke(world, call, made._moId, "ResetCollector", {})
    assert await read("ReadNextEvents", 3) == []
    assert await read("ReadPreviousEvents", 1) == ["w5"]
    await invoke(world, call, made._moId, "SetCollectorPageSize", {"maxCount": 2})
    collector = world.find(made._moId, call)
    assert [one.message for one in await read_now(collector, "latestPage")] == ["w5", "w4"]
    with pytest.raises(vmodl.fault.InvalidArgument):
        await read("ReadNextEvents", 0)
    await invoke(world, call, made._moId, "DestroyCollector", {})
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await read("ReadNextEvents", 1)


async def test_collectors_are_bounded(world: World, call: Call) -> None:
    arguments = {"filter": vim.event.EventFilterSpec()}
    for _ in range(32):
        await invoke(world, call, "EventManager", "CreateCollectorForEvents", arguments)
    with pytest.raises(vim.fault.InvalidState):
        await invoke(world, call, "EventManager", "CreateCollectorForEvents", arguments)


async def test_clients_post_events_of_their_own(world: World, host: Host, call: Call) -> None:
    posted = vim.event.EventEx(
        eventTypeId="org.example.deployed", severity="warning", message="e-deployed", objectId=ids.HOST,
        key=0, chainId=0, createdTime=datetime.now(UTC), userName="",
    )  # fmt: skip
    await invoke(world, call, "EventManager", "PostEvent", {"eventToPost": posted})
    assert await events(world, call, eventTypeId=["org.example.deployed"], category=["warning"]) == ["e-deployed"]
    other = vim.event.VmPoweredOnEvent(key=0, chainId=0, createdTime=datetime.now(UTC), userName="", template=False)
    with pytest.raises(vim.fault.InvalidEvent):
        await invoke(world, call, "EventManager", "PostEvent", {"eventToPost": other})
