"""Metrics: counted from tasks, gauged from the ledger, in a text that Prometheus reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from ramet.host.metrics import Metrics
from ramet.model.host import Task, TaskState
from ramet.model.machine import VmState
from ramet.model.memory import MemoryRow
from ramet.model.views import CloneResult, CloneTimings

ROW = MemoryRow(
    id="1", name='we"b', lineage_id="1", measured_at=5.0, resident_bytes=100, unique_bytes=60, saved_bytes=20
)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """By name, and the values of labels in the order of their names."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def clone_task(*results: CloneResult) -> Task:
    return Task(kind="clone", target="a", state=TaskState.SUCCESS, result=[r.model_dump(mode="json") for r in results])


def result(stun: float, total: float, *, ok: bool = True, from_pool: bool = False) -> CloneResult:
    times = CloneTimings(stun=stun, total=total)
    return CloneResult(name="a", id="a", task="t", timings_ms=times, ok=ok, from_pool=from_pool)


def test_clones_are_counted_by_how_they_were_made_and_stuns_once_for_a_request() -> None:
    metrics = Metrics()
    metrics.note_task(clone_task(result(15, 200), result(15, 300)))
    metrics.note_task(clone_task(result(0, 8, from_pool=True), result(0, 0, ok=False)))
    metrics.note_task(Task(kind="clone", target="a", state=TaskState.ERROR))
    found = samples(metrics)
    assert found["ramet_clones_total", "made", "live"] == 2
    assert found["ramet_clones_total", "made", "pool"] == 1
    assert found["ramet_clones_total", "failed", "frozen"] == 1
    assert found["ramet_stun_seconds_count",] == 1
    assert found["ramet_stun_seconds_bucket", "0.02"] == 1
    assert found["ramet_clone_running_seconds_bucket", "0.01", "pool"] == 1
    assert found["ramet_tasks_total", "clone", "error"] == 1


def test_a_freeze_is_a_stun() -> None:
    metrics = Metrics()
    stun = {"total_ms": 12.0}
    metrics.note_task(Task(kind="vm.freeze", target="a", state=TaskState.SUCCESS, result={"stun": stun}))
    assert samples(metrics)["ramet_stun_seconds_sum",] == 0.012


def test_gauges_are_those_of_the_ledger() -> None:
    metrics = Metrics()
    lives = {"1": SimpleNamespace(vm=SimpleNamespace(state=VmState.RUNNING, registered=True, provisional=False))}
    memory = SimpleNamespace(
        rows=lambda: [ROW, ROW.changed(id="2", name="b")], sampler=SimpleNamespace(cpu_s=1.5, readings=7)
    )
    metrics.watch(cast("Any", SimpleNamespace(machines=lives)), cast("Any", memory))
    found = samples(metrics)
    assert found["ramet_vms", "running"] == 1
    assert found["ramet_vms", "off"] == 0
    assert found["ramet_memory_resident_bytes",] == 200
    assert found["ramet_vm_memory_unique_bytes", "1", "vm", "1", 'we"b'] == 60
    assert found["ramet_vm_memory_measured_at_seconds", "2", "vm", "1", "b"] == 5
    assert found["ramet_memory_sampler_cpu_seconds_total",] == 1.5
