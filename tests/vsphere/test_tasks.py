"""Tasks as clients follow them: their words, their ends whatever happens, their history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import CapacityError
from ramet.host.service import Host
from ramet.host.settings import load
from ramet.host.tasks import TaskHandle
from ramet.model.host import TaskState
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.opening import open_world
from ramet.vsphere.tasks.desk import Tasks
from ramet.vsphere.types import vim, vmodl
from tests.vsphere.kit import TestSession, record_vm, root_call, seen, until

WAIT_S = 10.0


async def ended(world: World, reference: Any) -> Any:
    """Its info, once it has an end: found as a client does that waits for changes."""
    async with asyncio.timeout(WAIT_S):
        while True:
            stamp = world.updates.stamp
            info = await read_now(world.find(reference._moId), "info")
            if info.state in ("success", "error"):
                return info
            await world.updates.wait(stamp, WAIT_S)


def one_of(world: World, moid: str = ids.DATACENTER) -> Any:
    return world.find(moid)


async def begin(world: World, work: Callable[[TaskHandle], Any], **more: Any) -> Any:
    call = more.pop("call", None) or root_call()
    entity = more.pop("entity", None) or one_of(world)
    return await world.part(Tasks).run_work(call, more.pop("name", "Destroy_Task"), entity, work, **more)


async def test_a_task_says_what_it_does_for_whom_and_how_it_ended(host: Host, world: World) -> None:
    vm = await seen(world, await record_vm(host, "web"))
    go = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        handle.progress(40.0, "copying")
        await go.wait()

    async def result(_: Any) -> Any:
        return vm.ref

    reference = await begin(world, work, entity=vm, name="CloneVM_Task", result=result, cancellable=True)
    mo = world.find(reference._moId)
    while await read_now(mo, "info.progress") != 40:
        await world.updates.wait(world.updates.stamp, 1.0)
    info = await read_now(mo, "info")
    assert (info.state, info.name.info.wsdlName, info.descriptionId) == (
        "running",
        "CloneVM_Task",
        "VirtualMachine.clone",
    )
    assert (info.entity._moId, info.entityName, info.reason.userName) == (vm.moid, "web", "root")
    assert (info.description.message, info.cancelable, info.completeTime) == ("copying", True, None)
    assert await read_now(vm, "recentTask") == [reference]
    go.set()
    info = await ended(world, reference)
    assert (info.state, info.progress, info.result._moId, info.error) == ("success", 100, vm.moid, None)
    assert info.queueTime <= info.startTime <= info.completeTime


async def test_progress_is_told_now_and_then_and_an_end_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits asks for all of the task again at every change, and would hear of its end that much later."""
    monkeypatch.setattr("ramet.vsphere.tasks.desk.PROGRESS_S", 3600.0)
    stepped, go = asyncio.Event(), asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        for percent in range(1, 100):
            handle.progress(percent)
            await asyncio.sleep(0)
        stepped.set()
        await go.wait()

    reference = await begin(world, work)
    told: list[str] = []

    def note(moid: str, *_: Any) -> bool:
        told.append(moid)
        return False

    with world.updates.watch(note):
        await stepped.wait()
        assert told.count(reference._moId) == 0
        go.set()
        assert (await ended(world, reference)).state == "success"
        assert told.count(reference._moId) <= 2


async def test_progress_is_told(world: World) -> None:
    go = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        await go.wait()
        handle.progress(40.0)
        await asyncio.Event().wait()

    reference = await begin(world, work, cancellable=True)
    with world.updates.watch(lambda moid, *_: moid == reference._moId) as news:
        news.clear()
        go.set()
        async with asyncio.timeout(WAIT_S):
            while await read_now(world.find(reference._moId), "info.progress") != 40:
                await news.wait()
    await world.host.tasks.cancel(ids.task_id(reference._moId) or "")


async def test_the_result_belongs_to_the_task(world: World) -> None:
    """It is no success before what follows the work is done; what fails there is the task's failure."""
    go = asyncio.Event()

    async def work(_: TaskHandle) -> None:
        pass

    async def late(_: Any) -> int:
        await go.wait()
        return 7

    async def wrong(_: Any) -> int:
        raise CapacityError("The disk is full.")

    slow, failing = await begin(world, work, result=late), await begin(world, work, result=wrong)
    info = await ended(world, failing)
    assert (info.state, info.error.msg) == ("error", "The disk is full.")
    assert await read_now(world.find(slow._moId), "info.state") == "running"
    go.set()
    assert (await ended(world, slow)).result == 7


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (CapacityError("No room."), vim.fault.InsufficientResourcesFault, "No room."),
        (
            vim.fault.DuplicateName(name="a", object=vim.Folder("group-v3"), msg="Taken."),
            vim.fault.DuplicateName,
            "Taken.",
        ),
        (ZeroDivisionError("secret"), vmodl.fault.SystemError, None),
    ],
)
async def test_every_failure_has_a_fault(world: World, raised: Exception, kind: Any, said: str | None) -> None:
    async def work(_: TaskHandle) -> None:
        raise raised

    info = await ended(world, await begin(world, work))
    assert (info.state, info.cancelled) == ("error", False)
    assert isinstance(info.error, kind)
    assert said is None or info.error.msg == said
    assert "secret" not in info.error.msg
    assert await read_now(world.find(info.task._moId), "info.error") is not None


async def test_a_task_is_cancelled_by_who_may(world: World) -> None:
    began = asyncio.Event()

    async def work(_: TaskHandle) -> None:
        began.set()
        await asyncio.Event().wait()

    class Guest(TestSession):
        user_name = "guest"

        def may(self, privilege: str) -> bool:
            return privilege != "Global.CancelTask"

    reference = await begin(world, work, cancellable=True)
    stuck = await begin(world, work)
    await began.wait()
    with pytest.raises(vim.fault.NoPermission):
        await invoke(world, Call(Guest(user_name="guest")), reference._moId, "CancelTask", {})
    with pytest.raises(vmodl.fault.NotSupported):
        await invoke(world, root_call(), stuck._moId, "CancelTask", {})
    await invoke(world, root_call(), reference._moId, "CancelTask", {})
    info = await ended(world, reference)
    assert (info.state, info.cancelled) == ("error", True)
    assert isinstance(info.error, vmodl.fault.RequestCanceled)
    with pytest.raises(vim.fault.InvalidState):
        await invoke(world, root_call(), reference._moId, "CancelTask", {})


async def test_tasks_outlive_the_daemon(state_dir: Path) -> None:
    """One that ran has an end then; one that had ended is what it was, its result too."""
    settings = load({"state_dir": state_dir}, env={})
    async with Host.open(settings) as host, open_world(host) as world:
        vm = await seen(world, await record_vm(host, "kept"))

        async def work(_: TaskHandle) -> None:
            pass

        async def result(_: Any) -> Any:
            return vm.ref

        done = await begin(world, work, entity=vm, name="MarkAsTemplate", result=result)
        await ended(world, done)

        async def is_written() -> bool:
            return await world.store.get(f"vsphere-task/{ids.task_id(done._moId)}") is not None

        await until(is_written)
        running = await begin(world, lambda _: asyncio.Event().wait(), name="ReconfigVM_Task", entity=vm)
    async with Host.open(settings) as host, open_world(host) as world:
        before = await read_now(world.find(done._moId), "info")
        assert (before.state, before.name.info.wsdlName, before.reason.userName) == (
            "success",
            "MarkAsTemplate",
            "root",
        )
        assert before.result._moId == vm.moid
        cut = await read_now(world.find(running._moId), "info")
        assert (cut.state, cut.name.info.wsdlName) == ("error", "ReconfigVM_Task")


async def test_a_task_of_the_command_line_is_shown_too(host: Host, world: World) -> None:
    vm = await seen(world, await record_vm(host, "plain"))
    task = await host.remove_vm("plain")
    info = await ended(world, vim.Task(ids.task_moid(task.id)))
    assert (info.name.info.wsdlName, info.entity._moId, info.state) == ("Destroy_Task", vm.moid, "success")
    assert isinstance(info.reason, vim.TaskReasonSystem)
    manager = world.find(ids.TASK_MANAGER)
    assert ids.task_moid(task.id) in {one._moId for one in await read_now(manager, "recentTask")}


async def test_the_oldest_tasks_go_with_what_was_remembered(world: World) -> None:
    tasks = world.host.tasks

    async def work(_: TaskHandle) -> None:
        pass

    tasks._history = 3
    references = []
    for _ in range(6):
        references.append(await begin(world, work))
        await ended(world, references[-1])
    async with asyncio.timeout(WAIT_S):
        while any(world.get(one._moId) for one in references[:3]):
            await world.updates.wait(world.updates.stamp, 0.5)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        world.find(references[0]._moId)

    async def is_tidy() -> bool:
        return len(await world.store.list("vsphere-task/")) <= 3

    await until(is_tidy)
    assert [task.state for task in tasks.list()] == [TaskState.SUCCESS] * 3


# -- collectors --------------------------------------------------------------------------------------------------------


async def collector(world: World, call: Call, **spec: Any) -> str:
    arguments = {"filter": vim.TaskFilterSpec(**spec)}
    reference = await invoke(world, call, ids.TASK_MANAGER, "CreateCollectorForTasks", arguments)
    return str(reference._moId)


async def test_a_collector_pages_both_ways_and_misses_nothing(world: World, call: Call) -> None:
    async def work(_: TaskHandle) -> None:
        pass

    made = [(await begin(world, work))._moId for _ in range(5)]
    moid = await collector(world, call)

    async def read(name: str, count: int) -> list[str]:
        return [info.key for info in await invoke(world, call, moid, name, {"maxCount": count})]

    assert await read("ReadPreviousTasks", 10) == []
    assert await read("ReadNextTasks", 2) == made[:2]
    assert await read("ReadNextTasks", 10) == made[2:]
    assert await read("ReadNextTasks", 10) == []
    late = (await begin(world, work))._moId
    assert await read("ReadNextTasks", 10) == [late]
    await invoke(world, call, moid, "ResetCollector", {})
    assert await read("ReadPreviousTasks", 4) == [late, *reversed(made[2:])]
    assert await read("ReadPreviousTasks", 10) == [made[1], made[0]]
    assert await read("ReadPreviousTasks", 10) == []
    await invoke(world, call, moid, "RewindCollector", {})
    assert await read("ReadNextTasks", 1) == made[:1]
    await invoke(world, call, moid, "SetCollectorPageSize", {"maxCount": 2})
    latest = await read_now(world.find(moid, call), "latestPage")
    assert [info.key for info in latest] == [late, made[4]]
    for wrong in (0, -1, 10_000):
        with pytest.raises(vmodl.fault.InvalidArgument):
            await read("ReadNextTasks", wrong)
    await invoke(world, call, moid, "DestroyCollector", {})
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        await read("ReadNextTasks", 1)


async def test_filters_keep_what_fits(host: Host, world: World, call: Call) -> None:
    vm = await seen(world, await record_vm(host, "web"))
    other = await seen(world, await record_vm(host, "db"))

    async def work(_: TaskHandle) -> None:
        pass

    async def fail(_: TaskHandle) -> None:
        raise CapacityError("No room.")

    mine = await begin(world, work, entity=vm)
    theirs = await begin(world, fail, entity=other, call=Call(TestSession(user_name="eve")))
    for one in (mine, theirs):
        await ended(world, one)
    kinds = vim.TaskFilterSpec

    async def keys(**spec: Any) -> list[str]:
        moid = await collector(world, call, **spec)
        found = [info.key for info in await invoke(world, call, moid, "ReadNextTasks", {"maxCount": 100})]
        await invoke(world, call, moid, "DestroyCollector", {})
        return found

    def about(moid: Any, recursion: str) -> Any:
        return kinds.ByEntity(entity=moid, recursion=recursion)

    both = [mine._moId, theirs._moId]
    assert await keys() == both
    assert await keys(entity=about(vm.ref, "self")) == both[:1]
    assert await keys(entity=about(vim.Folder(ids.VM_FOLDER), "children")) == both
    assert await keys(entity=about(vim.Folder(ids.ROOT_FOLDER), "children")) == []
    assert await keys(entity=about(vim.Folder(ids.ROOT_FOLDER), "all")) == both
    assert await keys(state=["error"]) == both[1:]
    assert await keys(userName=kinds.ByUsername(systemUser=False, userList=["eve"])) == both[1:]
    assert await keys(eventChainId=[(await ended(world, mine)).eventChainId]) == both[:1]
    later = (await ended(world, theirs)).queueTime
    assert await keys(time=kinds.ByTime(timeType="queuedTime", beginTime=later)) == both[1:]
    assert await keys(tag=["x"]) == []


async def test_collectors_of_a_session_are_bounded(world: World, call: Call) -> None:
    most = await read_now(world.find(ids.TASK_MANAGER), "maxCollector")
    for _ in range(most):
        await collector(world, call)
    with pytest.raises(vim.fault.InvalidState):
        await collector(world, call)


# -- tasks of clients --------------------------------------------------------------------------------------------------


async def created(world: World, call: Call, **more: Any) -> Any:
    arguments = {"obj": vim.Datacenter(ids.DATACENTER), "taskTypeId": "com.example.backup", "cancelable": True, **more}
    return await invoke(world, call, ids.TASK_MANAGER, "CreateTask", arguments)


async def test_a_client_says_how_its_own_task_goes(world: World, call: Call) -> None:
    info = await created(world, call)
    assert (info.descriptionId, info.name, info.state, info.cancelable) == ("com.example.backup", None, "running", True)
    moid = info.task._moId
    await asyncio.sleep(0)
    await invoke(world, call, moid, "UpdateProgress", {"percentDone": 30})
    message = vmodl.LocalizableMessage(key="k", message="copying")
    await invoke(world, call, moid, "SetTaskDescription", {"description": message})
    info = await read_now(world.find(moid), "info")
    assert (info.progress, info.description.message) == (30, "copying")
    with pytest.raises(vmodl.fault.InvalidArgument):
        await invoke(world, call, moid, "UpdateProgress", {"percentDone": 101})
    await invoke(world, call, moid, "SetTaskState", {"state": "success", "result": "42 files"})
    assert (await ended(world, info.task)).result == "42 files"
    with pytest.raises(vim.fault.InvalidState):
        await invoke(world, call, moid, "UpdateProgress", {"percentDone": 99})


async def test_a_client_task_fails_or_is_cancelled_as_any_other(world: World, call: Call) -> None:
    failing, cancelled = await created(world, call), await created(world, call)
    fault = vim.fault.FileFault(file="a", msg="The file is gone.")
    await invoke(world, call, failing.task._moId, "SetTaskState", {"state": "error", "fault": fault})
    info = await ended(world, failing.task)
    assert (type(info.error), info.error.msg) == (vim.fault.FileFault, "The file is gone.")
    await invoke(world, call, cancelled.task._moId, "CancelTask", {})
    assert (await ended(world, cancelled.task)).cancelled
    with pytest.raises(vmodl.fault.InvalidArgument):
        await created(world, call, taskTypeId="")


async def test_nobody_speaks_for_the_servers_own_tasks(world: World, call: Call) -> None:
    reference = await begin(world, lambda _: asyncio.Event().wait())
    with pytest.raises(vim.fault.InvalidState):
        await invoke(world, call, reference._moId, "SetTaskState", {"state": "success"})
