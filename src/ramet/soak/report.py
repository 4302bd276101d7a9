"""What a soak found: as data, and as text for people."""

from __future__ import annotations

from collections.abc import Iterator

from ramet.model.base import Model
from ramet.soak.growth import CERTAIN, Growth


class Sample(Model):
    """The host at rest, after so many steps or cycles."""

    at: int
    seconds: float
    """Since the soak began."""
    daemon: str
    vm: str
    """Whose lives these were."""
    values: dict[str, float]


class Problem(Model):
    step: str
    """The last that was done."""
    what: str


class Counts(Model):
    """How one kind of action went."""

    done: int = 0
    refused: int = 0
    """With a right refusal: busy, wrong state."""
    cut_off: int = 0
    """By a fault."""
    failed: int = 0


class Report(Model):
    version: str
    kind: str
    """'mixed' or 'cycles'."""
    seed: int
    steps: int
    took_s: float
    guests_checked: int
    actions: dict[str, Counts]
    faults: dict[str, int]
    problems: tuple[Problem, ...]
    growth: tuple[Growth, ...]
    samples: tuple[Sample, ...]
    log: str
    """The file of actions, which --replay takes."""

    @property
    def ok(self) -> bool:
        return not self.problems and not any(one.grows for one in self.growth)


def text(report: Report) -> Iterator[str]:
    """Lines for people."""
    yield f"{report.kind}: {report.steps} steps in {report.took_s:.0f} s, seed {report.seed}"
    yield ""
    yield f"{'action':34}{'done':>7}{'refused':>9}{'cut off':>9}{'failed':>8}"
    for name, counts in sorted(report.actions.items()):
        yield f"{name:34}{counts.done:7}{counts.refused:9}{counts.cut_off:9}{counts.failed:8}"
    yield ""
    for name, count in sorted(report.faults.items()):
        yield f"{name:34}{count:7}"
    yield f"{'guests checked':34}{report.guests_checked:7}"
    yield from _growth(report)
    yield ""
    for problem in report.problems:
        yield f"PROBLEM after {problem.step}: {problem.what}"
    yield "Nothing leaked, nothing was lost." if report.ok else "Not well."
    yield f"The actions are in {report.log}"


def _growth(report: Report) -> Iterator[str]:
    yield ""
    yield f"{'at rest':22}{'first':>10}{'last':>10}{'lowest':>10}{'highest':>10}{'trend':>10}{'may':>8}  verdict"
    for one in report.growth:
        may = "-" if one.tolerance is None else f"{one.tolerance:g}"
        verdict = "GROWS" if one.grows else "steady" if one.tolerance is not None else "not judged"
        trend = f"{one.over_run:.1f}" if one.certainty >= CERTAIN else "none"
        yield (
            f"{one.name:22}{one.first:10.0f}{one.last:10.0f}{one.lowest:10.0f}{one.highest:10.0f}"
            f"{trend:>10}{may:>8}  {verdict}"
        )
