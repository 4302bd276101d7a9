"""The Managed Object Browser in a real browser: log in, find a VM, clone it, follow the task, open the clone.

And the same guest once more, cloned over the automation API: booted guests are dear.
"""

from __future__ import annotations

import shutil
import ssl
import tempfile
from pathlib import Path

import httpx
import pytest

from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.host.settings import load
from ramet.model.access import AddUser, Role, SetVsphere
from ramet.model.requests import BuildImage, CreateVm, NicRequest
from ramet.vsphere.switch import served
from tests.guest.leaks import left_behind
from tests.vsphere.browser_kit import Page, browser
from tests.vsphere.kit import until

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs chromium and chromium-driver"),
]

WHO = "root:correct%20horse"


async def test_a_person_clones_a_vm(tmp_path: Path) -> None:
    state = Path(tempfile.mkdtemp(prefix="rv-", dir="/tmp"))
    state.chmod(0o755)
    try:
        async with Host.open(load({"state_dir": state}, env={})) as host, served(host):
            try:
                url = await _prepare(host)
                async with browser(tmp_path) as page:
                    await page.go(url.replace("https://", f"https://{WHO}@") + "/mob/")
                    await _clone(page)
                    await _look_around(page)
                await _clone_by_rest(url, str(host.access.vsphere().ca_file))
            finally:
                await host.stop_all_vms()
        assert not left_behind(state)
    finally:
        shutil.rmtree(state, ignore_errors=True)


async def _prepare(host: Host) -> str:
    """A running source, and the surface open; returns its address."""
    await finish(host, await host.build_image(BuildImage(recipe="micro")))
    request = CreateVm(name="source", image="micro", memory_mib=128, nics=(NicRequest(),), start=True)
    await finish(host, await host.create_vm(request))
    user = AddUser.model_validate({"name": "root", "role": Role.ADMINISTRATOR, "password": "correct horse"})
    await host.access.add_user(user)
    view = await host.access.set_vsphere(SetVsphere(on=True, listen="127.0.0.1:0"))
    assert view.url is not None
    return view.url.rstrip("/")


async def _clone(page: Page) -> None:
    assert await page.text("h1") == "ServiceInstance"
    await page.write("input[name=find]", "source")
    await page.follow("css selector", "header button")
    await page.follow("link text", "source")
    assert "poweredOn" in await page.text(".sub")
    await page.follow("link text", "instantClone")
    assert "<name>kid</name>" in await page.run("return document.querySelector('textarea').value")
    await page.follow("css selector", "button.go")
    assert "Method Invocation Result" in await page.text(".note")
    await page.follow("css selector", ".note a")

    async def is_done() -> bool:
        """The page renews itself; it is only looked at, in one piece."""
        return await page.run("return document.querySelector('.note .badge')?.textContent") in ("success", "error")

    await until(is_done)
    assert await page.text(".note .badge") == "success", await page.text(".note")
    await page.follow("css selector", ".note p:last-of-type a")
    assert await page.text("h1") == "kid"
    assert "poweredOn" in await page.text(".sub")


async def _clone_by_rest(url: str, ca_file: str) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    async with httpx.AsyncClient(base_url=url, verify=context, timeout=120, trust_env=False) as client:
        secret = (await client.post("/api/session", auth=("root", "correct horse"))).json()
        client.headers["vmware-api-session-id"] = secret
        (source,) = (await client.get("/api/vcenter/vm?names=source")).json()
        spec = {"source": source["vm"], "name": "rest", "disconnect_all_nics": True}
        answer = await client.post("/api/vcenter/vm?action=instant-clone", json=spec)
        assert answer.status_code == 200, answer.text
        info = (await client.get(f"/api/vcenter/vm/{answer.json()}")).json()
        assert (info["name"], info["power_state"]) == ("rest", "POWERED_ON")
        assert info["nics"]["4000"]["state"] == "NOT_CONNECTED"
        again = await client.post("/rest/vcenter/vm?action=instant-clone", json={"spec": spec})
        assert again.json()["type"] == "com.vmware.vapi.std.errors.already_exists"


async def _look_around(page: Page) -> None:
    """What a person with a keyboard, or without colours or a wide screen, has of it."""
    await page.follow("link text", "reconfigure")
    await page.write("textarea", "<spec><colour>red</colour></spec>")
    await page.follow("css selector", "button.go")
    assert "spec.colour" in await page.text(".note.bad")
    unnamed = "return [...document.querySelectorAll('input:not([type=hidden]),textarea,select')]"
    unnamed += ".filter(one => !one.labels.length && !one.ariaLabel).length"
    assert await page.run(unnamed) == 0
    assert await page.run("return document.documentElement.lang") == "en"
    wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert await page.run(wide) is False
    assert await page.run("return document.styleSheets.length === 1 && document.scripts.length === 0")
