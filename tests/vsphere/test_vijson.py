"""VI JSON over a real host without guests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest_asyncio

from ramet.model.access import Role
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.world import World
from ramet.vsphere.ids import vm_moid
from ramet.vsphere.vijson.app import make_app
from tests.vsphere.kit import record_vm, seen, until
from tests.vsphere.web_kit import PASSWORD, add_user, browsing

AT = "/sdk/vim25/8.0.3.0"
SPEC = {"name": "kid", "location": {"_typeName": "VirtualMachineRelocateSpec"}}


@pytest_asyncio.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    await add_user(world, "root", Role.ADMINISTRATOR)
    async with browsing(make_app(world)) as client:
        yield client


@pytest_asyncio.fixture
async def known(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """Logged in."""
    who = {"userName": "root", "password": PASSWORD}
    answer = await client.post(f"{AT}/SessionManager/SessionManager/Login", json=who)
    assert answer.status_code == 200, answer.text
    assert answer.json()["_typeName"] == "UserSession"
    client.headers["vmware-api-session-id"] = answer.headers["vmware-api-session-id"]
    return client


@pytest_asyncio.fixture
async def vm(world: World) -> str:
    made = await record_vm(world.host, "web")
    await seen(world, made)
    return vm_moid(made.id)


async def is_true(value: object) -> bool:
    return bool(value)


async def test_what_can_be_read_before_a_login(client: httpx.AsyncClient) -> None:
    content = (await client.get(f"{AT}/ServiceInstance/ServiceInstance/content")).json()
    assert content["_typeName"] == "ServiceContent"
    assert content["rootFolder"] == {"_typeName": "ManagedObjectReference", "type": "Folder", "value": "group-d1"}
    same = await client.post(f"{AT}/ServiceInstance/ServiceInstance/RetrieveServiceContent")
    assert same.json() == content
    assert (await client.get(f"{AT}/Folder/group-d1/name")).status_code == 401


async def test_properties(known: httpx.AsyncClient, vm: str) -> None:
    at = f"{AT}/VirtualMachine/{vm}"
    assert (await known.get(f"{at}/name")).json() == "web"
    runtime = (await known.get(f"{at}/runtime")).json()
    assert (runtime["_typeName"], runtime["powerState"]) == ("VirtualMachineRuntimeInfo", "poweredOff")
    assert "DateTime" not in str(runtime)
    config = (await known.get(f"{at}/config")).json()
    assert "VirtualVmxnet3" in {one["_typeName"] for one in config["hardware"]["device"]}
    assert (await known.get(f"{AT}/ManagedEntity/{vm}/name")).json() == "web", "by a type that it is a kind of"
    assert (await known.get(f"{AT}/Folder/group-d1/parent")).status_code == 204, "unset"


async def test_a_method_whose_fault_is_its_answer(known: httpx.AsyncClient, vm: str) -> None:
    answer = await known.post(f"{AT}/VirtualMachine/{vm}/InstantClone_Task", json={"spec": SPEC})
    if answer.status_code == 200:
        task = answer.json()["value"]
        info = (await known.get(f"{AT}/Task/{task}/info")).json()
        assert info["error"]["_typeName"] == "LocalizedMethodFault"
    else:
        assert answer.status_code == 500
        assert answer.json()["_typeName"] == "InvalidPowerState"
        assert "off" in answer.json()["faultstring"]


async def test_the_property_collector(known: httpx.AsyncClient, vm: str) -> None:
    reference = {"_typeName": "ManagedObjectReference", "type": "VirtualMachine", "value": vm}
    spec = {"propSet": [{"type": "VirtualMachine", "pathSet": ["name"]}], "objectSet": [{"obj": reference}]}
    at = f"{AT}/PropertyCollector/propertyCollector"
    found = (await known.post(f"{at}/RetrievePropertiesEx", json={"specSet": [spec], "options": {}})).json()
    value = found["objects"][0]["propSet"][0]["val"]
    assert value == {"_typeName": "string", "_value": "web"}


async def test_whoever_waits_and_goes_leaves_nothing_behind(known: httpx.AsyncClient, world: World, vm: str) -> None:
    reference = {"_typeName": "ManagedObjectReference", "type": "VirtualMachine", "value": vm}
    spec = {"propSet": [{"type": "VirtualMachine", "pathSet": ["name"]}], "objectSet": [{"obj": reference}]}
    at = f"{AT}/PropertyCollector/propertyCollector"
    await known.post(f"{at}/CreateFilter", json={"spec": spec, "partialUpdates": False})
    first = (await known.post(f"{at}/WaitForUpdatesEx", json={"options": {"maxWaitSeconds": 5}})).json()
    waiting = asyncio.create_task(known.post(f"{at}/WaitForUpdatesEx", json={"version": first["version"]}))
    (session,) = world.part(Sessions).all()
    await until(lambda: is_true(session.running))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not session.running


REFUSED: tuple[tuple[str, str, Any, int, str], ...] = (
    ("GET", "VirtualMachine/vm-7/name", None, 404, "ManagedObjectNotFound"),
    ("GET", "Folder/VM/name", None, 404, "InvalidRequest"),
    ("GET", "Nothing/VM/name", None, 404, "InvalidRequest"),
    ("GET", "VirtualMachine/VM/colour", None, 404, "InvalidProperty"),
    ("POST", "VirtualMachine/VM/Explode", {}, 404, "MethodNotFound"),
    ("POST", "VirtualMachine/VM/InstantClone_Task", {"spec": {"name": "x"}}, 400, "InvalidArgument"),
    ("POST", "VirtualMachine/VM/InstantClone_Task", {"colour": 1}, 400, "InvalidArgument"),
    ("POST", "VirtualMachine/VM/InstantClone_Task", [], 400, "InvalidRequest"),
    ("POST", "VirtualMachine/VM/InstantClone_Task", {}, 500, "InvalidArgument"),
    ("DELETE", "VirtualMachine/VM/name", None, 405, "InvalidRequest"),
    ("GET", "VirtualMachine/VM", None, 404, "InvalidRequest"),
)


async def test_errors(known: httpx.AsyncClient, vm: str) -> None:
    for verb, path, body, status, kind in REFUSED:
        answer = await known.request(verb, f"{AT}/{path.replace('/VM', f'/{vm}')}", json=body)
        assert (answer.status_code, answer.json()["_typeName"]) == (status, kind), path


async def test_releases(client: httpx.AsyncClient) -> None:
    for release, status in (("8.0.1.0", 200), ("8.0.0.1", 404), ("9.0.0.0", 404), ("6.7", 404), ("x", 404)):
        answer = await client.get(f"/sdk/vim25/{release}/ServiceInstance/ServiceInstance/content")
        assert answer.status_code == status, release
