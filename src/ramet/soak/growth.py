"""Whether something grows: by a fit over all samples of a run, not by its first and last. Pure.

The slope is the median of the slopes between all pairs of samples (Theil and Sen's): a few odd ones do not move it.
Pairs are taken inside one life only, for a daemon that was started anew starts small. A series grows when the trend is
hardly chance (Mann and Kendall's test), more than its tolerance over the whole run, and still there in the later half:
what fills up to a bound has stopped by then.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ramet.model.base import Model

WARM_UP = 0.2
"""Share of the samples that is left out at the beginning."""
FEW = 10
"""Samples with which nothing is said about memory and bytes, and counts are compared at their ends."""
CERTAIN = 2.33
"""Standard deviations: one in a hundred by chance."""


@dataclass(frozen=True)
class Point:
    at: float
    """Steps, or cycles, done until then."""
    value: float
    life: str = ""


class Growth(Model):
    """What became of one series, in its own unit."""

    name: str
    samples: int
    first: float
    last: float
    lowest: float
    highest: float
    per_100: float
    """Fitted growth in a hundred steps, or cycles."""
    over_run: float
    """Fitted, over the whole run."""
    tolerance: float | None
    """None: it is shown, and not judged."""
    certainty: float
    """Of a trend upwards, in standard deviations."""
    grows: bool


def judge(name: str, points: Sequence[Point], tolerance: float | None, *, is_count: bool = True) -> Growth | None:
    """None when there are no samples."""
    kept = points[math.floor(len(points) * WARM_UP) :] if len(points) > 2 else points
    if not kept:
        return None
    values = [point.value for point in kept]
    span = kept[-1].at - kept[0].at
    slope, certainty = fit(kept)
    grows = tolerance is not None and _grows(kept, slope * span, certainty, tolerance, is_count=is_count)
    return Growth(
        name=name, samples=len(kept), first=values[0], last=values[-1], lowest=min(values), highest=max(values),
        per_100=round(slope * 100, 3), over_run=round(slope * span, 2), tolerance=tolerance,
        certainty=round(certainty, 2), grows=grows,
    )  # fmt: skip


def _grows(kept: Sequence[Point], over_run: float, certainty: float, tolerance: float, *, is_count: bool) -> bool:
    if len(kept) < FEW:
        return is_count and kept[-1].life == kept[0].life and kept[-1].value - kept[0].value > tolerance
    if certainty < CERTAIN or over_run <= tolerance:
        return False
    later = kept[len(kept) // 2 :]
    return fit(later)[0] * (kept[-1].at - kept[0].at) > tolerance


def fit(points: Sequence[Point]) -> tuple[float, float]:
    """(Slope, certainty that it is upwards in standard deviations); nothing is known of lives with one sample."""
    pairs = [
        (a, b) for a, b in itertools.combinations(points, 2) if a.life == b.life and b.at > a.at
    ]  # fmt: skip
    if not pairs:
        return 0.0, 0.0
    slope = statistics.median((b.value - a.value) / (b.at - a.at) for a, b in pairs)
    score = sum((b.value > a.value) - (b.value < a.value) for a, b in pairs)
    lives = [sum(1 for _ in group) for _, group in itertools.groupby(sorted(point.life for point in points))]
    variance = sum(n * (n - 1) * (2 * n + 5) / 18 for n in lives)
    return slope, (score - (score > 0) + (score < 0)) / math.sqrt(variance) if variance else 0.0
