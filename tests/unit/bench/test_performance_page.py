"""The page and the pictures that are made of a report."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tools import performance

from ramet.bench.catalogue import CASES
from ramet.bench.figures import Figures
from tests.unit.bench.bench_kit import report, target


def frozen() -> Figures:
    figures = Figures()
    for name in performance.CHARTED["frozen"][1]:
        for value in (40.0, 50.0, 60.0):
            figures.add(name, value)
    return figures


def test_marked_blocks_are_written_anew_and_nothing_else() -> None:
    page = "Words.\n<!-- measured: frozen -->\nold\n<!-- end -->\nMore.\n<!-- measured: burst -->\nkept\n<!-- end -->\n"
    made = performance.rewritten(page, report(target(0.5), figures=frozen()))
    assert "old" not in made
    assert "| ramet: running | 3 | 50.0 ms | 60.0 ms | 40.0 ms | 60.0 ms |" in made
    assert made.startswith("Words.\n")
    assert "<!-- measured: burst -->\nkept\n<!-- end -->\n" in made
    assert performance.rewritten(made, report(target(0.5), figures=frozen())) == made


def test_the_table_of_targets_says_which_are_missed() -> None:
    rows = performance.targets(report(target(0.5, name="good"), target(1.5, name="bad"))).splitlines()
    assert rows[2] == "| `frozen` | good | ≤ 1 × | 0.500 × | met |"
    assert rows[3].endswith("| **not met** |")


def test_of_several_reports_the_last_that_has_a_case_counts() -> None:
    first, second = report(target(1.0), case="frozen"), report(target(2.0), case="stun")
    third = report(target(3.0), case="frozen")
    made = performance.merged([first, second, third])
    assert [(case.case, case.targets[0].measured) for case in made.cases] == [("stun", 2.0), ("frozen", 3.0)]


def test_a_case_without_result_says_why() -> None:
    assert "QEMU is gone." in performance.targets(report(problem="QEMU is gone."))


@pytest.mark.parametrize("picture", [*performance.charts(report(figures=frozen())).values()])
def test_pictures_are_svg(picture: str) -> None:
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg")
    assert "ramet: running" in picture


def test_a_row_of_stuns_becomes_a_line() -> None:
    figures = Figures()
    for value in (10.0, 12.0, 11.0):
        figures.add("ramet: stun", value)
    made = performance.charts(report(case="fifty", figures=figures))
    assert set(made) == {"fifty"}
    assert len(re.findall(r"[\d.]+,[\d.]+", made["fifty"])) == 3


def test_the_page_has_a_place_for_every_case() -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    places = set(re.findall(r"<!-- measured: ([\w-]+) -->", page))
    assert places == {"machine", "targets", *(case.name for case in CASES)}


def test_the_pictures_on_the_page_are_there() -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    shown: list[Path] = [performance.PAGE.parent / name for name in re.findall(r"\]\((performance/\S+\.svg)\)", page)]
    assert shown
    assert [path.name for path in shown if not path.is_file()] == []
