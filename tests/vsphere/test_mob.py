"""The Managed Object Browser, as a script sees it, over a real host without guests."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import unescape
from html.parser import HTMLParser

import httpx
import pytest_asyncio

from ramet.model.access import Role
from ramet.vsphere.core.world import World
from ramet.vsphere.ids import vm_moid
from ramet.vsphere.mob.app import make_app
from ramet.vsphere.mob.examples import example
from ramet.vsphere.mob.forms import arguments
from ramet.vsphere.types import Support, vim, vmodl
from tests.vsphere.kit import record_vm, seen, until
from tests.vsphere.web_kit import PASSWORD, add_user, browsing

NONCE = re.compile(r'name="vmware-session-nonce" type="hidden" value="([^"]+)"')


@pytest_asyncio.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    await add_user(world, "root", Role.ADMINISTRATOR)
    async with browsing(make_app(world)) as client:
        yield client


@pytest_asyncio.fixture
async def mob(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """Signed in: from here on by the cookie alone."""
    assert (await client.get("/mob/", auth=("root", PASSWORD))).status_code == 200
    return client


@pytest_asyncio.fixture
async def vm(world: World) -> str:
    made = await record_vm(world.host, "web")
    await seen(world, made)
    return vm_moid(made.id)


async def nonce_of(mob: httpx.AsyncClient, url: str) -> str:
    found = NONCE.search((await mob.get(url)).text)
    assert found is not None
    return found[1]


async def test_who_is_let_in(client: httpx.AsyncClient) -> None:
    refused = await client.get("/mob/")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert (await client.get("/mob/", auth=("root", "wrong"))).status_code == 401
    first = await client.get("/mob", auth=("root", PASSWORD))
    assert first.status_code == 200
    assert "HttpOnly; Secure; SameSite=Lax" in first.headers["set-cookie"]
    assert "set-cookie" not in (await client.get("/mob/")).headers, "the cookie is enough"
    assert (await client.get("/mob/logout")).status_code == 200
    assert (await client.get("/mob/")).status_code == 401


async def test_an_object_a_property_and_an_element(mob: httpx.AsyncClient, vm: str) -> None:
    page = (await mob.get(f"/mob/?moid={vm}")).text
    assert ">web</h1>" in page
    assert '<a href="?moid=group-v3">group-v3</a>' in page
    assert f'href="?moid={vm}&amp;doPath=config"' in page
    assert f'href="?moid={vm}&amp;method=instantClone"' in page
    config = (await mob.get(f"/mob/?moid={vm}&doPath=config.hardware")).text
    assert "doPath=config.hardware.device%5B4000%5D" in config
    backing = (await mob.get(f"/mob/?moid={vm}&doPath=config.hardware.device[4000].backing")).text
    assert ">deviceName</th>" in backing
    assert ">user<" in backing


async def test_every_object_and_every_method_has_a_page(mob: httpx.AsyncClient, world: World, vm: str) -> None:
    for mo in world.of_kind(Support.ManagedObject):
        page = await mob.get(f"/mob/?moid={mo.moid}")
        assert page.status_code == 200, mo.moid
        balanced(page.text)
    for method in vim.VirtualMachine._GetMethodList():
        page = await mob.get(f"/mob/?moid={vm}&method={method.wsdlName}")
        assert page.status_code == 200, method.wsdlName
        balanced(page.text)


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("input", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def balanced(page: str) -> None:
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []


async def test_a_method_is_invoked_by_a_script(mob: httpx.AsyncClient, world: World, vm: str) -> None:
    url = f"/mob/?moid={vm}&method=rename"
    form = {"vmware-session-nonce": await nonce_of(mob, url), "newName": "shop"}
    page = (await mob.post(url, data=form)).text
    assert "Method Invocation Result: rename" in page
    task = re.search(r'href="\?moid=(task-\d+)"', page)
    assert task is not None

    async def is_done() -> bool:
        return 'http-equiv="refresh"' not in (await mob.get(f"/mob/?moid={task[1]}")).text

    await until(is_done)
    shown = (await mob.get(f"/mob/?moid={task[1]}")).text
    assert '<span class="badge good">success</span>' in shown
    assert ">shop</h1>" in (await mob.get(f"/mob/?moid={vm}")).text


async def test_a_fault_is_shown_whole_and_what_was_typed_is_kept(mob: httpx.AsyncClient, vm: str) -> None:
    url = f"/mob/?moid={vm}&method=instantClone"
    nonce = await nonce_of(mob, url)
    for spec, said in (
        ("<spec><name>kid</name><location/></spec>", "InvalidPowerState"),
        ("<spec><name>kid</name></spec>", "spec.location"),
        ("<spec>", "no well-formed XML"),
        ("", "The parameter &#x27;spec&#x27; is required."),
        ("<spec><name>&lt;script&gt;</name><location/></spec>", "error"),
    ):
        answer = await mob.post(url, data={"vmware-session-nonce": nonce, "spec": spec})
        assert answer.status_code == 200
        assert said in answer.text
        assert "<script" not in answer.text
        typed = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", answer.text, re.S)
        assert typed is not None
        assert unescape(typed[1]) == spec


async def test_only_a_form_of_this_session_is_taken(mob: httpx.AsyncClient, vm: str) -> None:
    url = f"/mob/?moid={vm}&method=rename"
    nonce = await nonce_of(mob, url)
    for form in ({}, {"vmware-session-nonce": ""}, {"vmware-session-nonce": nonce[:-1] + "!"}):
        answer = await mob.post(url, data={**form, "newName": "stolen"})
        assert answer.status_code == 403
    await mob.get("/mob/logout")
    await mob.get("/mob/", auth=("root", PASSWORD))
    answer = await mob.post(url, data={"vmware-session-nonce": nonce, "newName": "stolen"})
    assert answer.status_code == 403, "the nonce of an older session"
    assert "stolen" not in (await mob.get(f"/mob/?moid={vm}")).text


async def test_what_is_not_there(mob: httpx.AsyncClient, vm: str) -> None:
    for query in ("?moid=vm-7", f"?moid={vm}&doPath=colour", f"?moid={vm}&doPath=name[", f"?moid={vm}&method=explode"):
        assert (await mob.get(f"/mob/{query}")).status_code == 404, query
    assert (await mob.get("/mob/elsewhere")).status_code == 404
    assert (await mob.post(f"/mob/?moid={vm}")).status_code == 400
    assert (await mob.put("/mob/")).status_code == 405


async def test_text_is_never_markup(mob: httpx.AsyncClient, vm: str) -> None:
    for query in ('?moid="><script>', "?find=<script>", f'?moid={vm}&doPath=<script>', f"?moid={vm}&method=<script>"):
        answer = await mob.get(f"/mob/{query}")
        assert "<script" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


async def test_objects_are_found_by_name(mob: httpx.AsyncClient, vm: str) -> None:
    assert f'href="?moid={vm}"' in (await mob.get("/mob/?find=WE")).text
    assert "0 objects" in (await mob.get("/mob/?find=nobody")).text


async def test_a_reader_sees_and_changes_nothing(client: httpx.AsyncClient, world: World, vm: str) -> None:
    await add_user(world, "reader", Role.READ_ONLY)
    assert (await client.get("/mob/", auth=("reader", PASSWORD))).status_code == 200
    url = f"/mob/?moid={vm}&method=rename"
    form = {"vmware-session-nonce": await nonce_of(client, url), "newName": "mine"}
    assert "NoPermission" in (await client.post(url, data=form)).text


async def test_every_example_is_taken_as_it_stands(world: World, vm: str) -> None:
    """Of every parameter of every method that this server has."""
    refused = []
    for mo in world.of_kind(Support.ManagedObject):
        for info in mo.wire._GetMethodList():
            if info.wsdlName in mo.operations:
                typed = {parameter.name: example(world, parameter) for parameter in info.params}
                try:
                    arguments(info, typed)
                except vmodl.MethodFault as fault:
                    refused.append(f"{info.wsdlName}: {fault.msg}")
    assert not refused
