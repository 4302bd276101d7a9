"""``ramet bench``: measure clones on this host, and compare with an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli.command import command
from ramet.cli.output import Cell, Column
from ramet.cli.session import Session

if TYPE_CHECKING:
    from ramet.bench.figures import CaseResult, Change, Report, Target
    from ramet.bench.outcome import Case

_CASES = (Column("Case"), Column("What"))
_COLUMNS = (Column("What"), Column("n", right=True), Column("median", right=True), Column("95 %", right=True))
_TARGETS = (Column("To reach"), Column("Target"), Column("Measured", right=True), Column(""))
_CHANGES = (Column("Case"), Column("What"), Column("Before", right=True), Column("Now", right=True), Column(""))


def register(app: typer.Typer) -> None:
    """Put the command into `app`."""
    examples = (
        "ramet bench --quick                     # some minutes",
        "ramet bench frozen pooled",
        "ramet bench --json > before.json",
        "ramet bench --compare before.json       # exit code 1 when something became worse",
    )
    command(app, "bench", examples=examples)(bench)


def bench(
    session: Session,
    cases: Annotated[list[str] | None, typer.Argument(metavar="CASE...", help="All, if none is given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and smaller guests: some minutes.")] = False,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="FILE", help="Tell what became worse since that --json.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Only list the cases.")] = False,
) -> None:
    """Measure clones, beside what one would do by hand on the same QEMU and guest.

    With a daemon and guests of its own, of which nothing is left. Exit code 1 when a case could not be measured, or
    with --compare when something became worse.
    """
    from ramet.bench import catalogue

    chosen = catalogue.chosen(cases or ())
    if listed:
        rows = [{"name": case.name, "title": case.title} for case in chosen]
        session.show(rows, lambda: session.out.table(_CASES, [tuple(row.values()) for row in rows]))
        return
    report = _run(session, chosen, quick, compare)
    session.show(report, lambda: _show(session, report))
    if any(case.problem for case in report.cases) or any(change.worse for change in report.changes):
        raise typer.Exit(1)


def _run(session: Session, chosen: list[Case], quick: bool, compare: Path | None) -> Report:
    from ramet.bench import compare as comparing
    from ramet.bench import runner
    from ramet.cli.demo_stage import ending_signals

    before = comparing.read_report(compare) if compare is not None else None  # before an hour is spent
    with ending_signals():
        report = runner.run(chosen, session.out.note, quick=quick)
    if before is None:
        return report
    return report.model_copy(update={"changes": comparing.compare(before, report)})


def _show(session: Session, report: Report) -> None:
    out, facts = session.out, report.facts
    out.line(
        f"{facts.cores} x {facts.processor}, {facts.memory_mib} MiB, Linux {facts.kernel}, QEMU {facts.qemu_version} "
        f"({facts.accelerator}), load {facts.load_before:.1f} to {facts.load_after:.1f}"
    )
    if facts.command_line_ms is not None:
        out.line(f"The command line's own start and end: {facts.command_line_ms:.0f} ms, in no figure below.")
    for case in report.cases:
        _show_case(session, case)
    if report.changes:
        out.line("")
        out.table(_CHANGES, [_change(change) for change in report.changes])


def _show_case(session: Session, case: CaseResult) -> None:
    out = session.out
    out.line("")
    out.line(Cell(f"{case.case}: {case.title}", "bold"), f" ({case.guest})" if case.guest else "")
    if case.problem:
        out.warn(case.problem)
    rows = [(what, str(s.n), number(s.median, s.unit), number(s.p95, s.unit)) for what, s in case.series.items()]
    out.table(_COLUMNS, rows)
    if case.targets:
        out.line("")
        out.table(_TARGETS, [_target(target) for target in case.targets])
    for note in case.notes:
        out.line(Cell(note, "dim"))


def _target(target: Target) -> tuple[Cell | str, ...]:
    verdict = Cell("met", "green") if target.met else Cell("not met", "bold red")
    return target.name, target.wanted, number(target.measured, target.unit), verdict


def _change(change: Change) -> tuple[Cell | str, ...]:
    verdict = Cell("worse", "bold red") if change.worse else Cell(f"within {change.tolerance:.0%}, or better", "dim")
    return change.case, change.name, number(change.before, change.unit), number(change.now, change.unit), verdict


def number(value: float, unit: str) -> str:
    """Three digits that matter, and the unit."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f} {unit}"
