"""Guests that are customized at their next power-on: the order is kept until somebody could carry it out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ramet.errors import GuestError
from ramet.host.service import Host
from ramet.host.tasks import TaskHandle
from ramet.model.host import Task
from ramet.model.identity import Customization, Identity, IdentityState, Plan
from ramet.model.machine import VmState
from ramet.model.requests import Exec
from ramet.model.views import ExecResult
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.guest import first_boot
from ramet.vsphere.inventory.places import Ordered, Places
from ramet.vsphere.machine.virtual_machine import VirtualMachine
from ramet.vsphere.types import vim, vmodl
from tests.vsphere.kit import record_vm, seen

kinds = vim.vm.customization
STARTED, SUCCEEDED, FAILED = (
    vim.event.CustomizationStartedEvent, vim.event.CustomizationSucceeded, vim.event.CustomizationFailed,
)  # fmt: skip


def linux(name: str = "db-1", **more: Any) -> Any:
    prep = kinds.LinuxPrep(hostName=kinds.FixedName(name=name), domain="example.org", **more)
    adapter = kinds.IPSettings(ip=kinds.FixedIp(ipAddress="10.0.0.7"), subnetMask="255.255.0.0", gateway=["10.0.0.1"])
    return kinds.Specification(
        identity=prep, globalIPSettings=kinds.GlobalIPSettings(), nicSettingMap=[kinds.AdapterMapping(adapter=adapter)]
    )


async def _at_once() -> None:
    pass


class Guest:
    """Stands for the guest of a VM: what its agent would do."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self._host = host
        self.answers: Callable[[], Awaitable[None]] = _at_once
        self.told: list[tuple[str, Customization]] = []
        self.executed: list[tuple[str, ...]] = []
        self.exit_code = 0
        self.problem: Exception | None = None
        for name in ("wait_agent", "exec_in_vm", "customize_vm"):
            monkeypatch.setattr(host, name, getattr(self, name))

    async def wait_agent(self, ref: str, timeout_s: float) -> None:
        await self.answers()

    async def exec_in_vm(self, ref: str, request: Exec) -> ExecResult:
        self.executed.append(request.argv[3:])
        return ExecResult(exit_code=self.exit_code)

    async def customize_vm(self, ref: str, values: Customization) -> Task:
        async def work(_: TaskHandle) -> None:
            if self.problem is not None:
                raise self.problem
            self.told.append((ref, values))

        return await self._host.tasks.start("vm.customize", ref, work, vm_id=ref)


@pytest.fixture
def guest(host: Host, monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(host, monkeypatch)


@pytest.fixture
async def golden(host: Host, world: World) -> VirtualMachine:
    return await seen(world, await record_vm(host, "golden"))


async def done(world: World, call: Call, moid: str, method: str, **arguments: Any) -> Any:
    task = await invoke(world, call, moid, method, arguments)
    while (info := await read_now(world.find(task._moId), "info")).state in ("queued", "running"):
        assert await world.updates.wait(world.updates.stamp, 30.0)
    if info.state == "error":
        raise info.error
    return info.result


async def power(mo: VirtualMachine, state: VmState, ago_s: float = 0.0) -> None:
    await mo.live.change(state=state, started_at=time.time() - ago_s if state is VmState.RUNNING else None)


async def events_end_with(world: World, call: Call, *wanted: Any) -> list[str]:
    """Their messages; awaited, for they come from the background."""
    customization = vim.event.EventFilterSpec(type=[vim.event.CustomizationEvent])
    for _ in range(1000):
        found = await invoke(world, call, "EventManager", "QueryEvents", {"filter": customization})
        if [type(one) for one in found][-len(wanted) :] == list(wanted):
            return [one.fullFormattedMessage for one in found]
        await asyncio.sleep(0.01)
    raise AssertionError(found)


async def test_an_order_is_carried_out_at_the_next_power_on_and_once(
    world: World, call: Call, golden: VirtualMachine, guest: Guest
) -> None:
    await done(world, call, golden.moid, "CustomizeVM_Task", spec=linux("db-0"))
    await done(world, call, golden.moid, "CustomizeVM_Task", spec=linux(timeZone="Europe/Zurich"))
    assert guest.told == []
    await power(golden, VmState.RUNNING)
    messages = await events_end_with(world, call, STARTED, SUCCEEDED)
    assert messages[-1] == "golden: its guest was customized."
    ((vm_id, values),) = guest.told
    assert (vm_id, values.hostname, values.domain) == (golden.vm.id, "db-1", "example.org")
    assert values.nics["net0"].address == "10.0.0.7/16"
    assert guest.executed == [("sh", "Europe/Zurich")]
    while world.part(Places).ordered():
        assert await world.updates.wait(world.updates.stamp, 10.0)
    await power(golden, VmState.OFF)
    await done(world, call, golden.moid, "CustomizeVM_Task", spec=linux("db-2"))
    await power(golden, VmState.RUNNING)
    await events_end_with(world, call, STARTED, SUCCEEDED, STARTED, SUCCEEDED)
    assert [values.hostname for _, values in guest.told] == ["db-1", "db-2"]


async def test_a_copy_is_made_with_an_order(host: Host, world: World, call: Call, golden: VirtualMachine) -> None:
    spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False, template=False, customization=linux())
    arguments = {"folder": vim.Folder(ids.VM_FOLDER), "name": "db", "spec": spec}
    copied = await done(world, call, golden.moid, "CloneVM_Task", **arguments)
    ((vm_id, order),) = world.part(Places).ordered()
    assert ids.vm_moid(vm_id) == copied._moId
    assert order.values.hostname == "db-1"
    again = Places(world)
    await again.load()
    assert again.ordered() == [(vm_id, order)], "a daemon that is started anew knows of it"
    await done(world, call, copied._moId, "Destroy_Task")
    assert world.part(Places).ordered() == []


async def test_a_guest_that_goes_off_before_it_answers_is_told_at_its_next_power_on(
    world: World, call: Call, golden: VirtualMachine, guest: Guest
) -> None:
    lost = asyncio.Event()

    async def silent() -> None:
        lost.set()
        raise GuestError("The agent has hung up.")

    guest.answers = silent
    await done(world, call, golden.moid, "CustomizeVM_Task", spec=linux())
    await power(golden, VmState.RUNNING)
    await asyncio.wait_for(lost.wait(), 10.0)
    await power(golden, VmState.OFF)  # the record comes after the agent's end
    guest.answers = _at_once
    await power(golden, VmState.RUNNING)
    await events_end_with(world, call, STARTED, STARTED, SUCCEEDED)
    assert len(guest.told) == 1


async def test_an_agent_that_restarts_is_waited_for(
    world: World, call: Call, golden: VirtualMachine, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_boot, "GONE_S", 0.05)
    tries = iter([GuestError("The agent has hung up."), GuestError("Again.")])

    async def restarting() -> None:
        for problem in tries:
            raise problem

    guest.answers = restarting
    await done(world, call, golden.moid, "CustomizeVM_Task", spec=linux())
    await power(golden, VmState.RUNNING)
    await events_end_with(world, call, STARTED, SUCCEEDED)


async def test_a_vm_that_was_powered_on_long_ago_is_left_alone_until_the_next_time(
    world: World, call: Call, golden: VirtualMachine, guest: Guest
) -> None:
    await done(world, call, golden.moid, "CustomizeVM_Task", spec=linux())
    await power(golden, VmState.RUNNING, ago_s=86400.0)
    other = await seen(world, await record_vm(world.host, "other"))
    await done(world, call, other.moid, "CustomizeVM_Task", spec=linux("other"))
    await power(other, VmState.RUNNING)
    await events_end_with(world, call, STARTED, SUCCEEDED)
    assert [vm_id for vm_id, _ in guest.told] == [other.vm.id]
    assert [vm_id for vm_id, _ in world.part(Places).ordered()] == [golden.vm.id]


@pytest.mark.parametrize(
    ("state", "told", "asked"),
    [
        (IdentityState.ACKNOWLEDGED, [SUCCEEDED], 0),
        (IdentityState.FAILED, [FAILED], 0),
        (IdentityState.BARE, [STARTED, SUCCEEDED], 1),
    ],
)
async def test_what_a_former_daemon_began_is_the_hosts_to_finish(
    world: World, call: Call, golden: VirtualMachine, guest: Guest, state: IdentityState, told: list[Any], asked: int
) -> None:
    plan = Plan(generation="1", hostname="db-1")
    await golden.live.change(identity=Identity(state=IdentityState.PENDING, plan=plan))
    values = Customization(hostname="db-1")
    await power(golden, VmState.RUNNING, ago_s=86400.0)
    await world.part(Places).change(golden.vm.id, customization=Ordered(values=values, begun=True))
    final = Identity(state=state, plan=None if state is IdentityState.BARE else plan, problem="No answer.")
    await golden.live.change(identity=final)
    await events_end_with(world, call, *told)
    assert len(guest.told) == asked


@pytest.mark.parametrize("what", ["the guest", "the time zone"])
async def test_what_fails_is_told_and_not_tried_again(
    world: World, call: Call, golden: VirtualMachine, guest: Guest, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_boot, "GONE_S", 0.05)
    if what == "the guest":
        guest.problem = GuestError("No identity.")
    else:
        guest.exit_code = 1
    await done(world, call, golden.moid, "CustomizeVM_Task", spec=linux(timeZone="Mars/Olympus"))
    await power(golden, VmState.RUNNING)
    messages = await events_end_with(world, call, STARTED, FAILED)
    assert ("No identity." if what == "the guest" else "Mars/Olympus") in messages[-1]
    assert guest.told == []
    while world.part(Places).ordered():
        assert await world.updates.wait(world.updates.stamp, 10.0)


async def test_what_cannot_be_ordered_changes_nothing(world: World, call: Call, golden: VirtualMachine) -> None:
    sysprep = linux()
    sysprep.identity = kinds.Sysprep()
    two = linux()
    two.nicSettingMap = list(two.nicSettingMap) * 2
    for spec, refused in (
        (sysprep, vim.fault.UncustomizableGuest),
        (two, vim.fault.NicSettingMismatch),
        (linux(timeZone="../../etc/passwd"), vmodl.fault.InvalidArgument),
        (linux(scriptText="reboot"), vmodl.fault.NotSupported),
    ):
        clone = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False, template=False, customization=spec)
        for method, arguments in (
            ("CheckCustomizationSpec", {"spec": spec}),
            ("CustomizeVM_Task", {"spec": spec}),
            ("CloneVM_Task", {"folder": vim.Folder(ids.VM_FOLDER), "name": "db", "spec": clone}),
        ):
            with pytest.raises(refused):
                await invoke(world, call, golden.moid, method, arguments)
        clone.config = vim.vm.ConfigSpec(numCPUs=2)  # it is known only of the copy, then
        arguments = {"folder": vim.Folder(ids.VM_FOLDER), "name": "db", "spec": clone}
        task = await invoke(world, call, golden.moid, "CloneVM_Task", arguments)
        while (info := await read_now(world.find(task._moId), "info")).state in ("queued", "running"):
            await world.updates.wait(world.updates.stamp, 10.0)
        assert isinstance(info.error, refused), info.error
        assert list(world.host.floor.machines) == [ids.vm_id(golden.moid)]
    await power(golden, VmState.RUNNING)
    with pytest.raises(vim.fault.InvalidPowerState):
        await invoke(world, call, golden.moid, "CustomizeVM_Task", {"spec": linux()})
    assert world.part(Places).ordered() == []
    assert [live.name for live in world.host.floor.shown()] == ["golden"]
