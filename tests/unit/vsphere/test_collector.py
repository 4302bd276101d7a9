"""The property collector: what is found, what is said of it, and what is news to whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.world import World
from ramet.vsphere.types import Support, vim, vmodl
from tests.unit.vsphere.soap_kit import (
    PC,
    FakeFolder,
    FakeSession,
    FakeTask,
    FakeVm,
    call_of,
    filter_spec,
    make_world,
    property_spec,
    sessions_of,
    view_spec,
    vm,
)

COLLECTOR = "propertyCollector"
POWER = ("name", "runtime.powerState")


class Client:
    """One session of a client's, that asks without a wire."""

    def __init__(self, world: World, session: FakeSession | None = None) -> None:
        self.world = world
        self.call = call_of(world, session)

    async def ask(self, moid: str, name: str, **arguments: Any) -> Any:
        return await invoke(self.world, self.call, moid, name, arguments)

    async def retrieve(self, *specs: Any, most: int | None = None) -> Any:
        options = PC.RetrieveOptions(maxObjects=most)
        return await self.ask(COLLECTOR, "RetrievePropertiesEx", specSet=list(specs), options=options)

    async def filter(self, spec: Any, partial: bool = False, at: str = COLLECTOR) -> Any:
        return await self.ask(at, "CreateFilter", spec=spec, partialUpdates=partial)

    async def wait(
        self, version: str = "", seconds: int | None = 5, most: int | None = None, at: str = COLLECTOR
    ) -> Any:
        options = PC.WaitOptions(maxWaitSeconds=seconds, maxObjectUpdates=most)
        return await self.ask(at, "WaitForUpdatesEx", version=version, options=options)

    async def view(self, *kinds: Any, container: str = "group-d1", recursive: bool = True) -> Any:
        container_ref = self.world.ref(container)
        return await self.ask(
            "ViewManager", "CreateContainerView", container=container_ref, type=list(kinds), recursive=recursive
        )


def told(update: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, object, {path: value}) of all filters of an UpdateSet."""
    return [
        (str(one.kind), one.obj._moId, {str(change.name): change.val for change in one.changeSet})
        for found in update.filterSet
        for one in found.objectSet
    ]


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


def said(result: Any) -> dict[str, dict[str, Any]]:
    return {one.obj._moId: {str(prop.name): prop.val for prop in one.propSet} for one in result}


# -- once --------------------------------------------------------------------------------------------------------------


async def test_properties_of_an_object(client: Client) -> None:
    spec = filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER, "guest.ipAddress"))
    found = (await client.retrieve(spec)).objects
    assert said(found) == {"vm-1": {"name": "guest 1", "runtime.powerState": "poweredOff"}}
    assert found[0].missingSet == []
    old = await client.ask(COLLECTOR, "RetrieveProperties", specSet=[spec])
    assert said(old) == said(found)


async def test_a_type_matches_its_kinds_and_nothing_else_is_said(client: Client) -> None:
    objects = [vim.VirtualMachine("vm-1"), vim.Folder("group-v3"), vim.ServiceInstance("ServiceInstance")]
    found = (await client.retrieve(filter_spec(objects, property_spec(vim.ManagedEntity, "name")))).objects
    assert said(found) == {"vm-1": {"name": "guest 1"}, "group-v3": {"name": "vm"}}
    both = filter_spec(
        [objects[0]], property_spec(vim.ManagedEntity, "name"), property_spec(vim.VirtualMachine, *POWER)
    )
    assert said((await client.retrieve(both)).objects)["vm-1"].keys() == {"name", "runtime.powerState"}


async def test_all_properties_are_those_of_the_objects_own_type(client: Client, world: World) -> None:
    (found,) = (
        await client.retrieve(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.ManagedEntity, all=True)))
    ).objects
    names = {str(prop.name) for prop in found.propSet}
    assert {"name", "runtime", "datastore", "parent"} <= names
    assert not names & {"guest", "snapshot"}


async def test_nothing_found_is_no_result(client: Client) -> None:
    assert (
        await client.retrieve(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.Datastore, "name"))) is None
    )


async def test_pages(client: Client) -> None:
    spec = filter_spec([vim.VirtualMachine(f"vm-{i}") for i in (1, 2, 3)], property_spec(vim.VirtualMachine, "name"))
    first = await client.retrieve(spec, most=2)
    assert len(first.objects) == 2
    rest = await client.ask(COLLECTOR, "ContinueRetrievePropertiesEx", token=first.token)
    assert (rest.token, list(said(rest.objects))) == (None, ["vm-3"])
    with pytest.raises(vmodl.fault.InvalidArgument):
        await client.ask(COLLECTOR, "ContinueRetrievePropertiesEx", token=first.token)
    again = await client.retrieve(spec, most=1)
    await client.ask(COLLECTOR, "CancelRetrievePropertiesEx", token=again.token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        await client.ask(COLLECTOR, "ContinueRetrievePropertiesEx", token=again.token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        await client.retrieve(spec, most=0)


async def test_what_cannot_be_read_is_said_property_by_property(world: World) -> None:
    session = FakeSession(denied=frozenset({"VirtualMachine.Provisioning.ReadCustSpecs"}))
    spec = filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, "name", "config.annotation"))
    (found,) = (await Client(world, session).retrieve(spec)).objects
    assert said([found]) == {"vm-1": {"name": "guest 1"}}
    (missing,) = found.missingSet
    assert missing.path == "config.annotation"
    assert isinstance(missing.fault, vmodl.fault.SystemError)
    assert "bug" not in missing.fault.msg


async def test_what_a_user_may_not_see_is_missing_for_want_of_permission(world: World) -> None:
    privileged = next(
        (wire, info)
        for name in Support.ListManagedTypes()
        for wire in [Support.GetVmodlType(name)]
        if wire is not Support.ManagedObject
        for info in wire._propList
        if info.privId and not info.privId.startswith("System.")
    )

    class Guarded(Mo):
        wire = privileged[0]

    world.add(Guarded(world, "guarded"))
    session = FakeSession(denied=frozenset({privileged[1].privId}))
    spec = filter_spec([privileged[0]("guarded")], property_spec(privileged[0], privileged[1].name))
    (found,) = (await Client(world, session).retrieve(spec)).objects
    assert isinstance(found.missingSet[0].fault, vim.fault.NoPermission)
    assert found.missingSet[0].fault.privilegeId == privileged[1].privId


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, "nope")),
            vmodl.query.InvalidProperty,
        ),
        (
            filter_spec([vim.VirtualMachine("vm-9")], property_spec(vim.VirtualMachine, "name")),
            vmodl.fault.ManagedObjectNotFound,
        ),
        (filter_spec([], property_spec(vim.VirtualMachine, "name")), vmodl.fault.InvalidArgument),
        (filter_spec([vim.VirtualMachine("vm-1")]), vmodl.fault.InvalidArgument),
        (filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.Description, "name")), vmodl.fault.InvalidType),
        (
            filter_spec(
                [PC.ObjectSpec(obj=vim.Folder("group-d1"), selectSet=[PC.SelectionSpec(name="nobody")])],
                property_spec(vim.Folder, "name"),
            ),
            vmodl.fault.InvalidArgument,
        ),
        (
            filter_spec(
                [PC.ObjectSpec(obj=vim.Folder("group-d1"), selectSet=[PC.TraversalSpec(type=vim.Folder, path="nope")])],
                property_spec(vim.Folder, "name"),
            ),
            vmodl.query.InvalidProperty,
        ),
    ],
)
async def test_specs_that_are_wrong(client: Client, spec: Any, expected: Any) -> None:
    with pytest.raises(expected):
        await client.retrieve(spec)
    with pytest.raises(expected):
        await client.filter(spec)


async def test_missing_objects_are_passed_over_when_asked_for(client: Client) -> None:
    spec = filter_spec(
        [vim.VirtualMachine("vm-9"), vim.VirtualMachine("vm-1")],
        property_spec(vim.VirtualMachine, "name"),
        reportMissingObjectsInResults=True,
    )
    assert list(said((await client.retrieve(spec)).objects)) == ["vm-1"]
    await client.filter(spec)
    (update,) = (await client.wait()).filterSet
    (missing,) = update.missingSet
    assert missing.obj._moId == "vm-9"
    assert isinstance(missing.fault, vmodl.fault.ManagedObjectNotFound)


async def test_before_a_login_only_the_service_is_read(world: World) -> None:
    nobody = Client(world)
    nobody.call = nobody.call.__class__(None)
    content = filter_spec([vim.ServiceInstance("ServiceInstance")], property_spec(vim.ServiceInstance, "content.about"))
    assert len((await nobody.retrieve(content)).objects) == 1
    for moid in ("vm-1", "vm-9"):
        with pytest.raises(vim.fault.NotAuthenticated):
            await nobody.retrieve(filter_spec([vim.VirtualMachine(moid)], property_spec(vim.VirtualMachine, "name")))
    with pytest.raises(vim.fault.NotAuthenticated):
        await nobody.filter(content)


async def test_what_goes_while_others_are_read_is_passed_over(client: Client, world: World) -> None:
    class Last(FakeVm):
        async def prepare(self, roots: Any) -> None:
            world.remove("vm-2")
            await asyncio.sleep(0)

    world.add(Last(world, "vm-4", "last"))
    spec = view_spec(await client.view(vim.VirtualMachine), property_spec(vim.VirtualMachine, "name"))
    assert list(said((await client.retrieve(spec)).objects)) == ["vm-1", "vm-3", "vm-4"]
    world.add(FakeVm(world, "vm-2", "again"))
    await client.filter(spec)
    assert {moid for _, moid, _ in told(await client.wait())} == {"vm-1", "vm-3", "vm-4"}


# -- traversals --------------------------------------------------------------------------------------------------------


def recursion() -> list[Any]:
    """As the original's own samples write it: named traversals that refer to one another."""
    folders = PC.TraversalSpec(
        name="folders",
        type=vim.Folder,
        path="childEntity",
        selectSet=[PC.SelectionSpec(name="folders"), PC.SelectionSpec(name="vms"), PC.SelectionSpec(name="hosts")],
    )
    vms = PC.TraversalSpec(
        name="vms", type=vim.Datacenter, path="vmFolder", selectSet=[PC.SelectionSpec(name="folders")]
    )
    hosts = PC.TraversalSpec(
        name="hosts", type=vim.Datacenter, path="hostFolder", skip=True, selectSet=[PC.SelectionSpec(name="folders")]
    )
    return [folders, vms, hosts]


async def test_recursive_traversals_with_back_references(client: Client, world: World) -> None:
    world.add(FakeFolder(world, "group-v77", "inner", "group-v3"))
    world.add(FakeVm(world, "vm-77", "deep", "group-v77"))
    root = PC.ObjectSpec(obj=vim.Folder("group-d1"), skip=True, selectSet=recursion())
    everything = await client.retrieve(filter_spec([root], property_spec(vim.ManagedEntity, "name")))
    assert set(said(everything.objects)) == {"datacenter-2", "group-v3", "vm-1", "vm-2", "vm-3", "group-v77", "vm-77"}
    vms = await client.retrieve(filter_spec([root], property_spec(vim.VirtualMachine, "name")))
    assert set(said(vms.objects)) == {"vm-1", "vm-2", "vm-3", "vm-77"}


async def test_circles_end(client: Client) -> None:
    up = PC.TraversalSpec(name="up", type=vim.ManagedEntity, path="parent", selectSet=[PC.SelectionSpec(name="down")])
    down = PC.TraversalSpec(
        name="down",
        type=vim.Folder,
        path="childEntity",
        selectSet=[PC.SelectionSpec(name="up"), PC.SelectionSpec(name="down")],
    )
    root = PC.ObjectSpec(obj=vim.VirtualMachine("vm-2"), selectSet=[up, down])
    found = await client.retrieve(filter_spec([root], property_spec(vim.ManagedEntity, "name")))
    assert set(said(found.objects)) == {"vm-1", "vm-2", "vm-3", "group-v3"}


async def test_a_view_is_gone_through(client: Client) -> None:
    view = await client.view(vim.VirtualMachine)
    found = await client.retrieve(view_spec(view, property_spec(vim.VirtualMachine, "name")))
    assert list(said(found.objects)) == ["vm-1", "vm-2", "vm-3"]


# -- as it changes -----------------------------------------------------------------------------------------------------


async def test_a_filter_tells_all_first_and_then_what_changed(client: Client, world: World) -> None:
    await client.filter(view_spec(await client.view(vim.VirtualMachine), property_spec(vim.VirtualMachine, *POWER)))
    first = await client.wait()
    assert [kind for kind, _, _ in told(first)] == ["enter"] * 3
    assert told(first)[0] == ("enter", "vm-1", {"name": "guest 1", "runtime.powerState": "poweredOff"})
    assert await client.wait(first.version, seconds=0) is None
    vm(world, 2).set_power("poweredOn")
    second = await client.wait(first.version)
    assert told(second) == [("modify", "vm-2", {"runtime.powerState": "poweredOn"})]
    assert await client.ask(COLLECTOR, "CheckForUpdates", version=second.version) is None


async def test_versions_are_not_used_up(client: Client, world: World) -> None:
    await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    first = await client.wait()
    vm(world, 1).set_power("poweredOn")
    for _ in range(2):
        assert told(await client.wait(first.version)) == [("modify", "vm-1", {"runtime.powerState": "poweredOn"})]
    assert told(await client.wait())[0][0] == "enter"


@pytest.mark.parametrize("version", ["99", "x", "-1", "1" * 30, "٣"])
async def test_versions_that_never_were(client: Client, version: str) -> None:
    await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, "name")))
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        await client.wait(version)


async def test_a_touch_without_a_change_is_no_news(client: Client, world: World) -> None:
    await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    first = await client.wait()
    world.updates.touch("vm-1")
    world.updates.touch("vm-2")
    assert await client.wait(first.version, seconds=0) is None


async def test_objects_come_and_go(client: Client, world: World) -> None:
    await client.filter(view_spec(await client.view(vim.VirtualMachine), property_spec(vim.VirtualMachine, "name")))
    first = await client.wait()
    world.add(FakeVm(world, "vm-4", "new"))
    world.remove("vm-2")
    second = await client.wait(first.version)
    assert told(second) == [("leave", "vm-2", {}), ("enter", "vm-4", {"name": "new"})] or told(second) == [
        ("enter", "vm-4", {"name": "new"}),
        ("leave", "vm-2", {}),
    ]
    world.remove("vm-4")
    assert [one[:2] for one in told(await client.wait(second.version))] == [("leave", "vm-4")]
    assert [one[:2] for one in told(await client.wait(first.version))] == [("leave", "vm-2")]  # it never met vm-4
    world.add(FakeVm(world, "vm-2", "again"))
    assert ("enter", "vm-2", {"name": "again"}) in told(await client.wait(second.version))


async def test_a_root_that_goes_leaves_and_is_missing(client: Client, world: World) -> None:
    spec = filter_spec(
        [vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, "name"), reportMissingObjectsInResults=True
    )
    await client.filter(spec)
    first = await client.wait()
    world.remove("vm-1")
    second = await client.wait(first.version)
    assert told(second) == [("leave", "vm-1", {})]
    assert [one.obj._moId for one in second.filterSet[0].missingSet] == ["vm-1"]


async def test_what_becomes_unset_is_assigned_nothing(client: Client, world: World) -> None:
    vm(world, 1).address = "10.0.0.1"
    await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, "guest.ipAddress")))
    first = await client.wait()
    assert told(first) == [("enter", "vm-1", {"guest.ipAddress": "10.0.0.1"})]
    vm(world, 1).address = None
    world.updates.touch("vm-1")
    assert told(await client.wait(first.version)) == [("modify", "vm-1", {"guest.ipAddress": None})]


async def test_an_object_that_is_changed_in_place_has_changed(client: Client, world: World) -> None:
    task = FakeTask(world, "task-1")
    world.add(task)
    await client.filter(filter_spec([task.ref], property_spec(vim.Task, "info", "info.state")))
    first = await client.wait()
    task.set(state="success", progress=100)
    ((_, _, changes),) = told(await client.wait(first.version))
    assert changes["info"].state == "success"
    assert changes["info.state"] == "success"


async def test_updates_are_told_in_parts_when_there_are_too_many(client: Client, world: World) -> None:
    for number in range(4, 11):
        world.add(FakeVm(world, f"vm-{number}", "more"))
    await client.filter(view_spec(await client.view(vim.VirtualMachine), property_spec(vim.VirtualMachine, *POWER)))
    seen: list[str] = []
    version, truncated = "", True
    while truncated:
        update = await client.wait(version, most=3)
        version, truncated = update.version, bool(update.truncated)
        assert {kind for kind, _, _ in told(update)} == {"enter"}
        seen += [moid for _, moid, _ in told(update)]
        assert len(told(update)) <= 3
    assert sorted(seen) == sorted(f"vm-{number}" for number in range(1, 11))
    assert await client.wait(version, seconds=0) is None


async def test_no_object_is_lost_that_changes_before_it_was_told_of(client: Client, world: World) -> None:
    await client.filter(view_spec(await client.view(vim.VirtualMachine), property_spec(vim.VirtualMachine, *POWER)))
    first = await client.wait(most=1)
    vm(world, 2).set_power("poweredOn")
    rest = await client.wait(first.version)
    assert {(kind, moid) for kind, moid, _ in told(rest)} == {("enter", "vm-2"), ("enter", "vm-3")}


async def test_partial_updates_tell_what_is_inside(client: Client, world: World) -> None:
    task = FakeTask(world, "task-1")
    world.add(task)
    await client.filter(filter_spec([task.ref], property_spec(vim.Task, all=True)), partial=True)
    first = await client.wait()
    assert {"info", "availableField"} & told(first)[0][2].keys()
    task.set(progress=40)
    second = await client.wait(first.version)
    assert told(second) == [("modify", "task-1", {"info.progress": 40})]
    task.set(state="success", result=vim.VirtualMachine("vm-9"))
    assert told(await client.wait(second.version))[0][2] == {
        "info.state": "success",
        "info.result": vim.VirtualMachine("vm-9"),
    }
    assert told(await client.wait(first.version))[0][2].keys() == {"info.progress", "info.state", "info.result"}


async def test_partial_updates_of_lists_name_their_elements(client: Client, world: World) -> None:
    one = vm(world, 1)
    nic = vim.vm.device.VirtualVmxnet3(key=4000, macAddress="a")
    one.devices = [vim.vm.device.VirtualDisk(key=2000, capacityInKB=4), nic]
    spec = filter_spec([one.ref], property_spec(vim.VirtualMachine, "config.hardware.device"))
    await client.filter(spec, partial=True)
    first = await client.wait()
    one.devices = [
        vim.vm.device.VirtualVmxnet3(key=4000, macAddress="b"),
        vim.vm.device.VirtualDisk(key=2001, capacityInKB=8),
    ]
    world.updates.touch("vm-1")
    update = await client.wait(first.version)
    changes = {str(change.name): (str(change.op), change.val) for change in update.filterSet[0].objectSet[0].changeSet}
    assert changes["config.hardware.device[2000]"] == ("remove", None)
    assert changes["config.hardware.device[4000].macAddress"] == ("assign", "b")
    op, added = changes["config.hardware.device[2001]"]
    assert (op, added.key) == ("add", 2001)
    assert len(changes) == 3


async def test_a_destroyed_filter_says_nothing_more(client: Client, world: World) -> None:
    made = await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    assert await client.ask(COLLECTOR, "Fetch", prop="filter") == [made]
    assert (await client.ask(made._moId, "Fetch", prop="spec")).propSet[0].pathSet == list(POWER)
    first = await client.wait()
    await client.ask(made._moId, "DestroyPropertyFilter")
    vm(world, 1).set_power("poweredOn")
    assert await client.wait(first.version, seconds=0) is None
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await client.ask(made._moId, "DestroyPropertyFilter")


async def test_sessions_do_not_share_the_well_known_collector(world: World) -> None:
    ann, bob = Client(world), Client(world)
    for client in (ann, bob):
        await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    versions = [(await client.wait()).version for client in (ann, bob)]
    vm(world, 1).set_power("poweredOn")
    for client, version in zip((ann, bob), versions, strict=True):
        update = await client.wait(version)
        assert [one[:2] for one in told(update)] == [("modify", "vm-1")]
        assert len(update.filterSet) == 1
    made = await ann.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await bob.ask(made._moId, "DestroyPropertyFilter")


async def test_further_collectors_are_independent_and_end(client: Client, world: World) -> None:
    mine = (await client.ask(COLLECTOR, "CreatePropertyCollector"))._moId
    made = await client.filter(
        filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)), at=mine
    )
    assert len(told(await client.wait(at=mine))) == 1
    waiting = asyncio.create_task(client.wait("", seconds=5))  # the well-known one has no filter and waits
    await asyncio.sleep(0)
    await client.ask(mine, "DestroyPropertyCollector")
    for moid in (mine, made._moId):
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            await client.ask(moid, "Fetch", prop="filter")
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(vmodl.fault.NotSupported):
        await client.ask(COLLECTOR, "DestroyPropertyCollector")


# -- waiting -----------------------------------------------------------------------------------------------------------


async def started(client: Client, version: str, seconds: int | None = 30) -> asyncio.Task[Any]:
    waiting = asyncio.create_task(client.wait(version, seconds))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


async def test_a_change_wakes_who_waits(client: Client, world: World) -> None:
    await client.filter(view_spec(await client.view(vim.VirtualMachine), property_spec(vim.VirtualMachine, *POWER)))
    first = await client.wait()
    waiting = await started(client, first.version, seconds=None)
    world.updates.touch("elsewhere")
    vm(world, 3).set_power("poweredOn")
    assert told(await asyncio.wait_for(waiting, 5)) == [("modify", "vm-3", {"runtime.powerState": "poweredOn"})]
    waiting = await started(client, (await client.wait()).version)
    world.add(FakeVm(world, "vm-8", "late"))
    assert [one[:2] for one in told(await asyncio.wait_for(waiting, 5))] == [("enter", "vm-8")]


async def test_a_new_filter_wakes_who_waits(client: Client) -> None:
    waiting = await started(client, "")
    await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    assert len(told(await asyncio.wait_for(waiting, 5))) == 1


async def test_a_wait_that_is_cancelled(client: Client, world: World) -> None:
    waiting = await started(client, "")
    await client.ask(COLLECTOR, "CancelWaitForUpdates")
    with pytest.raises(vmodl.fault.RequestCanceled):
        await asyncio.wait_for(waiting, 5)
    other = await started(Client(world), "")
    await client.ask(COLLECTOR, "CancelWaitForUpdates")
    await asyncio.sleep(0)
    assert not other.done()
    other.cancel()


async def test_a_session_that_ends_ends_its_waits(client: Client, world: World) -> None:
    waiting = await started(client, "", seconds=None)
    session = client.call.session
    assert isinstance(session, FakeSession)
    sessions_of(world).end(session)
    with pytest.raises(vim.fault.NotAuthenticated):
        await asyncio.wait_for(waiting, 5)


async def test_a_wait_without_news_ends_at_its_time(client: Client) -> None:
    await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    first = await client.wait()
    assert await client.wait(first.version, seconds=0) is None
    with pytest.raises(vmodl.fault.InvalidArgument):
        await client.wait(first.version, seconds=-1)
    with pytest.raises(vmodl.fault.InvalidArgument):
        await client.wait(first.version, most=0)


async def test_who_waits_for_one_object_is_not_woken_for_others(client: Client, world: World) -> None:
    await client.filter(filter_spec([vim.VirtualMachine("vm-1")], property_spec(vim.VirtualMachine, *POWER)))
    first = await client.wait()
    waiting = await started(client, first.version)
    reads = vm(world, 1).reads
    for number in range(50):
        vm(world, 2).set_power("poweredOn" if number % 2 else "poweredOff")
        world.add(FakeTask(world, f"task-{number}"))
        await asyncio.sleep(0)
    assert vm(world, 1).reads == reads
    waiting.cancel()


async def test_sixty_four_clients_each_with_a_filter_of_its_own(world: World) -> None:
    tasks = [FakeTask(world, f"task-{number}") for number in range(64)]
    for task in tasks:
        world.add(task)

    async def follow(task: FakeTask) -> list[str]:
        client, version, seen = Client(world), "", []
        await client.filter(
            filter_spec([task.ref], property_spec(vim.Task, "info.state", "info.progress")), partial=True
        )
        while "success" not in seen:
            update = await client.wait(version, seconds=None)
            version = update.version
            seen += [str(changes["info.state"]) for _, _, changes in told(update) if "info.state" in changes]
        return seen

    async def work(task: FakeTask) -> None:
        for progress in range(0, 100, 20):
            task.set(progress=progress)
            await asyncio.sleep(0)
        task.set(state="success")

    async with asyncio.timeout(30):
        followed = [asyncio.create_task(follow(task)) for task in tasks]
        await asyncio.sleep(0)
        await asyncio.gather(*(work(task) for task in tasks))
        assert {seen[-1] for seen in await asyncio.gather(*followed)} == {"success"}
