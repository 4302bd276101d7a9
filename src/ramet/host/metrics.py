"""Numbers for a monitoring system, in the text format of Prometheus.

Counters and histograms are counted from tasks that end; gauges are taken from the ledger of memory when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ramet.host.floor import Floor
from ramet.host.memory_desk import MemoryDesk
from ramet.memory.sums import FIELDS, total
from ramet.model.host import Task, TaskState
from ramet.model.machine import VmState
from ramet.model.memory import MemoryCounters, MemoryRow

_STUN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_RUNNING_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_MEANINGS = {
    "configured": "Memory that guests see.",
    "resident": "Guest RAM that is there.",
    "unique": "Guest RAM that one process maps.",
    "shared": "Guest RAM that several processes map, counted in each.",
    "common": "What the shared pages take: Pss - Private.",
    "saved": "shared - common.",
    "overhead": "Of the processes apart from guest RAM.",
    "page_tables": "Page tables of the processes.",
    "swapped": "Guest RAM in swap.",
    "spent": "What the host gives: unique + common + overhead + page tables.",
}


class Metrics:
    """One a host. `note_task` is called with each task that has ended."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._tasks = Counter("ramet_tasks", "Tasks that have ended.", ["kind", "state"], registry=self._registry)
        self._clones = Counter("ramet_clones", "Clones asked for.", ["way", "outcome"], registry=self._registry)
        self._stun = Histogram(
            "ramet_stun_seconds", "Stuns of sources.", buckets=_STUN_BUCKETS, registry=self._registry
        )
        self._running = Histogram(
            "ramet_clone_running_seconds",
            "From a clone's request to its first instruction.",
            ["way"],
            buckets=_RUNNING_BUCKETS,
            registry=self._registry,
        )

    def note_task(self, task: Task) -> None:
        self._tasks.labels(task.kind, task.state.value).inc()
        if task.kind == "clone":
            self._note_clones(task)
        elif task.kind == "vm.freeze" and task.state is TaskState.SUCCESS:
            self._stun.observe(task.result["stun"]["total_ms"] / 1000)

    def _note_clones(self, task: Task) -> None:
        results: list[dict[str, Any]] = task.result or []
        for result in results:
            times = result["timings_ms"]
            way = "pool" if result["from_pool"] else "live" if times["stun"] else "frozen"
            self._clones.labels(way, "made" if result["ok"] else "failed").inc()
            if result["ok"] and times["total"]:
                self._running.labels(way).observe(times["total"] / 1000)
        if stuns := [result["timings_ms"]["stun"] for result in results if result["timings_ms"]["stun"]]:
            self._stun.observe(stuns[0] / 1000)  # one for all clones of a request

    def watch(self, floor: Floor, memory: MemoryDesk) -> None:
        """Gauges from here on; once."""
        self._registry.register(_Collected(lambda: _gauges(floor, memory)))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Collected(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        """Nothing: else the registry would ask for the gauges when this is registered."""
        return []


def _gauges(floor: Floor, memory: MemoryDesk) -> Iterator[Metric]:
    rows = memory.rows()
    yield _states(floor)
    yield from _host(MemoryCounters(**total(rows)))
    yield from _vms(rows)
    sampler = memory.sampler
    yield CounterMetricFamily("ramet_memory_sampler_cpu_seconds", "Spent on measuring memory.", value=sampler.cpu_s)
    yield CounterMetricFamily("ramet_memory_readings", "Processes whose memory was measured.", value=sampler.readings)


def _states(floor: Floor) -> Metric:
    found = [live.vm.state for live in floor.machines.values() if live.vm.registered and not live.vm.provisional]
    family = GaugeMetricFamily("ramet_vms", "VMs by state; those that wait in pools are ready.", labels=["state"])
    for state in VmState:
        family.add_metric([state.value], found.count(state))
    return family


def _host(sums: MemoryCounters) -> Iterator[Metric]:
    for name in FIELDS:
        short = name.removesuffix("_bytes")
        yield GaugeMetricFamily(f"ramet_memory_{name}", _MEANINGS[short], value=getattr(sums, name))


def _vms(rows: list[MemoryRow]) -> Iterator[Metric]:
    labels = ["vm", "id", "lineage", "kind"]
    values = [(row, [row.name, row.id, row.lineage_id, row.kind.value]) for row in rows]
    for name in FIELDS:
        family = GaugeMetricFamily(f"ramet_vm_memory_{name}", _MEANINGS[name.removesuffix("_bytes")], labels=labels)
        for row, texts in values:
            family.add_metric(texts, getattr(row, name))
        yield family
    family = GaugeMetricFamily("ramet_vm_memory_measured_at_seconds", "Unix time of a VM's numbers.", labels=labels)
    for row, texts in values:
        family.add_metric(texts, row.measured_at)
    yield family
