"""What is printed, where, and in which form."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.cli.output import Branch, Cell, Column, Output, as_data, clean, duration, millis, size
from tests.unit.cli.cli_kit import vm_view

COLUMNS = (Column("name"), Column("size", right=True))


def output(terminal: bool = False, width: int = 60, **options: bool) -> tuple[Output, io.StringIO, io.StringIO]:
    stdout, stderr = io.StringIO(), io.StringIO()
    return Output(terminal=terminal, width=width, stdout=stdout, stderr=stderr, **options), stdout, stderr


@given(st.text())
def test_cleaned_text_is_one_printable_line(text: str) -> None:
    assert clean(text).isprintable()
    assert clean(text) == text or not text.isprintable()


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_plain_tables_have_a_line_a_row_and_align(rows: list[tuple[str, str]]) -> None:
    out, stdout, _ = output()
    out.table(COLUMNS, rows)
    lines = stdout.getvalue().split("\n")
    assert len(lines) == len(rows) + 2
    assert all(line.endswith(clean(right).rstrip()) for line, (_, right) in zip(lines[1:], rows, strict=False))


def test_a_long_row_is_cut_on_no_pipe() -> None:
    out, stdout, _ = output(width=20)
    out.table(COLUMNS, [("x" * 500, "1")])
    out.line("y" * 500)
    assert "x" * 500 in stdout.getvalue()
    assert "y" * 500 in stdout.getvalue()


def test_a_table_on_a_narrow_terminal_loses_nothing() -> None:
    out, stdout, _ = output(terminal=True, width=30)
    out.table(COLUMNS, [("abcdefghij" * 5, "1 GiB")])
    assert stdout.getvalue().count("j") >= 5


def test_markup_in_a_name_is_text() -> None:
    out, stdout, _ = output(terminal=True)
    out.table(COLUMNS, [("[red]name[/]", "1")])
    out.line("[bold]x[/]")
    assert "[red]name[/]" in stdout.getvalue()
    assert "[bold]x[/]" in stdout.getvalue()


def test_facts_align_and_leave_out_what_is_unknown() -> None:
    out, stdout, _ = output()
    out.facts([("id", "1"), ("nothing", ""), ("longer", [Cell("a", "bold"), "b"])])
    assert stdout.getvalue() == "id      1\nlonger  ab\n"


def test_trees() -> None:
    branches = [Branch("a", [Branch("b", [Branch("c")]), Branch("d")]), Branch("e")]
    out, stdout, _ = output()
    out.tree(branches)
    assert stdout.getvalue() == "a\n  b\n    c\n  d\ne\n"


def test_trees_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")  # no styles at all
    out, stdout, _ = output(terminal=True)
    out.tree([Branch("a", [Branch("b", [Branch("c")]), Branch("d")])])
    assert stdout.getvalue() == "a\n├─ b\n│  └─ c\n└─ d\n"


def test_grids_go_on_below_their_last_column() -> None:
    out, stdout, _ = output()
    out.grid([(["a"], ["bb"], ["x\ny\x1b"]), (["ccc"], ["d"], ["z"])], indent=1)
    assert stdout.getvalue() == " a    bb  x\n          y\\x1b\n ccc  d   z\n"
    out.grid([])


def test_grids_wrap_inside_their_last_column_on_a_terminal() -> None:
    out, stdout, _ = output(terminal=True, width=20)
    out.grid([(["a"], ["word " * 6])])
    assert [line.rstrip() for line in stdout.getvalue().splitlines()] == ["a  word word word", "   word word word"]


def test_json_is_data_and_nothing_else() -> None:
    out, stdout, stderr = output(as_json=True)
    out.say("done")
    out.note("by the way")
    out.json({"vm": vm_view("web"), "list": (1, 2)})
    assert json.loads(stdout.getvalue())["vm"]["name"] == "web"
    assert stderr.getvalue() == ""


def test_errors_are_told_even_when_quiet() -> None:
    out, stdout, stderr = output(quiet=True, as_json=True)
    out.warn("careful")
    out.error("It failed.", "Try again.")
    assert stderr.getvalue() == "warning: careful\nerror: It failed.\nhint: Try again.\n"
    assert stdout.getvalue() == ""


def test_raw_bytes_pass_unchanged() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer)
    Output(terminal=False, stdout=stream, stderr=stream).raw(b"\x1b[31m\xff\x00")
    assert buffer.getvalue() == b"\x1b[31m\xff\x00"


def test_as_data_of_containers() -> None:
    assert as_data([{"a": (1, "x")}]) == [{"a": [1, "x"]}]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 ms"), (9.94, "9.9 ms"), (12.4, "12 ms"), (999, "999 ms"), (1400, "1.4 s"), (75_000, "1 min 15 s")],
)
def test_millis(value: float, text: str) -> None:
    assert millis(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (-5, "0 s"), (59, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (90_000, "1 d 1 h"), (86_400, "1 d")],
)
def test_duration(value: float, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (3 << 40, "3.0 TiB")],
)
def test_size(value: float | None, text: str) -> None:
    assert size(value) == text
