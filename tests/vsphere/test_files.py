"""Files of VMs and pictures of their displays over HTTP: who may read what, and what nobody reads there."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ramet.errors import BusyError, StateError
from ramet.host.service import Host
from ramet.host.users import Users
from ramet.model.access import Role
from ramet.model.machine import Display, Vm
from ramet.vsphere.access.roles import Roles
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.files.app import make_app
from ramet.vsphere.ids import vm_moid
from ramet.vsphere.machine import screenshots
from ramet.vsphere.types import vim
from tests.vsphere.kit import record_vm, root_call, seen
from tests.vsphere.web_kit import PASSWORD, add_user, browsing

ROOT = ("root", PASSWORD)
PICTURE = b"\x89PNG a picture"
PLACE = {"dcPath": "ramet", "dsName": "ramet"}


@pytest_asyncio.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    await add_user(world, "root", Role.ADMINISTRATOR)
    async with browsing(make_app(world)) as client:
        yield client


@pytest_asyncio.fixture
async def tv(world: World) -> Vm:
    """With a log."""
    vm = await record_vm(world.host, "tv", display=Display.VGA)
    await seen(world, vm)
    folder = folder_of(world, vm)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "qemu.log").write_text("it said so\n")
    return vm


def folder_of(world: World, vm: Vm) -> Path:
    return world.host.floor.rooms.paths.vm(vm.id)


def sessions_of(world: World) -> int:
    return world.part(Sessions).count()


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def screenshot(host: Host, ref: str) -> bytes:
        return PICTURE

    monkeypatch.setattr(Host, "screenshot", screenshot)


async def test_a_log_is_read_and_its_session_ends_with_it(client: httpx.AsyncClient, world: World, tv: Vm) -> None:
    read = await client.get(f"/folder/vms/{tv.id}/qemu.log", params=PLACE, auth=ROOT)
    assert (read.status_code, read.text) == (200, "it said so\n")
    assert read.headers["content-type"].startswith("text/plain")
    assert read.headers["x-content-type-options"] == "nosniff"
    assert sessions_of(world) == 0
    session = await world.part(Sessions).login(*ROOT)
    cookie = {"vmware_soap_session": session.secret}
    client.cookies.update(cookie)
    assert (await client.head(f"/folder/vms/{tv.id}/qemu.log", params=PLACE)).headers["content-length"] == "11"
    assert sessions_of(world) == 1, "one that was open stays open"


async def test_who_is_let_in(client: httpx.AsyncClient, world: World, tv: Vm) -> None:
    url = f"/folder/vms/{tv.id}/qemu.log"
    for auth in (None, ("root", "wrong")):
        refused = await client.get(url, params=PLACE, auth=auth)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
    await add_user(world, "reader", Role.READ_ONLY)
    for asked in (f"{url}?dcPath=ramet&dsName=ramet", f"/screen?id={vm_moid(tv.id)}"):
        denied = await client.get(asked, auth=("reader", PASSWORD))
        assert (denied.status_code, "privilege" in denied.text) == (403, True)
    assert (await client.post(url, params=PLACE, auth=ROOT)).status_code == 405
    assert sessions_of(world) == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("qemu.log?dsName=other", 404),
        ("qemu.log", 404),
        ("no.log?{place}", 404),
        ("%2e%2e/secret.log?{place}", 404),
        ("..%2fsecret.log?{place}", 404),
        ("%2e%2e/%2e%2e/secret.log?{place}", 404),
        ("..%2f..%2fsecret.log?{place}", 404),
        ("x/..%2f..%2fsecret.log?{place}", 404),
        ("link.log?{place}", 404),
        ("pipe.log?{place}", 404),
        ("folder.log?{place}", 404),
        (".hidden.log?{place}", 404),
        ("?{place}", 404),
        ("x\u00fc%00.log?{place}", 404),
        ("disk.qcow2?{place}", 403),
        ("seed.iso?{place}", 403),
    ],
)
async def test_what_nobody_reads(client: httpx.AsyncClient, world: World, tv: Vm, path: str, status: int) -> None:
    folder = folder_of(world, tv)
    (folder / "link.log").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.log")
    for name in ("disk.qcow2", "seed.iso", ".hidden.log", "../secret.log", "../../secret.log"):
        (folder / name).write_text("secret")
    (folder / "folder.log").mkdir()
    asked = path.replace("{place}", "dcPath=ramet&dsName=ramet")
    answer = await client.get(f"/folder/vms/{tv.id}/{asked}", auth=ROOT)
    assert (answer.status_code, "secret" in answer.text) == (status, False)


@pytest.mark.parametrize("up", ["..", "../..", "x/../.."])
async def test_no_path_leads_out_of_a_vms_folder(world: World, tv: Vm, client: httpx.AsyncClient, up: str) -> None:
    """As it stands in the request's line: httpx would make it shorter."""
    folder = folder_of(world, tv)
    for name in ("../secret.log", "../../secret.log"):
        (folder / name).write_text("secret")
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        told.append(message)

    basic = (b"authorization", b"Basic " + base64.b64encode(":".join(ROOT).encode()))
    scope = {"type": "http", "method": "GET", "path": f"/folder/vms/{tv.id}/{up}/secret.log", "headers": [basic]}
    await make_app(world)({**scope, "query_string": b"dcPath=ramet&dsName=ramet"}, receive, send)
    assert (told[0]["status"], b"secret" in told[1]["body"]) == (404, False)


async def test_each_kind_of_file_needs_what_its_content_needs(client: httpx.AsyncClient, world: World, tv: Vm) -> None:
    roles = world.part(Roles)
    needed = {
        "qemu.log": set[str](),
        "qemu.log.1": set[str](),
        "console.log": {"VirtualMachine.Interact.ConsoleInteract"},
        "console.log.1": {"VirtualMachine.Interact.ConsoleInteract"},
        "screen-1.png": {"VirtualMachine.Interact.CreateScreenshot"},
    }
    for name in needed:
        (folder_of(world, tv) / name).write_text("content")
    files = await roles.add("files", ["Datastore.FileManagement"])
    await add_user(world, "eve", Role.READ_ONLY)
    await roles.grant("eve", files)
    for name, more in needed.items():
        for privileges, status in (({"Datastore.FileManagement"}, 403 if more else 200), (more, 403)):
            await roles.update(files, "files", sorted(privileges))
            answer = await client.get(f"/folder/vms/{tv.id}/{name}", params=PLACE, auth=("eve", PASSWORD))
            assert answer.status_code == status, (name, privileges)
        await roles.update(files, "files", sorted({"Datastore.FileManagement", *more}))
        answer = await client.get(f"/folder/vms/{tv.id}/{name}", params=PLACE, auth=("eve", PASSWORD))
        assert (answer.status_code, answer.text) == (200, "content")


async def test_somebody_is_not_called_a_stranger_because_there_are_too_many(
    client: httpx.AsyncClient, tv: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(users: Users, name: str, password: str) -> None:
        raise BusyError("Too many log in at once.")

    monkeypatch.setattr(Users, "check", check)
    answer = await client.get(f"/folder/vms/{tv.id}/qemu.log", params=PLACE, auth=ROOT)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize("asked", ["/folder", "/folder/vms/zz/qemu.log", "/folder/layers/x/y.log", "/folder/vms"])
async def test_what_is_no_vms_file(client: httpx.AsyncClient, asked: str) -> None:
    assert (await client.get(asked, params=PLACE, auth=ROOT)).status_code == 404


async def test_files_of_what_is_unregistered_are_nobodys(client: httpx.AsyncClient, world: World, tv: Vm) -> None:
    await world.host.unregister_vm("tv")
    moid = vm_moid(tv.id)
    while world.get(moid) is not None:
        await world.updates.wait(world.updates.stamp, 10.0)
    assert (await client.get(f"/folder/vms/{tv.id}/qemu.log", params=PLACE, auth=ROOT)).status_code == 404


async def test_the_picture_of_now(client: httpx.AsyncClient, tv: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"/screen?id={vm_moid(tv.id)}"
    off = await client.get(url, auth=ROOT)
    assert (off.status_code, "off" in off.text) == (409, True)
    for bad in ("/screen", "/screen?id=", "/screen?id=host-9", "/screen?id=vm-1"):
        assert (await client.get(bad, auth=ROOT)).status_code == 404

    async def screenshot(host: Host, ref: str) -> bytes:
        assert ref == tv.id
        return PICTURE

    monkeypatch.setattr(Host, "screenshot", screenshot)
    seen_now = await client.get(url, auth=ROOT)
    assert (seen_now.content, seen_now.headers["content-type"]) == (PICTURE, "image/png")


@pytest.mark.usefixtures("painted")
async def test_the_last_screenshots_are_kept(world: World, tv: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screenshots, "MOST", 3)
    folder = folder_of(world, tv)
    (folder / "screen-x.png").write_bytes(b"somebody's own")
    kept = [await screenshots.keep(world.host, tv.id) for _ in range(5)]
    assert kept == [f"screen-{number}.png" for number in range(1, 6)]
    assert {path.name for path in folder.iterdir()} == {"qemu.log", "screen-x.png", *kept[2:]}
    assert (folder / kept[-1]).read_bytes() == PICTURE


async def test_screenshots_that_are_taken_at_once_are_each_its_own(world: World, tv: Vm) -> None:
    """By threads, as after a cancellation one may still write."""
    folder = folder_of(world, tv)
    pictures = [f"picture {number}".encode() for number in range(12)]
    names = await asyncio.gather(*(asyncio.to_thread(screenshots._write, folder, one) for one in pictures))
    assert {(folder / name).read_bytes() for name in names} == set(pictures)
    assert {path.name for path in folder.iterdir()} == {"qemu.log", *names}


async def test_pictures_are_taken_one_at_a_time(world: World, tv: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    running = 0

    async def screenshot(host: Host, ref: str) -> bytes:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return PICTURE

    monkeypatch.setattr(Host, "screenshot", screenshot)
    taken = await asyncio.gather(*(screenshots.picture(world.host, tv.id) for _ in range(5)))
    assert taken == [PICTURE] * 5


async def ended(world: World, moid: str) -> Any:
    task = await invoke(world, root_call(), moid, "CreateScreenshot_Task", {})
    while (info := await read_now(world.find(task._moId), "info")).state in ("queued", "running"):
        await world.updates.wait(world.updates.stamp, 10.0)
    return info


async def test_a_screenshot_of_what_has_no_picture_is_refused(world: World, tv: Vm) -> None:
    with pytest.raises(vim.fault.InvalidPowerState):
        await ended(world, vm_moid(tv.id))
    blind = await record_vm(world.host, "blind")
    await seen(world, blind)
    with pytest.raises(vim.fault.InvalidState, match="no display"):
        await ended(world, vm_moid(blind.id))


@pytest.mark.parametrize(
    ("problem", "fault"),
    [
        (OSError(28, "No space left on device"), vim.fault.InsufficientResourcesFault),
        (StateError("'tv' is off.", state="off", operation="screenshot"), vim.fault.InvalidState),
    ],
)
async def test_what_goes_wrong_is_the_tasks_fault(
    world: World, tv: Vm, monkeypatch: pytest.MonkeyPatch, problem: Exception, fault: Any
) -> None:
    async def screenshot(host: Host, ref: str) -> bytes:
        raise problem

    monkeypatch.setattr(Host, "screenshot", screenshot)
    monkeypatch.setattr(type(world.host.floor.find("tv")), "require_process", lambda self: None)
    assert isinstance((await ended(world, vm_moid(tv.id))).error, fault)
