"""An unmodified pyVmomi 9 against the endpoint on a loopback socket."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pyVim.connect import Disconnect
from pyVim.task import WaitForTask

from ramet.vsphere.types import vim, vmodl
from ramet.vsphere.wire.endpoint import make_app
from tests.unit.vsphere.soap_kit import (
    PC,
    FakeTask,
    FakeVm,
    client_of,
    connect,
    make_world,
    property_spec,
    serving,
    sessions_of,
    someone_waits,
    view_spec,
    vm,
)

# pyVmomi lets go of its socket when a login fails, and does not close it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


async def test_it_logs_in_reads_and_logs_out() -> None:
    world = make_world()
    async with client_of(world) as service:

        def look() -> tuple[Any, ...]:
            content = service.RetrieveContent()
            one: Any = vim.VirtualMachine("vm-1", service._stub)
            return (
                content.about.apiVersion,
                content.sessionManager.currentSession.userName,
                one.name,
                one.runtime.powerState,
                one.guest,
                one.datastore,
                one.parent.name,
                service.CurrentTime().tzinfo is not None,
                [child.name for child in content.rootFolder.childEntity[0].vmFolder.childEntity],
            )

        assert await asyncio.to_thread(look) == (
            "8.0.3.0",
            "ann",
            "guest 1",
            "poweredOff",
            None,
            [],
            "vm",
            True,
            ["guest 1", "guest 2", "guest 3"],
        )
        assert len(sessions_of(world).open) == 1
    assert not sessions_of(world).open


async def test_faults_are_its_own_exceptions() -> None:
    async with serving(make_app(make_world())) as port:
        with pytest.raises(vim.fault.InvalidLogin):
            await asyncio.to_thread(connect, port, "wrong")
        service = await asyncio.to_thread(connect, port)
        stub = service._stub

        def ask(moid: str) -> Any:
            return vim.VirtualMachine(moid, stub).name

        with pytest.raises(vmodl.fault.ManagedObjectNotFound) as caught:
            await asyncio.to_thread(ask, "vm-99")
        assert caught.value.obj == vim.VirtualMachine("vm-99")
        with pytest.raises(vmodl.fault.NotSupported) as unsupported:
            await asyncio.to_thread(vim.VirtualMachine("vm-1", stub).ResetVM_Task)
        assert "ResetVM_Task" in unsupported.value.msg
        await asyncio.to_thread(Disconnect, service)
        with pytest.raises(vim.fault.NotAuthenticated):
            await asyncio.to_thread(ask, "vm-1")


async def test_its_own_wait_for_a_task_ends_with_it() -> None:
    world = make_world()
    tasks = [FakeTask(world, "task-1"), FakeTask(world, "task-2")]
    for task in tasks:
        world.add(task)
    async with client_of(world) as service:
        waits = [
            asyncio.create_task(asyncio.to_thread(WaitForTask, vim.Task(one.moid, service._stub))) for one in tasks
        ]
        await someone_waits(world)
        tasks[0].set(progress=50)
        tasks[0].set(state="success", progress=100)
        assert await asyncio.wait_for(waits[0], 10) == "success"
        tasks[1].set(state="error", error=vim.fault.InvalidState(msg="no"))
        with pytest.raises(vim.fault.InvalidState):
            await asyncio.wait_for(waits[1], 10)


async def test_a_change_reaches_it_at_once_though_there_are_many_objects() -> None:
    world = make_world(2000)
    async with client_of(world) as service:
        content = await asyncio.to_thread(service.RetrieveContent)

        def begin() -> tuple[Any, Any]:
            view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
            spec = view_spec(view, property_spec(vim.VirtualMachine, "name", "runtime.powerState", "guest.ipAddress"))
            everything = content.propertyCollector.RetrievePropertiesEx([spec], PC.RetrieveOptions())
            assert len(everything.objects) == 2000
            content.propertyCollector.CreateFilter(spec, False)
            first = content.propertyCollector.WaitForUpdatesEx("", PC.WaitOptions(maxWaitSeconds=5))
            assert len(first.filterSet[0].objectSet) == 2000
            return content.propertyCollector, first

        collector, first = await asyncio.to_thread(begin)
        waiting = asyncio.create_task(asyncio.to_thread(collector.WaitForUpdatesEx, first.version, None))
        await someone_waits(world)
        vm(world, 1234).set_power("poweredOn")
        update = await asyncio.wait_for(waiting, 10)
        (change,) = update.filterSet[0].objectSet
        assert (change.obj._moId, change.changeSet[0].val) == ("vm-1234", "poweredOn")


@pytest.mark.slow
async def test_sixty_four_clients_at_once_each_follow_their_own() -> None:
    """Each connects, makes an object, waits for it, and disconnects: nobody hangs, nobody sees another's."""
    world = make_world(0)
    loop = asyncio.get_running_loop()
    started = threading.Barrier(64)

    def one(port: int, number: int) -> str:
        service = connect(port)
        started.wait(30)
        future = asyncio.run_coroutine_threadsafe(make(number), loop)
        task: Any = vim.Task(future.result(10), service._stub)
        assert WaitForTask(task) == "success"
        name = str(task.info.result.name)
        Disconnect(service)
        return name

    async def make(number: int) -> str:
        task = FakeTask(world, f"task-{number}")
        world.add(task)
        loop.call_later(0.05, finish, task, number)
        return task.moid

    def finish(task: FakeTask, number: int) -> None:
        made = FakeVm(world, f"vm-{number}", f"clone {number}")
        world.add(made)
        task.set(state="success", progress=100, result=made.ref)

    async with serving(make_app(world)) as port:
        with ThreadPoolExecutor(64) as threads:
            futures = [loop.run_in_executor(threads, one, port, number) for number in range(64)]
            async with asyncio.timeout(60):
                names = await asyncio.gather(*futures)
    assert sorted(names) == sorted(f"clone {number}" for number in range(64))
    assert not sessions_of(world).open
    assert not world.updates._watches
