"""The demo's last scene: the same clone once more, by a script for vSphere and by the form of the object browser.

    with opened(client) as door:                 # on a free port of this machine, for a user of its own
        run_script(door, source, name) -> ms     # pyVmomi, unmodified, in a process of its own
        fill_in_form(door, source, name) -> ms   # as a browser does it: sign in, read the nonce, post

Afterwards the port is closed again, unless it was open before, and the user is gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from ramet.cli.demo_guest import NAME_KEY
from ramet.errors import PeerError, RametError
from ramet.model.access import AddUser, Role, SetVsphere

if TYPE_CHECKING:
    import httpx

    from ramet.api.client import Client

USER = "ramet-demo"
LISTEN = "127.0.0.1:0"
CALL_S = 120.0

SCRIPT = f"""\
import os, ssl, sys, time
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim

source, name = sys.argv[1:]
trusted = ssl.create_default_context(cafile=os.environ["VSPHERE_CA"])
service = SmartConnect(host=os.environ["VSPHERE_HOST"], port=int(os.environ["VSPHERE_PORT"]),
                       user=os.environ["VSPHERE_USER"], pwd=os.environ["VSPHERE_PASSWORD"], sslContext=trusted)
vm = service.content.searchIndex.FindByInventoryPath("ramet/vm/" + source)
config = [vim.option.OptionValue(key="{NAME_KEY}", value=name)]
began = time.monotonic()
WaitForTask(vm.InstantClone_Task(vim.vm.InstantCloneSpec(name=name, location=vim.vm.RelocateSpec(), config=config)))
print((time.monotonic() - began) * 1000)
Disconnect(service)
"""
SHOWN = "WaitForTask(vm.InstantClone_Task(vim.vm.InstantCloneSpec("
SPEC = """<spec><name>{name}</name><location/>\
<config><key>{key}</key><value xsi:type="xsd:string">{name}</value></config></spec>"""

_NONCE = re.compile(r'name="vmware-session-nonce" type="hidden" value="([^"]+)"')
_VM, _TASK = re.compile(r"\?moid=(vm-\d+)"), re.compile(r"\?moid=(task-\d+)")
_STATE = re.compile(r"\b(queued|running|success|error)\b")


@dataclass(frozen=True)
class Door:
    host: str
    port: int
    ca_file: str
    password: str = field(repr=False)


def is_possible() -> bool:
    """Whether there is a pyVmomi to be run."""
    return importlib.util.find_spec("pyVmomi") is not None


@contextlib.contextmanager
def opened(client: Client) -> Iterator[Door]:
    before = client.vsphere()
    made = client.add_user(AddUser(name=USER, role=Role.OPERATOR))
    try:
        view = before if before.on else client.set_vsphere(SetVsphere(on=True, listen=LISTEN))
        try:
            where = re.fullmatch(r"https://(.+?):(\d+)/", view.url or "")
            if where is None or view.ca_file is None:
                raise PeerError(f"vSphere clients are not served: {view.problem or 'there is no authority of ours'}.")
            yield Door(where[1].strip("[]"), int(where[2]), view.ca_file, made.password or "")
        finally:
            if not before.on:
                client.set_vsphere(SetVsphere(on=False))
    finally:
        with contextlib.suppress(RametError):
            client.remove_user(USER)


def run_script(door: Door, source: str, name: str) -> float:
    """Milliseconds from InstantClone_Task until WaitForTask returned. PeerError with what the script said."""
    environment = {
        **os.environ,
        "VSPHERE_HOST": door.host,
        "VSPHERE_PORT": str(door.port),
        "VSPHERE_CA": door.ca_file,
        "VSPHERE_USER": USER,
        "VSPHERE_PASSWORD": door.password,
    }
    argv = [sys.executable, "-P", "-c", SCRIPT, source, name]
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CALL_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise PeerError(f"The pyVmomi script has not ended after {CALL_S:.0f} s.") from exc
    if done.returncode != 0:
        raise PeerError(f"The pyVmomi script failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return float(done.stdout)


def fill_in_form(door: Door, source: str, name: str) -> float:
    """Milliseconds from the post until the task's page says success. PeerError when it does not."""
    import httpx

    trusted = ssl.create_default_context(cafile=door.ca_file)
    host = f"[{door.host}]" if ":" in door.host else door.host
    try:
        with httpx.Client(base_url=f"https://{host}:{door.port}", verify=trusted, timeout=CALL_S) as browser:
            found = browser.get("/mob/", params={"find": source}, auth=(USER, door.password)).text
            page = f"/mob/?moid={_read(_VM, found)}&method=instantClone"
            nonce = _read(_NONCE, browser.get(page).text)
            spec = SPEC.format(name=escape(name), key=NAME_KEY)
            began = time.monotonic()
            answer = browser.post(page, data={"vmware-session-nonce": nonce, "spec": spec}).text
            task = _read(_TASK, answer)
            while (state := _state(browser, task)) in ("queued", "running"):
                if time.monotonic() - began > CALL_S:
                    break
            took_ms = (time.monotonic() - began) * 1000
            browser.get("/mob/logout")
    except httpx.HTTPError as exc:
        raise PeerError(f"The object browser did not answer: {exc}") from exc
    if state != "success":
        raise PeerError(f"The task that the form began is {state}.")
    return took_ms


def _state(browser: httpx.Client, task: str) -> str:
    """As the page of the task's information says it."""
    text = browser.get("/mob/", params={"moid": task, "doPath": "info"}).text
    return _read(_STATE, text[text.find(">state<") :])


def _read(pattern: re.Pattern[str], page: str) -> str:
    match = pattern.search(page)
    if match is None:
        raise PeerError(f"A page of the object browser has no {pattern.pattern!r}.")
    return match[1]
