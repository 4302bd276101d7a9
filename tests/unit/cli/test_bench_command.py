"""``ramet bench`` without measuring: which cases, what is shown, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ramet.bench import catalogue, runner
from ramet.bench.figures import Figures, Report
from ramet.bench.outcome import Case
from tests.unit.bench.bench_kit import report, target
from tests.unit.cli.cli_kit import FakeClient, run


def measured(ratio: float, problem: str | None = None) -> Report:
    figures = Figures()
    figures.add("ramet: running", 61.25)
    return report(target(ratio), figures=figures, problem=problem)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """What the next run measures; put it there."""
    reports: list[Report] = []

    def instead(cases: list[Case], tell: object, *, quick: bool) -> Report:
        return reports.pop()

    monkeypatch.setattr(runner, "run", instead)
    return reports


def test_the_table_says_what_was_measured_and_whether_it_is_enough(found: list[Report]) -> None:
    found.append(measured(1.2))
    result = run(FakeClient(), "bench", "frozen")
    assert result.exit_code == 0
    assert "61.2 ms" in result.stdout
    assert "not met" in result.stdout
    assert "2 x Some CPU" in result.stdout


def test_worse_than_before_is_exit_code_1(found: list[Report], tmp_path: Path) -> None:
    before = tmp_path / "before.json"
    found += [measured(1.5), measured(1.0)]
    before.write_text(run(FakeClient(), "bench", "--json").stdout)
    result = run(FakeClient(), "bench", "--compare", str(before), "--json")
    assert result.exit_code == 1
    (change,) = json.loads(result.stdout)["changes"]
    assert change["worse"]


def test_the_same_as_before_is_well(found: list[Report], tmp_path: Path) -> None:
    before = tmp_path / "before.json"
    before.write_text(measured(1.0).model_dump_json())
    found.append(measured(1.05))
    assert run(FakeClient(), "bench", "--compare", str(before)).exit_code == 0


def test_a_case_that_failed_is_exit_code_1(found: list[Report]) -> None:
    found.append(measured(1.0, problem="QEMU refused cont."))
    result = run(FakeClient(), "bench")
    assert result.exit_code == 1
    assert "QEMU refused cont." in result.stderr


def test_a_case_that_does_not_exist(found: list[Report]) -> None:
    result = run(FakeClient(), "bench", "frozn")
    assert result.exit_code == 2
    assert "Did you mean 'frozen'?" in result.stderr


def test_a_file_that_is_missing_is_told_before_anything_is_measured() -> None:
    result = run(FakeClient(), "bench", "--compare", "/nowhere/before.json")
    assert result.exit_code == 1
    assert "There is no file" in result.stderr


def test_the_cases_are_listed() -> None:
    result = run(FakeClient(), "bench", "--list", "--json")
    assert [row["name"] for row in json.loads(result.stdout)] == [case.name for case in catalogue.CASES]
