"""What counts as worse, and files that are no reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.bench.compare import compare, read_report
from ramet.bench.figures import MAX_TOLERANCE, Report
from ramet.errors import DamagedError, NotFoundError
from tests.unit.bench.bench_kit import report, target


def is_worse(before: Report, now: Report) -> bool:
    (change,) = compare(before, now)
    return change.worse


@pytest.mark.parametrize(
    ("before", "now", "worse"), [(1.0, 1.05, False), (1.0, 1.2, True), (1.0, 0.5, False), (0.05, 0.06, True)]
)
def test_a_ratio_that_grew_is_worse(before: float, now: float, worse: bool) -> None:
    assert is_worse(report(target(before)), report(target(now))) is worse


def test_where_more_is_better_less_is_worse() -> None:
    assert is_worse(report(target(1.0, at_least=True)), report(target(0.8, at_least=True)))
    assert not is_worse(report(target(1.0, at_least=True)), report(target(1.4, at_least=True)))


def test_noise_is_no_regression_but_does_not_excuse_everything() -> None:
    noisy = report(target(1.0, noise=0.1))
    assert not is_worse(noisy, report(target(1.3, noise=0.1)))
    assert is_worse(noisy, report(target(1.6, noise=5.0)))


@given(st.floats(0.01, 100), st.floats(0, 1), st.floats(0, 1))
def test_a_run_is_not_worse_than_itself(measured: float, noise: float, other: float) -> None:
    same = report(target(measured, noise=noise))
    assert not is_worse(same, same)
    (change,) = compare(same, report(target(measured, noise=other)))
    assert change.tolerance <= MAX_TOLERANCE


def test_only_what_both_have_is_compared() -> None:
    assert compare(report(target(1.0, name="a")), report(target(2.0, name="b"))) == ()
    assert compare(report(target(1.0), case="frozen"), report(target(2.0), case="pooled")) == ()


def test_a_file_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    with pytest.raises(NotFoundError, match="There is no file"):
        read_report(path)
    for text in ("", "[]", '{"format": 1}'):
        path.write_text(text)
        with pytest.raises(DamagedError, match="is no report"):
            read_report(path)
    made = report(target(1.0))
    path.write_text(made.model_copy(update={"format": 99}).model_dump_json())
    with pytest.raises(DamagedError, match="another version"):
        read_report(path)
    path.write_text(made.model_dump_json())
    assert read_report(path) == made
