"""Many clients at once; clients that die, sessions and servers that end: nobody hangs, no news are lost."""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim as client_vim

from ramet.host.service import Host
from ramet.model.access import AddUser, Role, SetVsphere
from ramet.vsphere import ids
from ramet.vsphere.access.sessions import Sessions
from ramet.vsphere.core.world import World
from ramet.vsphere.switch import Surface
from ramet.vsphere.types import vim, vmodl
from tests.vsphere.kit import record_vm, record_vms, until

pytestmark = [  # pyVmomi leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MANY = 64
PASSWORD = "correct horse"
LONGEST_S = 60.0


class Clients:
    """What blocks, in threads: as many as there are clients."""

    def __init__(self, host: Host, surface: Surface) -> None:
        self.host, self._surface = host, surface
        self.port = 0
        self.threads = ThreadPoolExecutor(MANY)

    async def open(self) -> None:
        view = await self.host.access.set_vsphere(SetVsphere(on=True, listen=f"127.0.0.1:{self.port}"))
        assert view.url is not None
        assert view.ca_file is not None
        self.port, self.ca_file = int(view.url.rstrip("/").rpartition(":")[2]), view.ca_file
        self.tls = ssl.create_default_context(cafile=view.ca_file)

    async def close(self) -> None:
        await self.host.access.set_vsphere(SetVsphere(on=False))

    @property
    def world(self) -> World:
        assert self._surface._world is not None
        return self._surface._world

    @property
    def sessions(self) -> Sessions:
        return self.world.part(Sessions)

    def end_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if so much time had passed that sessions in which no call runs expire."""
        later = time.time() + self.host.settings.session_idle_s
        with monkeypatch.context() as patch:
            patch.setattr(self.sessions, "_now", lambda: later)
            self.sessions.sweep()

    def connect(self) -> Any:
        return SmartConnect(host="127.0.0.1", port=self.port, user="root", pwd=PASSWORD, sslContext=self.tls)

    def start(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.wait_for(self.start(work, *arguments), LONGEST_S)

    async def are_waiting(self, count: int) -> bool:
        """Whether so many have a call that is not answered."""
        return sum(session.running for session in self.sessions.all()) == count


@pytest_asyncio.fixture
async def clients(host: Host) -> AsyncIterator[Clients]:
    surface = Surface(host)
    async with host.access.serving(surface):
        await host.access.add_user(AddUser(name="root", role=Role.ADMINISTRATOR, password=SecretStr(PASSWORD)))
        clients = Clients(host, surface)
        await clients.open()
        yield clients
        await clients.close()
        await asyncio.to_thread(clients.threads.shutdown)
    gc.collect()


def watch_names(si: Any) -> Any:
    """A filter on the names of all VMs; the collector is the session's own."""
    content = si.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    kinds = vmodl.query.PropertyCollector
    step = kinds.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    spec = kinds.FilterSpec(
        objectSet=[kinds.ObjectSpec(obj=view, skip=True, selectSet=[step])],
        propSet=[kinds.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    collector = content.propertyCollector
    collector.CreateFilter(spec, partialUpdates=False)
    return collector


def names_in(updates: Any) -> list[str]:
    return [
        change.val for one in updates.filterSet for news in one.objectSet for change in news.changeSet if change.val
    ]


def wait(collector: Any, version: str, seconds: int = 30) -> Any:
    return collector.WaitForUpdatesEx(version, vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=seconds))


async def test_each_of_many_clients_reads_and_leaves(clients: Clients) -> None:
    vms = await record_vms(clients.host, 20)

    def visit() -> set[str]:
        si = clients.connect()
        try:
            content = si.RetrieveContent()
            view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
            return {vm.name for vm in view.view}
        finally:
            Disconnect(si)

    told = await asyncio.wait_for(asyncio.gather(*(clients.start(visit) for _ in range(MANY))), LONGEST_S)
    assert all(names == {vm.name for vm in vms} for names in told)
    assert clients.host.access.vsphere().sessions == 0


async def test_many_wait_on_collectors_of_the_same_name_and_each_is_told_all(clients: Clients) -> None:
    """All use the well-known collector; what one is told is not taken from the others."""
    await record_vm(clients.host, "first")

    def follow() -> list[str]:
        si = clients.connect()
        try:
            collector = watch_names(si)
            seen, version = [], ""
            while "last" not in seen:
                updates = wait(collector, version)
                if updates is None:
                    break
                version = updates.version
                seen += names_in(updates)
                ready.append(1)
            return seen
        finally:
            Disconnect(si)

    ready: list[int] = []
    following = [clients.start(follow) for _ in range(16)]

    async def are_all_ready() -> bool:
        return len(ready) >= len(following)

    await until(are_all_ready)
    for name in ("second", "third", "last"):
        await record_vm(clients.host, name)
    for seen in await asyncio.wait_for(asyncio.gather(*following), LONGEST_S):
        assert sorted(seen) == ["first", "last", "second", "third"]


DYING = """
import ssl, sys
sys.path.insert(0, sys.argv[3])
from pyVim.connect import SmartConnect
from tests.vsphere.test_concurrency import PASSWORD, wait, watch_names
tls = ssl.create_default_context(cafile=sys.argv[2])
si = SmartConnect(host="127.0.0.1", port=int(sys.argv[1]), user="root", pwd=PASSWORD, sslContext=tls)
collector = watch_names(si)
version = wait(collector, "").version
print(version, flush=True)
wait(collector, version, 600)
"""


async def dying_client(clients: Clients) -> asyncio.subprocess.Process:
    """In a process of its own; it waits for updates, or will in a moment."""
    arguments = (str(clients.port), clients.ca_file, str(Path(__file__).parents[2]))
    dying = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", DYING, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert dying.stdout is not None
    assert await asyncio.wait_for(dying.stdout.readline(), LONGEST_S)
    return dying


async def test_a_client_that_dies_while_it_waits_takes_nothing_with_it(clients: Clients) -> None:
    await record_vm(clients.host, "first")
    dying = await dying_client(clients)
    living = await clients.run(clients.connect)
    collector = await clients.run(watch_names, living)
    version = (await clients.run(wait, collector, "")).version
    waiting = clients.start(wait, collector, version)
    await until(lambda: clients.are_waiting(2))
    dying.kill()
    await dying.wait()
    await until(lambda: clients.are_waiting(1))
    await record_vm(clients.host, "second")
    assert names_in(await asyncio.wait_for(waiting, LONGEST_S)) == ["second"]
    await clients.run(Disconnect, living)


async def test_a_client_that_dies_while_it_waits_leaves_nothing_behind(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session may be taken up by another connection, with all that is in it; then it expires."""
    await record_vm(clients.host, "first")
    tasks = asyncio.all_tasks()
    dying = await dying_client(clients)
    await until(lambda: clients.are_waiting(1))
    (session,) = clients.sessions.all()
    left = [weakref.ref(one) for one in (*session.objects.values(), *session.state.values())]
    assert len(left) == 3, "a view, a filter, and what the collector keeps"
    dying.kill()
    await dying.wait()

    async def is_quiet() -> bool:
        return asyncio.all_tasks() <= tasks and not clients.world.updates._watches

    await until(is_quiet)
    assert not session.is_over
    clients.end_idle(monkeypatch)
    assert session.is_over
    gc.collect()
    assert [one() for one in left] == [None] * 3


async def test_a_session_that_ends_while_a_task_runs(clients: Clients) -> None:
    """Who waits in it hears of it; the task goes on, and another session sees its end."""
    gate = asyncio.Event()

    async def work(progress: Any) -> None:
        await gate.wait()

    task = await clients.host.tasks.start("vm.start", "first", work)
    si = await clients.run(clients.connect)
    shown = vim.Task(ids.task_moid(task.id), si._stub)
    assert await clients.run(lambda: shown.info.state) == "running"
    waiting = clients.start(lambda: WaitForTask(shown, si=si))
    await until(lambda: clients.are_waiting(1))
    (session,) = clients.sessions.all()
    clients.sessions.end(session, "expired")
    with pytest.raises(client_vim.fault.NotAuthenticated):
        await asyncio.wait_for(waiting, LONGEST_S)
    gate.set()
    again = await clients.run(clients.connect)
    shown = vim.Task(ids.task_moid(task.id), again._stub)
    await clients.run(lambda: WaitForTask(shown, si=again))
    assert await clients.run(lambda: shown.info.state) == "success"
    await clients.run(Disconnect, again)


async def test_a_session_that_expires_while_its_task_runs(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it began goes on, and is still its user's: another session sees it through."""
    vm = await record_vm(clients.host, "golden")
    si = await clients.run(clients.connect)

    def begin() -> tuple[str, str]:
        content = si.RetrieveContent()
        golden, folder = vim.VirtualMachine(ids.vm_moid(vm.id), si._stub), content.rootFolder.childEntity[0].vmFolder
        own = content.taskManager.CreateTask(golden, "com.example.backup", None, False).task
        spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False, template=False)
        return own._moId, golden.CloneVM_Task(folder=folder, name="copy", spec=spec)._moId

    begun = await clients.run(begin)
    clients.end_idle(monkeypatch)
    assert clients.sessions.all() == []
    again = await clients.run(clients.connect)

    def see_through() -> None:
        own, copying = (vim.Task(moid, again._stub) for moid in begun)
        WaitForTask(copying, si=again)
        assert (own.info.state, own.info.reason.userName) == ("running", "root")
        own.SetTaskState("success")
        WaitForTask(own, si=again)
        Disconnect(again)

    await clients.run(see_through)
    assert sorted(live.name for live in clients.host.floor.shown()) == ["copy", "golden"]


async def test_clients_that_wait_are_let_go_when_the_surface_ends_and_miss_nothing_after(clients: Clients) -> None:
    await record_vm(clients.host, "first")

    def follow() -> None:
        collector = watch_names(clients.connect())
        wait(collector, wait(collector, "").version, 600)

    following = [clients.start(follow) for _ in range(16)]
    await until(lambda: clients.are_waiting(16))
    await clients.close()
    for ended in await asyncio.wait_for(asyncio.gather(*following, return_exceptions=True), LONGEST_S):
        assert isinstance(ended, Exception)
    await record_vm(clients.host, "second")
    await clients.open()
    si = await clients.run(clients.connect)
    collector = await clients.run(watch_names, si)
    assert sorted(names_in(await clients.run(wait, collector, ""))) == ["first", "second"]
    await clients.run(Disconnect, si)
