"""The PerformanceManager: counters of VMs and of the host, in real time: every 20 seconds, for an hour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.faults import fault
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.inventory.shape import utc
from ramet.vsphere.managers.counters import COUNTERS, NONE, Counter, by_key, place_of
from ramet.vsphere.managers.sampling import INTERVAL_S, KEPT, Samples, Series
from ramet.vsphere.types import Support, is_a, vim, vmodl

MOID = "PerfMgr"
MOST_QUERIES = 1000
"""In one call."""


class PerformanceManager(Mo):
    wire = vim.PerformanceManager

    @property
    def _series(self) -> Series:
        return self.world.part(Series)

    @prop("perfCounter")
    def get_counters(self) -> list[Any]:
        return [counter.info() for counter in COUNTERS]

    @prop("historicalInterval")
    def get_intervals(self) -> list[Any]:
        """None: the last hour is all that is kept."""
        return []

    @prop("description")
    def get_description(self) -> Any:
        kinds = vim.PerformanceManager.CounterInfo
        return vim.PerformanceDescription(
            counterType=[_element(str(name)) for name in kinds.RollupType.values],
            statsType=[_element(str(name)) for name in kinds.StatsType.values],
        )

    @operation("QueryPerfProviderSummary")
    async def provider(self, call: Call, entity: Any) -> Any:
        mo = self._provider(call, entity)
        return vim.PerformanceManager.ProviderSummary(
            entity=mo.ref, currentSupported=True, summarySupported=False, refreshRate=INTERVAL_S
        )

    @operation("QueryAvailablePerfMetric")
    async def available(
        self, call: Call, entity: Any, beginTime: Any = None, endTime: Any = None, intervalId: int | None = None
    ) -> list[Any]:
        mo = self._provider(call, entity)
        samples = self._series.of(mo.moid)
        if samples is None or not samples.kept or intervalId not in (None, INTERVAL_S):
            return []
        latest = samples.kept[-1][1]
        return [_metric(counter) for counter in COUNTERS if latest[place_of(counter.key)] != NONE]

    @operation("QueryPerfCounter")
    async def counters(self, call: Call, counterId: Sequence[int]) -> list[Any]:
        return [self._counter(key).info() for key in counterId]

    @operation("QueryPerfCounterByLevel")
    async def counters_by_level(self, call: Call, level: int) -> list[Any]:
        return [counter.info() for counter in COUNTERS if counter.level <= level]

    @operation("QueryPerf")
    async def query(self, call: Call, querySpec: Sequence[Any]) -> list[Any]:
        if len(querySpec) > MOST_QUERIES:
            raise fault(
                vmodl.fault.InvalidArgument, f"Ask at most {MOST_QUERIES} at a time.", invalidProperty="querySpec"
            )
        answers = (self._answer(call, spec) for spec in querySpec)
        return [answer for answer in answers if answer is not None]

    @operation("QueryPerfComposite")
    async def composite(self, call: Call, querySpec: Any) -> Any:
        return vim.PerformanceManager.CompositeEntityMetric(entity=self._answer(call, querySpec), childEntity=[])

    def _provider(self, call: Call, entity: Any) -> Mo:
        mo = self.world.find(entity._moId, call)
        if not (is_a(mo.wire, vim.VirtualMachine) or is_a(mo.wire, vim.HostSystem)):
            raise fault(
                vmodl.fault.InvalidArgument, "There are counters of VMs and of the host.", invalidProperty="entity"
            )
        return mo

    def _counter(self, key: int) -> Counter:
        counter = by_key(key)
        if counter is None:
            raise fault(vmodl.fault.InvalidArgument, f"There is no counter {key}.", invalidProperty="counterId")
        return counter

    def _answer(self, call: Call, spec: Any) -> Any:
        """None when nothing is known of the entity."""
        mo = self._provider(call, spec.entity)
        asked = self._asked(spec.metricId)
        samples = self._series.of(mo.moid)
        chosen = _chosen(samples, spec) if samples is not None else []
        if not chosen:
            return None
        return _as_csv(mo, asked, chosen) if spec.format == "csv" else _as_numbers(mo, asked, chosen)

    def _asked(self, metrics: Iterable[Any] | None) -> list[Counter]:
        """By default all. Values of single devices are not kept: only sums have an answer."""
        if not metrics:
            return list(COUNTERS)
        whole = [one for one in metrics if one.instance in ("", "*", None)]
        return [self._counter(one.counterId) for one in whole]


Chosen = list[tuple[float, Any]]


def _chosen(samples: Samples, spec: Any) -> Chosen:
    if spec.intervalId not in (None, INTERVAL_S):
        return []
    since = _unix(spec.startTime, float("-inf"))
    until = _unix(spec.endTime, float("inf"))
    found = [(at, values) for at, values in samples.kept if since < at <= until]
    most = spec.maxSample if spec.maxSample is not None and spec.maxSample > 0 else KEPT
    return found[-most:]


def _unix(moment: datetime | None, default: float) -> float:
    return default if moment is None else moment.timestamp()


def _as_numbers(mo: Mo, asked: list[Counter], chosen: Chosen) -> Any:
    kind = vim.PerformanceManager
    series = [
        kind.IntSeries(id=_metric(counter), value=[Support.long(value) for value in values])
        for counter, values in _known(asked, chosen)
    ]
    info = [kind.SampleInfo(timestamp=utc(at), interval=INTERVAL_S) for at, _ in chosen]
    return kind.EntityMetric(entity=mo.ref, sampleInfo=info, value=series)


def _as_csv(mo: Mo, asked: list[Counter], chosen: Chosen) -> Any:
    kind = vim.PerformanceManager
    series = [
        kind.MetricSeriesCSV(id=_metric(counter), value=",".join(map(str, values)))
        for counter, values in _known(asked, chosen)
    ]
    times = ",".join(f"{INTERVAL_S},{utc(at).strftime('%Y-%m-%dT%H:%M:%SZ')}" for at, _ in chosen)
    return kind.EntityMetricCSV(entity=mo.ref, sampleInfoCSV=times, value=series)


def _known(asked: list[Counter], chosen: Chosen) -> Iterable[tuple[Counter, list[int]]]:
    """What could be read; a value that is missing in a series that has others is -1, as the API has it."""
    for counter in asked:
        values = [int(numbers[place_of(counter.key)]) for _, numbers in chosen]
        if any(value != NONE for value in values):
            yield counter, values


def _metric(counter: Counter) -> Any:
    return vim.PerformanceManager.MetricId(counterId=counter.key, instance="")


def _element(key: str) -> Any:
    return vim.ElementDescription(key=key, label=key, summary=key)
