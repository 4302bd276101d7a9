"""Views, the search index and the service instance."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.world import World
from ramet.vsphere.types import Support, vim, vmodl
from tests.unit.vsphere.soap_kit import FakeFolder, FakeVm, filter_spec, make_world, property_spec, vm
from tests.unit.vsphere.test_collector import Client, told


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


async def seen(client: Client, view: Any) -> list[str]:
    found = await client.ask(view._moId, "Fetch", prop="view")
    assert isinstance(found, Support.ManagedObject.Array)
    return [one._moId for one in found]


# -- views -------------------------------------------------------------------------------------------------------------


async def test_a_container_view_holds_what_is_below_and_is_current(client: Client, world: World) -> None:
    view = await client.view(vim.VirtualMachine)
    assert await seen(client, view) == ["vm-1", "vm-2", "vm-3"]
    world.add(FakeFolder(world, "group-v77", "inner", "group-v3"))
    world.add(FakeVm(world, "vm-77", "deep", "group-v77"))
    world.remove("vm-2")
    assert await seen(client, view) == ["vm-1", "vm-3", "vm-77"]
    folders = await client.view(vim.Folder)
    assert await seen(client, folders) == ["group-v3", "group-h4", "group-v77"]
    assert await client.ask(view._moId, "Fetch", prop="recursive") is True
    assert (await client.ask(view._moId, "Fetch", prop="container"))._moId == "group-d1"
    assert await client.ask(view._moId, "Fetch", prop="type") == [vim.VirtualMachine]


async def test_a_move_is_seen_when_the_folder_says_that_it_changed(client: Client, world: World) -> None:
    world.add(FakeFolder(world, "group-v77", "inner", "group-v3"))
    view = await client.view(vim.VirtualMachine, container="group-v77")
    assert await seen(client, view) == []
    vm(world, 1).parent_moid = "group-v77"
    world.updates.touch("group-v77")
    assert await seen(client, view) == ["vm-1"]


async def test_a_view_that_is_not_recursive_holds_children_only(client: Client) -> None:
    assert await seen(client, await client.view(recursive=False)) == ["datacenter-2"]
    assert await seen(client, await client.view(container="datacenter-2", recursive=False)) == ["group-v3", "group-h4"]
    assert await seen(client, await client.view(vim.VirtualMachine, container="group-v3", recursive=False)) == [
        "vm-1",
        "vm-2",
        "vm-3",
    ]
    assert await seen(client, await client.view(vim.VirtualMachine, recursive=False)) == []


async def test_a_container_that_goes_leaves_an_empty_view(client: Client, world: World) -> None:
    world.add(FakeFolder(world, "group-v77", "inner", "group-v3"))
    view = await client.view(container="group-v77")
    world.remove("group-v77")
    assert await seen(client, view) == []


async def test_what_is_no_container(client: Client) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument):
        await client.view(container="SearchIndex")


async def test_a_list_view_holds_what_is_put_into_it(client: Client, world: World) -> None:
    gone = vim.VirtualMachine("vm-99")
    view = await client.ask("ViewManager", "CreateListView", obj=[vim.VirtualMachine("vm-1"), gone])
    assert await seen(client, view) == ["vm-1"]
    unresolved = await client.ask(
        view._moId, "ModifyListView", add=[vim.VirtualMachine("vm-2"), gone], remove=[vim.VirtualMachine("vm-1")]
    )
    assert [one._moId for one in unresolved] == ["vm-99"]
    assert await seen(client, view) == ["vm-2"]
    await client.ask(view._moId, "ResetListView", obj=[vim.VirtualMachine("vm-3")])
    assert await seen(client, view) == ["vm-3"]
    world.remove("vm-3")
    assert await seen(client, view) == []
    await client.ask(view._moId, "ResetListViewFromView", view=await client.view(vim.VirtualMachine))
    assert await seen(client, view) == ["vm-1", "vm-2"]
    copy = await client.ask("ViewManager", "CreateListViewFromView", view=view)
    assert await seen(client, copy) == ["vm-1", "vm-2"]
    with pytest.raises(vmodl.fault.InvalidArgument):
        await client.ask("ViewManager", "CreateListViewFromView", view=vim.view.View("vm-1"))


async def test_a_filter_on_a_list_view_follows_it(client: Client) -> None:
    """How Go clients wait for many tasks: one filter on a list view that tasks are put into."""
    view = await client.ask("ViewManager", "CreateListView")
    kind = Support.GetVmodlType("vmodl.query.PropertyCollector")
    step = kind.TraversalSpec(type=vim.view.ListView, path="view")
    root = kind.ObjectSpec(obj=view, skip=True, selectSet=[step])
    await client.filter(filter_spec([root], property_spec(vim.VirtualMachine, "name")))
    first = await client.wait()
    assert told(first) == []
    await client.ask(view._moId, "ModifyListView", add=[vim.VirtualMachine("vm-2")])
    second = await client.wait(first.version)
    assert told(second) == [("enter", "vm-2", {"name": "guest 2"})]
    await client.ask(view._moId, "ModifyListView", remove=[vim.VirtualMachine("vm-2")])
    assert [one[:2] for one in told(await client.wait(second.version))] == [("leave", "vm-2")]


async def test_an_inventory_view_is_opened_folder_by_folder(client: Client) -> None:
    view = await client.ask("ViewManager", "CreateInventoryView")
    assert await seen(client, view) == ["group-d1"]
    unresolved = await client.ask(
        view._moId, "OpenInventoryViewFolder", entity=[vim.Folder("group-d1"), vim.Datacenter("datacenter-9")]
    )
    assert [one._moId for one in unresolved] == ["datacenter-9"]
    assert await seen(client, view) == ["group-d1", "datacenter-2"]
    await client.ask(view._moId, "OpenInventoryViewFolder", entity=[vim.Folder("group-v3")])
    assert set(await seen(client, view)) == {"group-d1", "datacenter-2", "group-v3", "vm-1", "vm-2", "vm-3"}
    await client.ask(view._moId, "CloseInventoryViewFolder", entity=[vim.Folder("group-d1"), vim.Folder("group-v3")])
    assert await seen(client, view) == ["group-d1"]


async def test_views_belong_to_their_session_and_are_destroyed(client: Client, world: World) -> None:
    view = await client.view(vim.VirtualMachine)
    assert await client.ask("ViewManager", "Fetch", prop="viewList") == [view]
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await Client(world).ask(view._moId, "Fetch", prop="view")
    await client.ask(view._moId, "DestroyView")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await client.ask(view._moId, "Fetch", prop="view")


# -- search ------------------------------------------------------------------------------------------------------------


async def find(client: Client, method: str, **arguments: Any) -> Any:
    found = await invoke(client.world, client.call, "SearchIndex", method, arguments)
    if isinstance(found, list):
        return [one._moId for one in found]
    return None if found is None else found._moId


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ramet/vm/guest 2", "vm-2"),
        ("/ramet/vm/guest 2/", "vm-2"),
        ("ramet/vm/a%2fb", "vm-5"),
        ("ramet/vm", "group-v3"),
        ("ramet", "datacenter-2"),
        ("", "group-d1"),
        ("ramet/vm/none", None),
        ("none/vm", None),
        ("ramet/vm/guest 2/inside", None),
    ],
)
async def test_by_inventory_path(client: Client, world: World, path: str, expected: str | None) -> None:
    world.add(FakeVm(world, "vm-5", "a%2fb"))
    assert await find(client, "FindByInventoryPath", inventoryPath=path) == expected


async def test_by_child(client: Client) -> None:
    assert await find(client, "FindChild", entity=vim.Folder("group-v3"), name="guest 1") == "vm-1"
    assert await find(client, "FindChild", entity=vim.Folder("group-v3"), name="x") is None
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await find(client, "FindChild", entity=vim.Folder("group-v9"), name="x")


async def test_by_uuid(client: Client) -> None:
    uuid = "4200DEAD-0000-4000-8000-000000000002"
    assert await find(client, "FindByUuid", uuid=uuid, vmSearch=True) == "vm-2"
    assert await find(client, "FindAllByUuid", uuid=uuid.replace("-", ""), vmSearch=True) == ["vm-2"]
    inside = vim.Datacenter("datacenter-2")
    assert await find(client, "FindByUuid", uuid=uuid, vmSearch=True, datacenter=inside) == "vm-2"
    assert await find(client, "FindByUuid", uuid=uuid, vmSearch=True, instanceUuid=True) is None
    assert await find(client, "FindByUuid", uuid=uuid, vmSearch=False) is None
    assert await find(client, "FindByUuid", uuid="", vmSearch=True) is None


async def test_by_address_and_name(client: Client, world: World) -> None:
    vm(world, 3).address = "10.0.0.7"
    assert await find(client, "FindByIp", ip=" 10.0.0.7", vmSearch=True) == "vm-3"
    assert await find(client, "FindAllByIp", ip="10.0.0.7", vmSearch=True) == ["vm-3"]
    assert await find(client, "FindByIp", ip="10.0.0.8", vmSearch=True) is None
    assert await find(client, "FindByDnsName", dnsName="nobody", vmSearch=True) is None
    assert await find(client, "FindAllByDnsName", dnsName="", vmSearch=True) == []
    where = vim.Datacenter("datacenter-2")
    assert await find(client, "FindByDatastorePath", datacenter=where, path="[ramet] x/x.vmx") is None


# -- the service -------------------------------------------------------------------------------------------------------


async def test_the_content_refers_to_what_there_is(client: Client) -> None:
    content = await client.ask("ServiceInstance", "RetrieveServiceContent")
    assert content.rootFolder._moId == "group-d1"
    assert content.propertyCollector._moId == "propertyCollector"
    assert content.sessionManager._moId == "SessionManager"
    assert content.viewManager._moId == "ViewManager"
    assert content.searchIndex._moId == "SearchIndex"
    assert content.perfManager is None
    assert (content.about.apiType, content.about.apiVersion) == ("VirtualCenter", "8.0.3.0")
    assert await client.ask("ServiceInstance", "Fetch", prop="content.about.version") == "8.0.3"
    assert (await client.ask("ServiceInstance", "CurrentTime")).tzinfo is not None


async def test_what_is_not_supported_says_so(client: Client) -> None:
    with pytest.raises(vmodl.fault.NotSupported) as caught:
        await client.ask("ServiceInstance", "ValidateMigration", vm=[vim.VirtualMachine("vm-1")])
    assert "ValidateMigration" in caught.value.msg
    with pytest.raises(vmodl.fault.MethodNotFound):
        await client.ask("ServiceInstance", "PowerOnVM_Task")
