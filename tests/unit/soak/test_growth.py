"""What is called growth, and what is not."""

from __future__ import annotations

import random

import pytest

from ramet.soak.growth import Point, fit, judge


def points(values: list[float], lives: list[str] | None = None) -> list[Point]:
    return [Point(number * 10, value, lives[number] if lives else "") for number, value in enumerate(values)]


def test_the_slope_is_that_of_a_line() -> None:
    slope, certainty = fit(points([5 + 0.5 * n for n in range(20)]))
    assert slope == pytest.approx(0.05)
    assert certainty > 4


def test_a_leak_under_noise_grows() -> None:
    noise = random.Random(1)
    found = judge("x", points([100 + n + noise.uniform(-4, 4) for n in range(40)]), 10)
    assert found is not None
    assert found.grows
    assert 25 < found.over_run < 40


def test_noise_does_not_grow() -> None:
    for seed in range(20):
        noise = random.Random(seed)
        found = judge("x", points([100 + noise.uniform(-10, 10) for _ in range(40)]), 3)
        assert found is not None
        assert not found.grows


def test_what_fills_up_to_a_bound_does_not_grow() -> None:
    found = judge("x", points([min(50.0, n * 5.0) for n in range(40)]), 2)
    assert found is not None
    assert not found.grows


def test_one_odd_sample_at_the_end_does_not_grow() -> None:
    found = judge("x", points([*[10.0] * 29, 500.0]), 1)
    assert found is not None
    assert found.highest == 500
    assert not found.grows


def test_a_sawtooth_does_not_grow() -> None:
    found = judge("x", points([n % 5 for n in range(41)]), 2)
    assert found is not None
    assert not found.grows


def test_a_leak_in_each_of_several_lives_grows_and_what_differs_between_them_does_not() -> None:
    lives = [str(n // 10) for n in range(40)]
    leaks = judge("x", points([100 - 40 * (n // 10) + n % 10 for n in range(40)], lives), 5)
    steps = judge("x", points([100 + 40 * (n // 10) for n in range(40)], lives), 5)
    assert leaks is not None
    assert leaks.grows
    assert steps is not None
    assert not steps.grows


def test_of_few_samples_only_counts_are_judged() -> None:
    few = points([1, 2, 3, 9])
    counts, sizes = judge("x", few, 5), judge("x", few, 5, is_count=False)
    assert counts is not None
    assert counts.grows
    assert sizes is not None
    assert not sizes.grows


def test_what_is_not_judged_does_not_grow() -> None:
    found = judge("x", points([n * 1000 for n in range(40)]), None)
    assert found is not None
    assert found.over_run > 30_000
    assert not found.grows


def test_nothing_is_said_of_no_samples() -> None:
    assert judge("x", [], 1) is None
    assert fit(points([1.0])) == (0.0, 0.0)
