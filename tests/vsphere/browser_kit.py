"""Debian's Chromium, headless, driven by WebDriver's own protocol: plain JSON over HTTP, so that no library is needed.

    async with browser(folder) as page:
        await page.go("https://root:secret@127.0.0.1:8443/mob/")
        await page.follow("link text", "web")
"""

from __future__ import annotations

import asyncio
import base64
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.vsphere.kit import until

START_S = 60.0
STEP_S = 60.0
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root, and see pages of this machine only
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1280,1100",
)
_PORT = re.compile(r"started successfully on port (\d+)")


@dataclass
class Page:
    client: httpx.AsyncClient
    session: str

    async def do(self, verb: str, path: str, **body: Any) -> Any:
        text = body if verb == "POST" else None
        answer = await self.client.request(verb, f"/session/{self.session}{path}", json=text)
        value = answer.json()["value"]
        assert answer.is_success, value
        return value

    async def go(self, url: str) -> None:
        await self.do("POST", "/url", url=url)

    async def reload(self) -> None:
        await self.do("POST", "/refresh")

    async def find(self, how: str, what: str) -> str:
        """An element's handle; fails when there is none."""
        found = await self.do("POST", "/element", using=how, value=what)
        return str(next(iter(found.values())))

    async def follow(self, how: str, what: str) -> None:
        """Clicks on a link or a button that leads to a page, and waits until that page is there.

        A click may end before the browser has begun to load what it leads to: a form is sent by a task of its own,
        which WebDriver's click does not wait for (5 of 300 with Chromium 156 on a loaded machine). So the page that is
        left gets a mark, which the next cannot have.
        """
        await self.run("window.left = true")
        await self.do("POST", f"/element/{await self.find(how, what)}/click")
        await until(self._is_next)

    async def _is_next(self) -> bool:
        return bool(await self.run("return !window.left && document.readyState === 'complete'"))

    async def text(self, css: str) -> str:
        """What can be seen of it; in one step, for the page may be loaded anew between two."""
        script = "const found = document.querySelector(arguments[0]); return found ? found.innerText.trim() : null"
        said = await self.do("POST", "/execute/sync", script=script, args=[css])
        assert said is not None, f"{css} is not on the page"
        return str(said)

    async def write(self, css: str, text: str) -> None:
        element = await self.find("css selector", css)
        await self.do("POST", f"/element/{element}/clear")
        await self.do("POST", f"/element/{element}/value", text=text)

    async def run(self, script: str) -> Any:
        return await self.do("POST", "/execute/sync", script=script, args=[])

    async def screenshot(self, path: Path) -> None:
        data = base64.b64decode(await self.do("GET", "/screenshot"))
        await asyncio.to_thread(path.write_bytes, data)


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A browser of its own, whose profile and log are in the folder; ended with the block, its children too."""
    with (folder / "chromedriver.log").open("wb") as log:
        driver = await asyncio.create_subprocess_exec("chromedriver", "--port=0", stdout=log, stderr=log)
    try:
        port = await _port(folder / "chromedriver.log")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=STEP_S, trust_env=False) as client:
            session = await _begin(client, folder)
            try:
                yield Page(client, session)
            finally:
                await client.delete(f"/session/{session}")
    finally:
        driver.send_signal(signal.SIGTERM)
        await driver.wait()


async def _port(log: Path) -> int:
    for _ in range(int(START_S / 0.05)):
        match = _PORT.search(await asyncio.to_thread(log.read_text))
        if match is not None:
            return int(match[1])
        await asyncio.sleep(0.05)
    raise AssertionError("chromedriver does not start")


async def _begin(client: httpx.AsyncClient, folder: Path) -> str:
    options = {"args": [*_OPTIONS, f"--user-data-dir={folder / 'profile'}"]}
    wanted = {"alwaysMatch": {"acceptInsecureCerts": True, "goog:chromeOptions": options}}
    answer = await client.post("/session", json={"capabilities": wanted})
    value = answer.json()["value"]
    assert answer.is_success, value
    return str(value["sessionId"])
