"""Series, ratios and targets."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.bench.figures import Figures, Report, Series
from tests.unit.bench.bench_kit import report, target

VALUES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50)


@given(VALUES)
def test_a_series_is_ordered_in_itself(values: list[float]) -> None:
    series = Series.of(values)
    assert series.low <= series.median <= series.p95 <= series.high
    assert series.n == len(series.values) == len(values)
    assert series.median == pytest.approx(statistics.median(values), rel=1e-3, abs=1e-3)
    assert sum(value <= series.p95 for value in series.values) >= 0.95 * series.n
    assert series.noise >= 0


def test_one_that_is_far_off_is_no_noise() -> None:
    assert Series.of([10.0] * 20 + [1000.0]).noise == 0
    assert 0.02 < Series.of([9.0, 10.0, 11.0] * 10).noise < 0.1


def test_a_ratio_is_of_medians_and_carries_the_noise_of_both() -> None:
    figures = Figures()
    for value in (4.0, 5.0, 6.0):
        figures.add("ramet: stun", value)
        figures.add("bare: stun", 2 * value)
    found = figures.ratio("stun", "ramet: stun", "bare: stun", 1.3, aim=0.4)
    assert (found.measured, found.met, found.wanted) == (0.5, True, "≤ 1.3 × (aim 0.4)")
    assert found.noise == pytest.approx(2**0.5 * figures.of("ramet: stun").noise, abs=1e-3)
    worst = figures.ratio("stun", "ramet: stun", "bare: stun", 0.55, quantile="p95")
    assert (worst.measured, worst.met) == (0.6, False)


def test_a_limit_from_below() -> None:
    assert target(1.0, at_least=True).met
    assert not target(0.99, at_least=True).met
    assert target(0.99).met


def test_what_is_beyond_is_the_difference_of_medians() -> None:
    figures = Figures()
    figures.add_all("pyVmomi", {"returned": 38.0})
    figures.add_all("native", {"returned": 24.0})
    found = figures.beyond("more", "pyVmomi: returned", "native: returned", 20.0)
    assert (found.measured, found.wanted, found.met) == (14.0, "≤ 20 ms", True)


def test_an_absolute_target_has_its_series_unit() -> None:
    figures = Figures()
    figures.add("idle: unique", 3.0, "MiB")
    assert figures.absolute("unique", "idle: unique", 8.0).wanted == "≤ 8 MiB"


def test_a_report_survives_json() -> None:
    figures = Figures()
    figures.add("ramet: running", 12.5)
    made = report(target(0.9, noise=0.1), figures=figures)
    assert Report.model_validate_json(made.model_dump_json()) == made
