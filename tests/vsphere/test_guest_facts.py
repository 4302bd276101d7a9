"""What guests tell of themselves: asked rarely, told when it changes, never another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ramet.errors import GuestError
from ramet.guest.agent import Address, Interface, OsInfo
from ramet.host.service import Host
from ramet.model.machine import Accelerator, Machine, Nic, Process, Vm, VmState
from ramet.vsphere.machine.guest_facts import AT_ONCE, LONGEST_S, STEADY_S, GuestFacts


def process(pid: int = 1) -> Process:
    return Process(pid=pid, start_ticks=1, boot_id="b", accelerator=Accelerator.TCG, qemu_version="9", qemu_build="x")


@dataclass
class FakeAgent:
    address: str = "10.0.0.5"
    silent: bool = False
    asked: int = 0

    async def interfaces(self) -> list[Interface]:
        self.asked += 1
        if self.silent:
            raise GuestError("no answer")
        address = Address.model_validate({"ip-address-type": "ipv4", "ip-address": self.address, "prefix": 24})
        return [Interface.model_validate({"name": "eth0", "hardware-address": "52:54:00:00:00:01"}).model_copy(
            update={"addresses": [address]}
        )]  # fmt: skip

    async def hostname(self) -> str:
        return "web.example.org"

    async def os_info(self) -> OsInfo:
        return OsInfo(id="debian", version_id="12")


class StuckAgent(FakeAgent):
    """Says nothing until it is let go."""

    async def interfaces(self) -> list[Interface]:
        self.asked += 1
        await asyncio.Event().wait()
        return []


@dataclass
class FakeLive:
    vm: Vm
    agent: FakeAgent = field(default_factory=FakeAgent)


@dataclass
class FakeNetworks:
    leases: dict[str, str] = field(default_factory=dict)
    privileged: bool = True

    async def addresses(self) -> dict[str, str]:
        return self.leases

    def addresses_of(self, vm_id: str, nics: tuple[Nic, ...], known: dict[str, str]) -> dict[str, str]:
        return {nic.id: known[nic.mac] for nic in nics if nic.mac in known}


class FakeHost:
    """As much of a host as is asked."""

    def __init__(self) -> None:
        self.networks = FakeNetworks()
        self.machines: dict[str, FakeLive] = {}
        self.busy: set[str] = set()

    @property
    def floor(self) -> FakeHost:
        return self

    @property
    def rooms(self) -> FakeHost:
        return self

    def is_busy(self, vm_id: str) -> bool:
        return vm_id in self.busy

    def put(self, name: str, **update: Any) -> FakeLive:
        machine = Machine(name=name, nics=(Nic(id="net0", mac="52:54:00:00:00:01"),))
        vm = Vm(machine=machine, **{"state": VmState.RUNNING, "process": process(), **update})
        live = self.machines[vm.id] = FakeLive(vm)
        return live


@dataclass
class Running:
    host: FakeHost
    facts: GuestFacts
    touched: list[str]


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    host, touched = FakeHost(), list[str]()
    facts = GuestFacts(cast("Host", host), touched.append)
    task = asyncio.create_task(facts.run())
    await asyncio.sleep(0)
    yield Running(host, facts, touched)
    task.cancel()
    await asyncio.wait([task])


async def ask(running: Running, live: FakeLive) -> None:
    """As if its turn had come."""
    task = running.facts._ask_soon(live.vm.id)
    assert task is not None
    await asyncio.wait([task])


async def test_a_reader_sees_at_once_what_can_be_known(running: Running) -> None:
    live = running.host.put("web")
    running.host.networks.leases["52:54:00:00:00:01"] = "10.0.0.9"
    await running.facts.prepare(live.vm)
    assert running.facts.addresses(live.vm) == {"net0": "10.0.0.9"}
    seen = running.facts.seen(live.vm)
    assert seen is not None
    assert (seen.answers, seen.host_name, seen.os.id, seen.has_address) == (True, "web.example.org", "debian", True)


async def test_only_a_change_is_told(running: Running) -> None:
    live = running.host.put("web")
    await running.facts.prepare(live.vm)
    assert running.touched == [live.vm.id]
    await ask(running, live)
    assert running.touched == [live.vm.id]
    live.agent.address = "10.0.0.6"
    await ask(running, live)
    assert running.touched == [live.vm.id] * 2
    running.host.networks.leases["52:54:00:00:00:01"] = "10.0.0.9"
    await running.facts._read_leases()
    assert running.touched == [live.vm.id] * 3


async def test_a_silent_guest_is_asked_ever_less(running: Running) -> None:
    live = running.host.put("web")
    live.agent.silent = True
    pauses = []
    for _ in range(9):
        await ask(running, live)
        seen = running.facts.seen(live.vm)
        assert seen is not None
        assert not seen.answers
        pauses.append(running.facts._due_at(live.vm.id) - seen.at)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_S
    assert running.touched == [live.vm.id]
    live.agent.silent = False
    await ask(running, live)
    seen = running.facts.seen(live.vm)
    assert seen is not None
    assert running.facts._due_at(live.vm.id) - seen.at == STEADY_S


@pytest.mark.parametrize("state", [VmState.FROZEN, VmState.PAUSED, VmState.STOPPING, VmState.STARTING])
async def test_a_guest_that_does_not_execute_is_not_asked(running: Running, state: VmState) -> None:
    live = running.host.put("web", state=state)
    await running.facts.prepare(live.vm)
    await ask(running, live)
    assert live.agent.asked == 0


async def test_a_guest_that_an_operation_holds_is_not_asked(running: Running) -> None:
    live = running.host.put("web")
    running.host.busy.add(live.vm.id)
    await running.facts.prepare(live.vm)
    assert live.agent.asked == 0


async def test_one_that_is_off_is_not_asked_and_has_no_address(running: Running) -> None:
    live = running.host.put("web")
    await running.facts.prepare(live.vm)
    off = live.vm.changed(state=VmState.OFF, process=None)
    assert running.facts.addresses(off) == {}
    assert running.facts.seen(off) is None


async def test_what_another_process_said_means_nothing(running: Running) -> None:
    live = running.host.put("web")
    await running.facts.prepare(live.vm)
    restarted = live.vm.changed(process=process(pid=2))
    assert running.facts.seen(restarted) is None


async def test_nobody_looks_and_nobody_is_asked(running: Running) -> None:
    live = running.host.put("web")
    for _ in range(3):
        running.facts._turn()
    await asyncio.sleep(0)
    assert live.agent.asked == 0
    await running.facts.prepare(live.vm)
    assert live.agent.asked == 1
    del running.host.machines[live.vm.id]
    running.facts._turn()
    assert running.facts._wanted == {}


async def test_a_list_of_silent_guests_waits_for_the_first_few_only(running: Running) -> None:
    lives = [running.host.put(f"vm-{n}") for n in range(AT_ONCE + 3)]
    for live in lives:
        live.agent = StuckAgent()
    await running.facts._read_leases()
    first = [asyncio.create_task(running.facts.prepare(live.vm)) for live in lives[:AT_ONCE]]
    await asyncio.sleep(0)
    for live in lives[AT_ONCE:]:
        await running.facts.prepare(live.vm)
    assert not any(task.done() for task in first)
    await asyncio.wait(first)
    assert all(task.exception() is None for task in first)
