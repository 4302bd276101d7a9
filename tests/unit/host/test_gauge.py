"""How fast VMs grow, from the rows of the ledger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from ramet.host.gauge import Gauge
from ramet.memory.admission import HORIZON_S
from ramet.model.machine import Accelerator, Lineage, Machine, Process, Vm, VmState
from ramet.model.memory import MemoryKind, MemoryRow
from ramet.model.units import MIB

PROCESS = Process(
    pid=1, start_ticks=1, boot_id="b", accelerator=Accelerator.TCG, qemu_version="7.2.22", qemu_build="sha256"
)


class Floor:
    def __init__(self, *vms: Vm) -> None:
        self.machines = {vm.id: SimpleNamespace(id=vm.id, vm=vm, name=vm.name) for vm in vms}

    def shown(self) -> list[Any]:
        return list(self.machines.values())


def vm(name: str, state: VmState = VmState.RUNNING, of: str | None = None) -> Vm:
    lineage = Lineage(source_id=of, source_name=of, moment_id="m", workflow="live", at=0.0) if of else None
    machine = Machine(name=name, memory_mib=1024)
    fields = {"lineage": lineage, "lineage_id": of or name, "created_at": 0.0}
    process = None if state is VmState.OFF else PROCESS
    return Vm(id=name, machine=machine, state=state, process=process, **fields)


def row(name: str, at: float, unique_mib: int, lineage: str = "web", kind: MemoryKind = MemoryKind.VM) -> MemoryRow:
    return MemoryRow(
        id=name,
        name=name,
        lineage_id=lineage,
        measured_at=at,
        unique_bytes=unique_mib * MIB,
        common_bytes=MIB,
        kind=kind,
    )


def gauge(*vms: Vm, now: float = 1000.0) -> Gauge:
    return Gauge(cast("Any", Floor(*vms)), now=lambda: now)


def test_a_rate_needs_a_while_and_forgets_what_is_long_ago() -> None:
    seen = gauge(vm("web"))
    seen.take([row("web", 0, 10)])
    seen.take([row("web", 10, 1000)])
    assert seen.growth_per_s("web") == 0
    seen.take([row("web", 100, 110)])
    assert seen.growth_per_s("web") == MIB
    seen.take([row("web", 100 + HORIZON_S, 110)])
    assert seen.growth_per_s("web") == 0


def test_a_reading_that_was_seen_already_counts_once() -> None:
    seen = gauge(vm("web"))
    for _ in range(3):
        seen.take([row("web", 0, 10)])
    seen.take([row("web", 100, 20)])
    assert seen.growth_per_s("web") == 0.1 * MIB


def test_pages_that_are_left_to_a_vm_are_no_growth_of_it() -> None:
    """When the last clone that shared them goes, all pages of its source become the source's own."""
    seen = gauge(vm("web"), vm("c", of="web"), vm("db"))
    seen.take([row("web", 0, 1), row("c", 0, 1), row("db", 0, 1, lineage="db")])
    seen.take([row("web", 100, 900), row("db", 100, 901, lineage="db")])
    assert seen.growth_per_s("web") == 0
    assert seen.growth_per_s("db") == 9 * MIB
    assert [live.name for live, _ in seen.growing(MIB)] == ["db"]


def test_tenants_are_the_vms_that_are_on_measured_or_not() -> None:
    seen = gauge(vm("web"), vm("f", VmState.FROZEN), vm("off", VmState.OFF), vm("c", of="web"))
    seen.take([row("web", 990, 10), row("m", 990, 5, kind=MemoryKind.HOLDER)])
    web, frozen, clone = seen.tenants()
    assert (web.configured, web.unique, web.proportional) == (1024 * MIB, 10 * MIB, 11 * MIB)
    assert (frozen.writes, frozen.unique) == (False, 0)
    assert (clone.is_clone, clone.lineage_id, clone.age_s) == (True, "web", 1000.0)
    assert seen.tenants() is seen.tenants()
