"""Performance counters: how they are computed, and how clients read them."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.host.service import Host
from ramet.model.memory import MemoryCounters
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.dispatch import invoke
from ramet.vsphere.core.properties import read_now
from ramet.vsphere.core.world import World
from ramet.vsphere.managers.counters import COUNTERS, NONE, Reading, numbers, place_of
from ramet.vsphere.managers.sampling import Series, _read_process
from ramet.vsphere.types import vim, vmodl
from tests.vsphere.kit import record_vm, seen

KEYS = {f"{counter.group}.{counter.name}": counter.key for counter in COUNTERS}
MIB = 1 << 20


def value(values: Any, name: str) -> int:
    return int(values[place_of(KEYS[name])])


def test_counters_have_the_originals_keys() -> None:
    known = {
        "cpu.usage": 2, "cpu.usagemhz": 6, "mem.usage": 24, "mem.granted": 29, "mem.active": 33, "mem.shared": 37,
        "mem.zero": 41, "mem.consumed": 98, "disk.usage": 125, "disk.read": 130, "disk.write": 131, "net.usage": 143,
        "net.received": 148, "net.transmitted": 149, "sys.uptime": 155,
    }  # fmt: skip
    assert {name: KEYS[name] for name in known} == known
    assert len(set(KEYS.values())) == len(COUNTERS)


def test_numbers_are_what_was_read() -> None:
    memory = MemoryCounters(
        configured_bytes=512 * MIB, resident_bytes=200 * MIB, unique_bytes=50 * MIB, shared_bytes=150 * MIB,
        common_bytes=30 * MIB, overhead_bytes=40 * MIB,
    )  # fmt: skip
    before = Reading(100.0, 10.0, 0, 0, 1000, 2000, 60.0)
    now = Reading(110.0, 15.0, 10 * 1024 * 20, 10 * 1024 * 5, 1000 + 10 * 1024, 2000, 70.0)
    values = numbers(before, now, memory, capacity_mhz=4000, core_mhz=2000)
    assert {name: value(values, name) for name in KEYS} == {
        "cpu.usage": 2500, "cpu.usagemhz": 1000, "mem.usage": 1562, "mem.granted": 200 * 1024, "mem.active": 50 * 1024,
        "mem.shared": 150 * 1024, "mem.zero": 312 * 1024, "mem.sharedcommon": 30 * 1024, "mem.consumed": 80 * 1024,
        "mem.overhead": 40 * 1024, "disk.usage": 25, "disk.read": 20, "disk.write": 5, "net.usage": 1,
        "net.received": 1, "net.transmitted": 0, "sys.uptime": 70,
    }  # fmt: skip


def test_a_host_uses_memory_for_more_than_guests() -> None:
    memory = MemoryCounters(configured_bytes=512 * MIB, resident_bytes=200 * MIB, unique_bytes=200 * MIB)
    values = numbers(None, Reading(1.0), memory, 4000, 2000, (8192 * MIB, 2048 * MIB))
    assert (value(values, "mem.usage"), value(values, "mem.consumed")) == (2500, 2048 * 1024)
    assert value(values, "mem.zero") == 312 * 1024


def test_what_is_not_known_is_missing_and_not_nothing() -> None:
    values = numbers(None, Reading(1.0, 5.0), None, 1000, 1000)
    assert {name for name in KEYS if value(values, name) != NONE} == {"sys.uptime"}


readings = st.builds(
    Reading,
    at=st.floats(0, 1e6),
    cpu_s=st.none() | st.floats(0, 1e6),
    read_bytes=st.none() | st.integers(0, 1 << 50),
    written_bytes=st.none() | st.integers(0, 1 << 50),
    received_bytes=st.none() | st.integers(0, 1 << 50),
    sent_bytes=st.none() | st.integers(0, 1 << 50),
    uptime_s=st.floats(0, 1e9),
)


@given(st.none() | readings, readings, st.none() | st.builds(MemoryCounters, resident_bytes=st.integers(0, 1 << 45)))
def test_whatever_is_read_numbers_are_no_nonsense(before: Any, now: Any, memory: Any) -> None:
    values = numbers(before, now, memory, 4000, 2000)
    assert len(values) == len(COUNTERS)
    assert all(number >= NONE for number in values)
    assert value(values, "cpu.usage") <= 10_000


def test_a_process_is_read_and_one_that_is_gone_is_nothing() -> None:
    own = _read_process(os.getpid())
    assert own.cpu_s is not None
    assert own.cpu_s > 0
    assert own.uptime_s < 3600
    assert _read_process(2**22 + 1).cpu_s is None


async def query(world: World, call: Call, **fields: Any) -> list[Any]:
    base = {"entity": world.ref(ids.HOST), "intervalId": 20}
    spec = vim.PerformanceManager.QuerySpec(**{**base, **fields})
    found: list[Any] = await invoke(world, call, "PerfMgr", "QueryPerf", {"querySpec": [spec]})
    return found


async def test_the_host_is_read_in_both_formats(world: World, call: Call) -> None:
    series = world.part(Series)
    await series.sample()
    await asyncio.sleep(0.02)  # a rate needs some time
    await series.sample()
    samples = series.of(ids.HOST)
    assert samples is not None
    count = len(samples.kept)
    metrics = [vim.PerformanceManager.MetricId(counterId=key, instance=text) for key, text in ((6, ""), (98, "*"))]
    [found] = await query(world, call, metricId=metrics)
    assert [(one.id.counterId, len(one.value)) for one in found.value] == [(6, count), (98, count)]
    assert [one.interval for one in found.sampleInfo] == [20] * count
    [last] = await query(world, call, metricId=metrics, maxSample=1, format="csv")
    assert last.sampleInfoCSV.startswith("20,20")
    assert last.sampleInfoCSV.endswith("Z")
    assert [int(one.value) for one in last.value] == [one.value[-1] for one in found.value]
    assert len((await query(world, call))[0].value) > 10
    now = datetime.now(UTC)
    assert await query(world, call, startTime=now + timedelta(minutes=1)) == []
    assert len((await query(world, call, endTime=now, maxSample=1))[0].sampleInfo) == 1
    assert await query(world, call, intervalId=300) == []


async def test_what_there_is_is_told(world: World, call: Call, host: Host) -> None:
    await world.part(Series).sample()
    await world.part(Series).sample()
    entity = {"entity": world.ref(ids.HOST)}
    summary = await invoke(world, call, "PerfMgr", "QueryPerfProviderSummary", entity)
    assert (summary.currentSupported, summary.refreshRate) == (True, 20)
    available = await invoke(world, call, "PerfMgr", "QueryAvailablePerfMetric", entity)
    assert {KEYS["cpu.usage"], KEYS["mem.sharedcommon"], KEYS["net.usage"]} <= {one.counterId for one in available}
    [counter] = await invoke(world, call, "PerfMgr", "QueryPerfCounter", {"counterId": [37]})
    assert (counter.groupInfo.key, counter.nameInfo.key, counter.rollupType, counter.unitInfo.key) == (
        "mem", "shared", "average", "kiloBytes",
    )  # fmt: skip
    manager = world.get("PerfMgr")
    assert manager is not None
    assert len(await read_now(manager, "perfCounter")) == len(COUNTERS)
    vm = await seen(world, await record_vm(host, "off"))
    assert await invoke(world, call, "PerfMgr", "QueryAvailablePerfMetric", {"entity": vm.ref}) == []
    assert await query(world, call, entity=vm.ref) == []
    with pytest.raises(vmodl.fault.InvalidArgument, match="VMs and of the host"):
        await query(world, call, entity=world.ref(ids.ROOT_FOLDER))
    with pytest.raises(vmodl.fault.InvalidArgument, match="no counter 4711"):
        await invoke(world, call, "PerfMgr", "QueryPerfCounter", {"counterId": [4711]})
