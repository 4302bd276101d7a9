"""The automation API: /api, /rest and JSON-RPC, over a real host without guests."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest_asyncio

from ramet.model.access import Role
from ramet.model.machine import Display
from ramet.vsphere.core.world import World
from ramet.vsphere.ids import vm_moid
from ramet.vsphere.rest.app import make_app
from tests.vsphere.kit import record_vm, seen
from tests.vsphere.web_kit import PASSWORD, add_user, browsing


@pytest_asyncio.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """Nobody yet."""
    await add_user(world, "root", Role.ADMINISTRATOR)
    async with browsing(make_app(world)) as client:
        yield client


@pytest_asyncio.fixture
async def api(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """Logged in, by the header."""
    answer = await client.post("/api/session", auth=("root", PASSWORD))
    assert answer.status_code == 201
    client.cookies.clear()
    client.headers["vmware-api-session-id"] = answer.json()
    return client


@pytest_asyncio.fixture
async def vm(world: World) -> str:
    made = await record_vm(world.host, "web", memory_mib=256)
    await seen(world, made)
    return vm_moid(made.id)


async def test_a_session_from_its_beginning_to_its_end(api: httpx.AsyncClient) -> None:
    info = (await api.get("/api/session")).json()
    assert info["user"] == "root"
    assert info["created_time"].endswith("Z")
    assert (await api.delete("/api/session")).status_code == 204
    refused = await api.get("/api/session")
    assert refused.status_code == 401
    assert refused.json()["error_type"] == "UNAUTHENTICATED"


async def test_the_older_session_and_its_cookie(client: httpx.AsyncClient) -> None:
    answer = await client.post("/rest/com/vmware/cis/session", auth=("root", PASSWORD))
    assert answer.status_code == 200
    assert (await client.get("/rest/vcenter/vm")).json() == {"value": []}, "by the cookie"
    assert (await client.post("/rest/com/vmware/cis/session?~action=get")).json()["value"]["user"] == "root"
    assert (await client.delete("/rest/com/vmware/cis/session")).status_code == 200
    refused = await client.get("/rest/vcenter/vm")
    assert refused.json()["type"] == "com.vmware.vapi.std.errors.unauthenticated"


async def test_a_wrong_password(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/session", auth=("root", "wrong"))
    assert answer.status_code == 401
    assert "www-authenticate" in answer.headers
    assert (await client.post("/api/session")).status_code == 401


async def test_a_ticket_to_a_console(api: httpx.AsyncClient, world: World, vm: str) -> None:
    """As the client calls the server. What keeps it from being given out is told."""
    refused = await api.post(f"/api/vcenter/vm/{vm}/console/tickets", json={"type": "WEBMKS"})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "NOT_ALLOWED_IN_CURRENT_STATE")
    assert "no display" in refused.json()["messages"][0]["default_message"]
    refused = await api.post(f"/api/vcenter/vm/{vm}/console/tickets", json={"type": "VMRC"})
    assert refused.json()["error_type"] == "UNSUPPORTED"
    made = await record_vm(world.host, "screen", display=Display.VGA)
    await seen(world, made)
    live = world.host.floor.machines[made.id]
    live.process = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]
    path = f"/api/vcenter/vm/{vm_moid(made.id)}/console/tickets"
    answer = await api.post(path, json={"type": "WEBMKS"}, headers={"host": "esx1.example.com:8443"})
    assert answer.status_code == 201
    assert answer.json()["ticket"].startswith("wss://esx1.example.com:8443/ticket/")
    answer = await api.post(path, json={"spec": {"type": "WEBMKS"}}, headers={"host": "[fd00::1]"})
    assert answer.json()["ticket"].startswith("wss://[fd00::1]:443/ticket/")
    answer = await api.post(path, json={"spec": {"type": "WEBMKS"}}, headers={"host": "e/x"})
    assert answer.json()["ticket"].startswith(f"wss://{socket.gethostname()}:")
    live.process = None


async def test_vms_are_listed_and_filtered(api: httpx.AsyncClient, world: World, vm: str) -> None:
    await seen(world, await record_vm(world.host, "db"))
    everything = (await api.get("/api/vcenter/vm")).json()
    assert [one["name"] for one in everything] == ["db", "web"]
    assert everything[1] == {
        "vm": vm, "name": "web", "power_state": "POWERED_OFF", "cpu_count": 1, "memory_size_MiB": 256,
    }  # fmt: skip
    for query, names in (
        ("names=web", ["web"]),
        ("names=web&names=db", ["db", "web"]),
        ("filter.names.1=web&filter.names.2=nobody", ["web"]),
        (f"vms={vm}", ["web"]),
        ("power_states=POWERED_ON", []),
        ("folders=group-v3&datacenters=datacenter-2", ["db", "web"]),
        ("folders=group-h4", []),
        ("hosts=host-9&resource_pools=resgroup-8", ["db", "web"]),
        ("clusters=domain-c1", []),
    ):
        assert [one["name"] for one in (await api.get(f"/api/vcenter/vm?{query}")).json()] == names, query


async def test_one_vm_whole(api: httpx.AsyncClient, vm: str) -> None:
    info = (await api.get(f"/api/vcenter/vm/{vm}")).json()
    assert info["instant_clone_frozen"] is False
    assert info["memory"]["size_MiB"] == 256
    assert info["nics"]["4000"]["backing"]["network_name"] == "user"
    assert info["disks"]["2000"]["capacity"] == 64 << 20
    older = (await api.get(f"/rest/vcenter/vm/{vm}")).json()["value"]
    assert older["nics"] == [{"key": "4000", "value": info["nics"]["4000"]}], "maps are lists there"
    for path in ("power", "hardware", "hardware/cpu", "hardware/disk/2000", "guest/power", "tools"):
        assert (await api.get(f"/api/vcenter/vm/{vm}/{path}")).status_code == 200, path


async def test_hardware_is_changed(api: httpx.AsyncClient, vm: str) -> None:
    at = f"/api/vcenter/vm/{vm}/hardware"
    assert (await api.patch(f"{at}/memory", json={"size_MiB": 128})).status_code == 204
    assert (await api.get(f"{at}/memory")).json()["size_MiB"] == 128
    nic = (await api.post(f"{at}/ethernet", json={"type": "VMXNET3", "start_connected": True})).json()
    assert {one["nic"] for one in (await api.get(f"{at}/ethernet")).json()} == {"4000", nic}
    changed = await api.patch(f"{at}/ethernet/{nic}", json={"mac_type": "MANUAL", "mac_address": "52:54:00:00:00:07"})
    assert changed.status_code == 204, changed.text
    assert (await api.get(f"{at}/ethernet/{nic}")).json()["mac_address"] == "52:54:00:00:00:07"
    assert (await api.delete(f"{at}/ethernet/{nic}")).status_code == 204
    assert (await api.get(f"{at}/ethernet/{nic}")).status_code == 404


async def test_a_vm_is_made_and_deleted(api: httpx.AsyncClient) -> None:
    spec = {"guest_OS": "DEBIAN_12_64", "name": "made", "memory": {"size_MiB": 64}, "cpu": {"count": 1}}
    made = (await api.post("/api/vcenter/vm", json=spec)).json()
    info = (await api.get(f"/api/vcenter/vm/{made}")).json()
    assert (info["name"], info["guest_OS"], info["memory"]["size_MiB"]) == ("made", "DEBIAN_12_64", 64)
    again = await api.post("/rest/vcenter/vm", json={"spec": spec})
    assert again.json()["type"] == "com.vmware.vapi.std.errors.already_exists"
    assert (await api.delete(f"/api/vcenter/vm/{made}")).status_code == 204
    assert (await api.get(f"/api/vcenter/vm/{made}")).status_code == 404


INSTANT = "/api/vcenter/vm?action=instant-clone"
REFUSED: tuple[tuple[str, str, Any, int, str], ...] = (
    ("GET", "/api/vcenter/vm/vm-7", None, 404, "NOT_FOUND"),
    ("GET", "/api/vcenter/vm/host-9", None, 404, "NOT_FOUND"),
    ("GET", "/api/nothing", None, 404, "OPERATION_NOT_FOUND"),
    ("GET", "/api/vcenter/vm?colour=red", None, 400, "INVALID_ARGUMENT"),
    ("GET", "/api/vcenter/vm?power_states=ON", None, 400, "INVALID_ARGUMENT"),
    ("POST", INSTANT, {"source": "VM"}, 400, "INVALID_ARGUMENT"),
    ("POST", INSTANT, {"source": "VM", "name": "a", "x": 1}, 400, "INVALID_ARGUMENT"),
    ("POST", INSTANT, {"source": "VM", "name": "kid"}, 400, "NOT_ALLOWED_IN_CURRENT_STATE"),
    ("POST", "/api/vcenter/vm/VM/power?action=stop", None, 400, "ALREADY_IN_DESIRED_STATE"),
    ("POST", "/rest/vcenter/vm/VM/power/stop", None, 400, "ALREADY_IN_DESIRED_STATE"),
    ("GET", "/api/vcenter/vm/VM/guest/identity", None, 503, "SERVICE_UNAVAILABLE"),
    ("GET", "/api/vcenter/vm/VM/hardware/ethernet/9", None, 404, "NOT_FOUND"),
    ("POST", "/api/vcenter/vm/VM/hardware/ethernet", {"backing": {"type": "HOST_DEVICE"}}, 400, "UNSUPPORTED"),
)


async def test_errors(api: httpx.AsyncClient, vm: str) -> None:
    for verb, path, body, status, kind in REFUSED:
        text = None if body is None else json.dumps(body).replace('"VM"', f'"{vm}"')
        answer = await api.request(verb, path.replace("/VM/", f"/{vm}/"), content=text)
        said = answer.json().get("value", answer.json())["error_type"]
        assert (answer.status_code, said) == (status, kind), path
    for unreadable in ("{", "[]", "[" * 99, '"x"', "1e999"):
        assert (await api.post(INSTANT, content=unreadable)).status_code == 400, unreadable


async def test_places_are_listed(api: httpx.AsyncClient) -> None:
    for kind, filters in {
        "host": "names=nobody", "datacenter": "names=nobody", "folder": "type=DATASTORE", "datastore": "types=NFS",
        "network": "types=OPAQUE_NETWORK", "resource-pool": "hosts=host-1", "cluster": "names=nobody",
    }.items():  # fmt: skip
        everything = (await api.get(f"/api/vcenter/{kind}")).json()
        some = (await api.get(f"/api/vcenter/{kind}?{filters}")).json()
        assert len(some) < len(everything) or kind == "cluster", kind
    assert (await api.get("/api/vcenter/datacenter/datacenter-2")).json()["vm_folder"] == "group-v3"
    assert (await api.get("/api/vcenter/datastore/datastore-10")).json()["accessible"] is True
    assert (await api.get("/api/vcenter/resource-pool/resgroup-8")).json()["resource_pools"] == []
    assert (await api.get("/api/appliance/system/version")).json()["version"].startswith("8.")


async def test_tasks(api: httpx.AsyncClient, vm: str) -> None:
    await api.patch(f"/api/vcenter/vm/{vm}/hardware/memory", json={"size_MiB": 128})
    tasks = (await api.get("/api/cis/tasks?status=SUCCEEDED")).json()
    task, info = next(iter(tasks.items()))
    assert info["target"] == {"type": "VirtualMachine", "id": vm}
    assert (await api.get(f"/api/cis/tasks/{task}")).json() == info
    assert (await api.get("/api/cis/tasks/task-1")).status_code == 404


async def test_a_reader_may_look_and_nothing_else(client: httpx.AsyncClient, world: World, vm: str) -> None:
    await add_user(world, "reader", Role.READ_ONLY)
    client.headers["vmware-api-session-id"] = (await client.post("/api/session", auth=("reader", PASSWORD))).json()
    assert len((await client.get("/api/vcenter/vm")).json()) == 1
    for verb, path in (("DELETE", f"/api/vcenter/vm/{vm}"), ("POST", f"/api/vcenter/vm/{vm}/power?action=start")):
        answer = await client.request(verb, path)
        assert (answer.status_code, answer.json()["error_type"]) == (403, "UNAUTHORIZED")


# -- JSON-RPC ----------------------------------------------------------------------------------------------------------


async def rpc(client: httpx.AsyncClient, service: str, operation: str, given: Any = None, **context: Any) -> Any:
    params = {
        "serviceId": service,
        "operationId": operation,
        "input": {"STRUCTURE": {"operation-input": given or {}}},
        "ctx": {"appCtx": {"opId": "1"}, "securityCtx": context},
    }
    answer = await client.post("/api", json={"jsonrpc": "2.0", "id": "7", "method": "invoke", "params": params})
    data = answer.json()
    assert (answer.status_code, data["jsonrpc"], data["id"]) == (200, "2.0", "7")
    return data["result"]


async def test_the_sdk_s_own_protocol(client: httpx.AsyncClient, vm: str) -> None:
    who = {"schemeId": "com.vmware.vapi.std.security.user_pass", "userName": "root", "password": PASSWORD}
    secret = (await rpc(client, "com.vmware.cis.session", "create", **who))["output"]["SECRET"]
    with_it = {"schemeId": "com.vmware.vapi.std.security.session_id", "sessionId": secret}
    names = {"com.vmware.vcenter.VM.filter_spec": {"names": {"OPTIONAL": ["web"]}}}
    wanted = {"filter": {"OPTIONAL": {"STRUCTURE": names}}}
    listed = (await rpc(client, "com.vmware.vcenter.VM", "list", wanted, **with_it))["output"]
    fields = listed[0]["STRUCTURE"]["com.vmware.vcenter.VM.summary"]
    assert (fields["vm"], fields["cpu_count"]) == (vm, {"OPTIONAL": 1})
    info = (await rpc(client, "com.vmware.vcenter.VM", "get", {"vm": vm}, **with_it))["output"]
    nics = info["STRUCTURE"]["com.vmware.vcenter.VM.info"]["nics"]
    assert nics[0]["STRUCTURE"]["map-entry"]["key"] == "4000"
    assert await rpc(client, "com.vmware.cis.session", "delete", **with_it) == {"output": None}
    error = (await rpc(client, "com.vmware.vcenter.VM", "list", **with_it))["error"]["ERROR"]
    assert "com.vmware.vapi.std.errors.unauthenticated" in error


async def test_what_json_rpc_refuses(api: httpx.AsyncClient) -> None:
    error = (await rpc(api, "com.vmware.vcenter.VM", "explode"))["error"]["ERROR"]
    assert "com.vmware.vapi.std.errors.operation_not_found" in error
    for text, code in (
        (b"{", -32700),
        (b"{}", -32600),
        (b'{"jsonrpc": "2.0", "method": "list"}', -32601),
        (b'{"jsonrpc": "2.0", "method": "invoke"}', -32602),
        (b'{"jsonrpc": "2.0", "method": "invoke", "params": {"input": {"A": 1}}}', -32602),
    ):
        assert (await api.post("/api", content=text)).json()["error"]["code"] == code
