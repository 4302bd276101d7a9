"""What a bench finds: series of numbers, and targets, which are ratios of medians of one run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import Field

from ramet.model.base import Model

FORMAT = 1
MAX_TOLERANCE = 0.5
"""A difference of more than this is worse, however noisy the runs were."""
MIN_TOLERANCE = 0.1
_SIGMA_OF_MAD = 1.4826
"""The median of absolute deviations times this is the standard deviation of a normal distribution."""
_MEDIAN_TO_MEAN = 1.2533
"""A median's standard error is that of a mean times this."""


class Series(Model):
    """Values of one kind, in the order in which they were measured."""

    unit: str = "ms"
    n: int
    median: float
    p95: float
    """The smallest value that 95 % of all do not exceed (nearest rank)."""
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float], unit: str = "ms") -> Self:
        """At least one value."""
        kept = tuple(round(value, 4) for value in values)
        ordered = sorted(kept)
        return cls(
            unit=unit,
            n=len(kept),
            median=statistics.median(ordered),
            p95=ordered[math.ceil(0.95 * len(ordered)) - 1],
            low=ordered[0],
            high=ordered[-1],
            values=kept,
        )

    @property
    def noise(self) -> float:
        """The median's standard error, as a part of it: robust against a few that are far off."""
        if self.n < 2 or self.median <= 0:
            return 0.0
        deviation = statistics.median(abs(value - self.median) for value in self.values) * _SIGMA_OF_MAD
        return deviation * _MEDIAN_TO_MEAN / math.sqrt(self.n) / self.median


class Target(Model):
    """What is to be reached, and what was."""

    name: str
    limit: float
    aim: float | None = None
    """Better than the limit, and worth having."""
    measured: float
    unit: str = "×"
    at_least: bool = False
    """The limit is to be reached, not kept below."""
    noise: float = 0.0
    """Standard error of `measured`, as a part of it."""

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    @property
    def wanted(self) -> str:
        """As it is written: '≤ 1.3 ×'."""
        text = f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}".strip()
        return text if self.aim is None else f"{text} (aim {self.aim:g})"


class CaseResult(Model):
    """One case as it was measured."""

    case: str
    title: str
    guest: str
    series: dict[str, Series] = Field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()
    took_s: float = 0.0
    problem: str | None = None
    """Why it could not be measured to its end."""


class Facts(Model):
    """Where and on what it was measured."""

    version: str
    cores: int
    processor: str
    kernel: str
    memory_mib: int
    qemu_version: str
    accelerator: str
    load_before: float
    """Of the last minute, before the bench began."""
    load_after: float
    command_line_ms: float | None = None
    """What the command line adds to a call of the API: its own start and end."""


class Change(Model):
    """One target of two runs."""

    case: str
    name: str
    before: float
    now: float
    tolerance: float
    """What part of `before` is taken for noise."""
    worse: bool
    unit: str = "×"


class Report(Model):
    """A whole run; what ``--json`` prints and ``--compare`` reads."""

    format: int = FORMAT
    at: float
    """Unix time of its begin."""
    quick: bool
    facts: Facts
    cases: tuple[CaseResult, ...]
    changes: tuple[Change, ...] = ()
    """Compared with an earlier run, where one was given."""


class Figures:
    """Collects the values of a case, by what they are."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._units: dict[str, str] = {}

    def add(self, what: str, value: float, unit: str = "ms") -> None:
        self._values.setdefault(what, []).append(value)
        self._units[what] = unit

    def add_all(self, who: str, times_ms: Mapping[str, float]) -> None:
        """Milliseconds by step: 'ramet' and {'stun': 5} is 'ramet: stun'."""
        for step, value in times_ms.items():
            self.add(f"{who}: {step}", value)

    def of(self, what: str) -> Series:
        return Series.of(self._values[what], self._units[what])

    def series(self) -> dict[str, Series]:
        return {what: self.of(what) for what in self._values}

    def ratio(self, name: str, over: str, under: str, limit: float, **more: Any) -> Target:
        """Median by median; with ``quantile='p95'`` the former's 95th percentile by the latter's median."""
        quantile = more.pop("quantile", "median")
        above, below = self.of(over), self.of(under)
        measured = getattr(above, quantile) / below.median if below.median else math.inf
        noise = math.hypot(above.noise, below.noise)
        return Target(name=name, limit=limit, measured=round(measured, 4), noise=round(noise, 4), **more)

    def beyond(self, name: str, over: str, under: str, limit: float, **more: Any) -> Target:
        """How much more the one median is than the other, in its unit."""
        above, below = self.of(over), self.of(under)
        noise = math.hypot(above.noise, below.noise)
        measured = round(above.median - below.median, 4)
        return Target(name=name, limit=limit, measured=measured, noise=round(noise, 4), unit=above.unit, **more)

    def absolute(self, name: str, what: str, limit: float, **more: Any) -> Target:
        """The median itself, in its unit."""
        found = self.of(what)
        more.setdefault("unit", found.unit)
        return Target(name=name, limit=limit, measured=round(found.median, 4), noise=round(found.noise, 4), **more)
