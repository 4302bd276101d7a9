"""Folders, host, pool and datastore: what they say, and what they keep."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ramet.host.service import Host
from ramet.host.settings import load
from ramet.model.machine import VmState
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.inventory.places import MAX_DEPTH, Places
from ramet.vsphere.opening import open_world
from ramet.vsphere.types import vim, vmodl
from tests.vsphere.kit import record_vm, root_call, seen

WAIT_S = 10.0


async def ended(world: World, reference: Any) -> Any:
    async with asyncio.timeout(WAIT_S):
        while True:
            stamp = world.updates.stamp
            info = await read_now(world.find(reference._moId), "info")
            if info.state in ("success", "error"):
                return info
            await world.updates.wait(stamp, WAIT_S)


async def test_folders_nest_and_outlive_the_daemon(state_dir: Path) -> None:
    settings, call = load({"state_dir": state_dir}, env={}), root_call()
    async with Host.open(settings) as host, open_world(host) as world:
        vm = await seen(world, await record_vm(host, "web"))
        outer = await invoke(world, call, ids.VM_FOLDER, "CreateFolder", {"name": "outer"})
        inner = await invoke(world, call, outer._moId, "CreateFolder", {"name": "inner"})
        task = await invoke(world, call, inner._moId, "MoveIntoFolder_Task", {"list": [vm.ref]})
        assert (await ended(world, task)).state == "success"
    async with Host.open(settings) as host, open_world(host) as world:
        places = world.part(Places)
        assert [one.name for one in places.folders_in(ids.VM_FOLDER)] == ["outer"]
        assert await read_now(world.find(inner._moId), "childEntity") == [vm.ref]
        assert await read_now(world.find(ids.VM_FOLDER), "childEntity") == [outer]
        assert await read_now(world.find(vm.moid), "parent") == inner
        assert await read_now(world.find(inner._moId), "parent") == outer


async def test_places_refuse_what_cannot_be(world: World) -> None:
    places = world.part(Places)
    one = await places.make_folder(ids.VM_FOLDER, "one")
    two = await places.make_folder(one.moid, "two")
    with pytest.raises(vim.fault.DuplicateName) as caught:
        await places.make_folder(ids.VM_FOLDER, "one")
    assert caught.value.object._moId == one.moid
    for name in ("", "x" * 81):
        with pytest.raises(vim.fault.InvalidName):
            await places.make_folder(ids.VM_FOLDER, name)
    with pytest.raises(vim.fault.InvalidFolder):
        await places.move_folder(one.moid, two.moid)
    await places.rename_folder(two.moid, "one")  # another folder, the same name
    with pytest.raises(vim.fault.DuplicateName):
        await places.move_folder(two.moid, ids.VM_FOLDER)
    deepest = two.moid
    for n in range(MAX_DEPTH - 2):
        deepest = (await places.make_folder(deepest, f"f{n}")).moid
    with pytest.raises(vim.fault.InvalidName):
        await places.make_folder(deepest, "too deep")
    await places.remove_folder(two.moid)
    assert places.folder(two.moid) is None


async def test_two_of_one_name_at_once_are_one(world: World) -> None:
    places = world.part(Places)
    made = await asyncio.gather(*(places.make_folder(ids.VM_FOLDER, "same") for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(one, vim.fault.DuplicateName) for one in made) == 4


async def test_a_vm_of_a_folder_that_is_gone_is_in_the_topmost_one(host: Host, world: World) -> None:
    vm = await seen(world, await record_vm(host, "web"))
    await world.part(Places).change(ids.vm_id(vm.moid) or "", folder="group-v99999")
    assert (await read_now(vm, "parent"))._moId == ids.VM_FOLDER


async def test_the_host_is_this_host(world: World) -> None:
    host = world.find(ids.HOST)
    summary, hardware = await read_now(host, "summary"), await read_now(host, "hardware")
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert summary.hardware.memorySize == hardware.memorySize == total_kib * 1024
    assert summary.hardware.numCpuThreads == hardware.cpuInfo.numCpuThreads > 0
    assert len(summary.hardware.uuid) == 36
    assert (await read_now(host, "config.product")).apiType == "HostAgent"
    assert str(world.host.settings.state_dir) in (await read_now(world.find(ids.DATASTORE), "summary")).url
    store = await read_now(world.find(ids.DATASTORE), "summary")
    assert 0 < store.freeSpace <= store.capacity


async def test_the_environment_says_what_can_be_chosen(world: World, call: Call) -> None:
    browser = ids.ENVIRONMENT_BROWSER
    (descriptor,) = await invoke(world, call, browser, "QueryConfigOptionDescriptor", {})
    option = await invoke(world, call, browser, "QueryConfigOption", {"key": descriptor.key})
    assert option.version == "vmx-21"
    assert {"debian12_64Guest", "otherLinux64Guest"} <= {one.id for one in option.guestOSDescriptor}
    spec = vim.EnvironmentBrowser.ConfigOptionQuerySpec(guestId=["ubuntu64Guest"])
    option = await invoke(world, call, browser, "QueryConfigOptionEx", {"spec": spec})
    assert [one.id for one in option.guestOSDescriptor] == ["ubuntu64Guest"]
    with pytest.raises(vmodl.fault.InvalidArgument):
        await invoke(world, call, browser, "QueryConfigOption", {"key": "vmx-4"})
    target = await invoke(world, call, browser, "QueryConfigTarget", {})
    assert "user" in {one.name for one in target.network}
    assert target.datastore[0].datastore.capacity > 0
    assert await invoke(world, call, browser, "QueryTargetCapabilities", {}) is not None


# -- files -------------------------------------------------------------------------------------------------------------


async def search(world: World, call: Call, path: str, *, deep: bool = False, **spec: Any) -> Any:
    name = "SearchDatastoreSubFolders_Task" if deep else "SearchDatastore_Task"
    arguments = {"datastorePath": path, "searchSpec": vim.host.DatastoreBrowser.SearchSpec(**spec)}
    return await ended(world, await invoke(world, call, ids.DATASTORE_BROWSER, name, arguments))


async def test_files_of_vms_are_found_and_nothing_else(host: Host, world: World, call: Call) -> None:
    vm = await record_vm(host, "web")
    layer = vm.machine.disks[0].layer
    details = vim.host.DatastoreBrowser.FileInfo.Details(
        fileType=True, fileSize=True, modification=True, fileOwner=False
    )
    found = (await search(world, call, "[ramet] layers", details=details)).result
    assert [type(one) for one in found.file] == [vim.host.DatastoreBrowser.VmDiskInfo]
    assert (found.file[0].path, found.file[0].fileSize > 0) == (f"{layer}.qcow2", True)
    assert (await search(world, call, "[ramet] layers", matchPattern=["*.iso"])).result.file == []
    everything = (await search(world, call, "[ramet]", deep=True)).result
    assert {one.folderPath for one in everything} >= {"[ramet] ", "[ramet] layers/"}
    assert {file.path for file in everything[0].file} <= {"images", "layers", "vms"}
    for path in ("[ramet] run", "[ramet] nowhere", "[ramet] records/vm"):
        assert isinstance((await search(world, call, path)).error, vim.fault.FileNotFound)
    for path in ("[other] layers", "layers", "[ramet] ../..", "[ramet] layers/../run", "/etc", "[ramet] a\0b"):
        with pytest.raises(vim.fault.InvalidDatastorePath):
            await search(world, call, path)


# -- questions ---------------------------------------------------------------------------------------------------------


async def test_only_the_question_that_there_is_can_be_answered(host: Host, world: World, call: Call) -> None:
    vm = await record_vm(host, "web")
    mo, live = await seen(world, vm), host.floor.machines[vm.id]
    await live.change(state=VmState.PAUSED, pause_reason="disk full")
    question = (await read_now(mo, "runtime")).question
    assert "disk full" in question.text

    async def answer(question_id: str, choice: str) -> None:
        arguments = {"questionId": question_id, "answerChoice": choice}
        await invoke(world, call, mo.moid, "AnswerVM", arguments)

    for wrong in (("other", "0"), (question.id, "9")):
        with pytest.raises(vmodl.fault.InvalidArgument):
            await answer(*wrong)
    await live.change(state=VmState.OFF, pause_reason=None)
    with pytest.raises(vim.fault.ConcurrentAccess):
        await answer(question.id, "0")
