"""The daemon is killed and started again while clients wait: nobody hangs, and whoever comes back sees what is."""

from __future__ import annotations

import base64
import gc
import http.client
import json
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from pyVim.connect import SmartConnect
from pyVim.task import WaitForTask

from ramet.api import Client
from ramet.machine.steps import SETTLE_STEPS
from ramet.model.requests import CreateVm, DiskRequest, NicRequest
from ramet.vsphere import ids
from ramet.vsphere.types import vim, vmodl
from tests.guest.daemon_kit import finish, inventory_is_true, until
from tests.vsphere.client_kit import PASSWORD, USER, Served, served
from tests.vsphere.test_concurrency import names_in, wait, watch_names

pytestmark = [  # pyVmomi leaves sockets to the garbage collector
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LONGEST_S = 30.0
"""Far less than any of them would wait for an answer."""
CUT = (OSError, http.client.HTTPException)


@pytest.fixture
def server() -> Iterator[Served]:
    with served("rk-") as server:
        yield server
    gc.collect()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Rest:
    """The automation API, as a script without a library uses it."""

    def __init__(self, server: Served) -> None:
        self._tls = ssl.create_default_context(cafile=str(server.ca_file))
        self._port = server.port
        self.session = ""

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._tls, timeout=120)
        try:
            connection.request(method, path, headers={"vmware-api-session-id": self.session, **headers})
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body) if body else None
        finally:
            connection.close()

    def log_in(self) -> None:
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        status, self.session = self.ask("POST", "/api/session", Authorization=f"Basic {basic}")
        assert status == 201


def connect(server: Served) -> Any:
    tls = ssl.create_default_context(cafile=str(server.ca_file))
    return SmartConnect(host="127.0.0.1", port=server.port, user=USER, pwd=PASSWORD, sslContext=tls)


def make_vm(client: Client, name: str) -> None:
    """Off, and acknowledged."""
    finish(client, client.create_vm(CreateVm(name=name, nics=(), disks=(DiskRequest(size_mib=16),))))


def begin_task(si: Any) -> Any:
    """One whose end is the client's to say."""
    manager, obj = si.content.taskManager, si.content.rootFolder
    return manager.CreateTask(obj=obj, taskTypeId="com.example.backup", initiatedBy=None, cancelable=False).task


def calls_of(si: Any) -> int:
    return int(si.content.sessionManager.currentSession.callCount)


def until_waiting(observer: Any, key: str, calls: int) -> None:
    """The session has so many calls; what is asked last is then under way."""
    deadline = time.monotonic() + LONGEST_S
    while not any(one.key == key and one.callCount >= calls for one in observer.content.sessionManager.sessionList):
        assert time.monotonic() < deadline, "it does not wait"
        time.sleep(0.01)


def ended_by(waiting: Future[Any]) -> BaseException:
    """What whoever waited was told."""
    raised = waiting.exception(LONGEST_S)
    assert raised is not None
    return raised


def session_key(si: Any) -> str:
    return str(si.content.sessionManager.currentSession.key)


def follow(collector: Any, version: str, seen: list[str]) -> None:
    """Until an error."""
    while True:
        told = wait(collector, version, 600)
        version = told.version
        seen += names_in(told)


def test_whoever_waits_when_the_daemon_is_killed_is_told_and_finds_everything_again(
    server: Served, threads: ThreadPoolExecutor
) -> None:
    for name in ("first", "second"):
        make_vm(server.client, name)
    server.daemon.stop()
    client = server.daemon.start(kill_at="remove.forgotten")
    observer, watching, tasking = (connect(server) for _ in range(3))
    rest = Rest(server)
    rest.log_in()

    collector, seen = watch_names(watching), list[str]()
    told = wait(collector, "")
    assert sorted(names_in(told)) == ["first", "second"]
    task = begin_task(tasking)
    before = [(session_key(si), calls_of(si)) for si in (watching, tasking)]
    waiting = threads.submit(follow, collector, told.version, seen)
    tracking = threads.submit(WaitForTask, task, si=tasking)
    until_waiting(observer, before[0][0], before[0][1] + 1)
    until_waiting(observer, before[1][0], before[1][1] + 4)  # the collector, a filter, what is so far, what comes
    doomed = ids.vm_moid(client.show_vm("second").id)
    make_vm(client, "third")  # acknowledged: it is told, now or later
    deleting = threads.submit(rest.ask, "DELETE", f"/api/vcenter/vm/{doomed}")  # where the daemon dies
    for one in (waiting, tracking, deleting):
        assert isinstance(ended_by(one), CUT)
    assert seen in ([], ["third"])
    server.daemon.wait_killed()
    with pytest.raises(ConnectionRefusedError):
        connect(server)

    client = server.daemon.start()
    for si in (observer, watching, tasking):
        si._stub.DropConnections()  # they are dead
    for call in (
        lambda: wait(collector, told.version, 600),
        lambda: WaitForTask(task, si=tasking),
        lambda: observer.content.viewManager.CreateListView(),
    ):
        assert isinstance(ended_by(threads.submit(call)), vim.fault.NotAuthenticated)
    assert threads.submit(rest.ask, "GET", "/api/vcenter/vm").result(LONGEST_S)[0] == 401

    again = connect(server)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vmodl.query.PropertyCollector.Filter("filter-1", again._stub).Destroy()
    lost = threads.submit(WaitForTask, vim.Task(task._moId, again._stub), si=again)
    assert "The daemon was restarted" in getattr(ended_by(lost), "msg", "")
    collector = watch_names(again)
    told = wait(collector, "")
    assert sorted(names_in(told)) == sorted(vm.name for vm in client.list_vms()) == ["first", "third"]
    waiting = threads.submit(wait, collector, told.version, 600)
    make_vm(client, "fourth")
    assert names_in(waiting.result(LONGEST_S)) == ["fourth"]
    rest.log_in()
    status, listed = rest.ask("GET", "/api/vcenter/vm")
    assert (status, [vm["name"] for vm in listed]) == (200, ["first", "fourth", "third"])
    assert rest.ask("GET", f"/api/vcenter/vm/{doomed}")[0] == 404
    for si in (again, observer, watching, tasking):
        si._stub.DropConnections()


def copy_spec(card: Any) -> Any:
    """Without its source's card, and with a name for its guest."""
    removed = vim.vm.device.VirtualDeviceSpec(operation="remove", device=card)
    kinds = vim.vm.customization
    identity = kinds.LinuxPrep(hostName=kinds.FixedName(name="db-1"), domain="example.org")
    return vim.vm.CloneSpec(
        location=vim.vm.RelocateSpec(), powerOn=False, template=False, config=vim.vm.ConfigSpec(deviceChange=[removed]),
        customization=kinds.Specification(identity=identity, globalIPSettings=kinds.GlobalIPSettings()),
    )  # fmt: skip


def begun_customizations(si: Any) -> list[str]:
    """Of whom: what their guests were to be told was kept."""
    wanted = vim.event.EventFilterSpec(eventTypeId=["CustomizationStartedEvent"])
    return [event.vm.name for event in si.content.eventManager.QueryEvents(wanted)]


@pytest.mark.parametrize("step", SETTLE_STEPS)
def test_a_copy_whose_shaping_a_crash_cuts_off_is_whole_or_gone(server: Served, step: str) -> None:
    request = CreateVm(name="golden", nics=(NicRequest(network=None),), disks=(DiskRequest(size_mib=16),))
    finish(server.client, server.client.create_vm(request))
    server.daemon.stop()
    client = server.daemon.start(kill_at=step)
    si = connect(server)
    golden = si.content.searchIndex.FindByInventoryPath("ramet/vm/golden")
    (card,) = (one for one in golden.config.hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard))
    with pytest.raises(CUT):
        WaitForTask(golden.CloneVM_Task(golden.parent, "copy", copy_spec(card)), si=si)
    server.daemon.wait_killed()
    si._stub.DropConnections()

    client = server.daemon.start()
    inventory_is_true(client, server.daemon, {"golden", "copy"})
    left = {vm.name: vm for vm in client.list_vms()}
    with server.connected() as si:
        if step == "copy.settled":
            copied = left.pop("copy")
            assert not copied.nics
            WaitForTask(vim.VirtualMachine(ids.vm_moid(copied.id), si._stub).PowerOnVM_Task())
            until(lambda: begun_customizations(si) == ["copy"])
    assert list(left) == ["golden"]
    with server.connected() as si:
        golden = si.content.searchIndex.FindByInventoryPath("ramet/vm/golden")
        WaitForTask(golden.CloneVM_Task(golden.parent, "another", copy_spec(card)), si=si)
    server.daemon.stop()
    client = server.daemon.start()
    assert "another" in {vm.name for vm in client.list_vms()}
