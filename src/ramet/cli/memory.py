"""``ramet memory``: who holds how much memory, what is shared, and what all of it costs the host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ramet.cli import complete
from ramet.cli.command import command
from ramet.cli.output import Cell, Column, Output, duration, size
from ramet.cli.session import Session

if TYPE_CHECKING:
    from ramet.model.memory import HostMemory, MemoryCounters, MemoryHistory, MemoryPoint, MemoryRow

WATCH_S = 2.0
_BARS = "▁▂▃▄▅▆▇█"
_ROWS = 20
"""Of a history's table: the last so many, and evenly those before."""


def register(app: typer.Typer) -> None:
    """Put the commands of this file into `app`."""
    command(
        app,
        "memory",
        examples=(
            "ramet memory",
            "ramet memory web --now               # measured now",
            "ramet memory --watch",
            "ramet memory --history web           # the last hour",
            "ramet memory --json | jq .totals",
        ),
    )(memory)


def memory(
    session: Session,
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="VM...", help="Only these, with their lineages.", autocompletion=complete.vms),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every 2 seconds, until Ctrl-C.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Measure all of it now, rather than in turn.")] = False,
    history: Annotated[bool, typer.Option("--history", help="What it was before: of one VM, or of the host.")] = False,
    day: Annotated[bool, typer.Option("--day", help="With --history: the last day, not the last hour.")] = False,
) -> None:
    """Show who holds how much memory: every VM that is on, by lineage, and the sums that the host really gives.

    RESIDENT is the guest memory that is there: UNIQUE pages and SHARED ones. COMMON is what the shared pages take,
    SAVED what sharing spares. OVERHEAD is QEMU itself, TABLES its page tables. SPENT is what the host gives: UNIQUE,
    COMMON, OVERHEAD and TABLES. AGE tells how long ago a row was measured. With --json and --watch, one object a line.
    """
    names = [session.vm(ref) for ref in vms or ()]
    _check(names, watch, now, history, day)
    if history:
        found = session.client.memory_history(names[0] if names else None, "day" if day else "hour")
        session.show(found, lambda: _history(session.out, found))
    elif watch:
        _watch(session, names, now)
    else:
        view = session.client.memory(names, now)
        session.show(view, lambda: _table(session.out, view))


def _check(names: Sequence[str], watch: bool, now: bool, history: bool, day: bool) -> None:
    from ramet.errors import UsageError

    if history and (watch or now):
        raise UsageError("--history goes with neither --watch nor --now.")
    if history and len(names) > 1:
        raise UsageError("--history is of one VM, or of the host.", hint="Ask for one after the other.")
    if day and not history:
        raise UsageError("--day belongs to --history.")


def _watch(session: Session, names: Sequence[str], now: bool) -> None:
    while True:
        view = session.client.memory(names, now)
        if session.out.as_json:
            session.out.json(view, one_line=True)
        else:
            if session.out.terminal:
                session.out.console().clear()
            _table(session.out, view)
            if not session.out.terminal:
                session.out.line("")
        time.sleep(WATCH_S)


_COUNTERS = ("configured", "resident", "unique", "shared", "common", "saved", "overhead", "page_tables", "spent")
_NARROW = ("resident", "unique", "common", "saved", "spent")
"""What is left of them on a terminal that is not wide enough for all."""
_WIDE = 120
_TITLES = {"page_tables": "tables"}


def _table(out: Output, view: HostMemory) -> None:
    names = _NARROW if out.terminal and out.console().width < _WIDE else _COUNTERS
    columns = [Column("name"), Column("kind", style="dim")]
    columns += [Column(_TITLES.get(name, name), right=True) for name in names]
    columns.append(Column("age", right=True, style="dim"))
    if out.quiet:
        out.table(columns, [_row(row, names, view.at) for row in view.rows])
        return
    out.table(columns, _rows(view, names), empty="No VM is on.")
    if view.unread:
        out.note(f"{view.unread} not measured yet: they are in no sum. Measure all now: ramet memory --now")


def _rows(view: HostMemory, names: Sequence[str]) -> list[list[Cell | str]]:
    """Each lineage's processes, and its sum where there are several; in the end the host's."""
    rows: list[list[Cell | str]] = []
    for lineage in view.lineages:
        members = [row for row in view.rows if row.lineage_id == lineage.id]
        rows += [_row(row, names, view.at) for row in members]
        if lineage.processes > 1:
            rows.append(_sum(f"lineage of {lineage.name}", f"{lineage.processes}", _cells(lineage, names), "cyan"))
    if len(view.rows) > 1 and len(view.rows) == sum(lineage.processes for lineage in view.lineages):
        rows.append(_sum("all", f"{len(view.rows)}", _cells(view.totals, names), "bold"))
    return rows


def _row(row: MemoryRow, names: Sequence[str], now: float) -> list[Cell | str]:
    return [Cell(row.name, "bold"), row.kind.value, *_cells(row, names), duration(now - row.measured_at)]


def _sum(name: str, count: str, texts: Sequence[str], style: str) -> list[Cell | str]:
    return [Cell(name, style), count, *(Cell(text, style) for text in texts), ""]


def _cells(counters: MemoryCounters, names: Sequence[str]) -> list[str]:
    return [size(getattr(counters, f"{name}_bytes")) for name in names]


# -- history -------------------------------------------------------------------------------------------------------


def _history(out: Output, found: MemoryHistory) -> None:
    from ramet.cli.render import clock

    if not found.points:
        out.note(f"Nothing is remembered of {found.name} yet: it is noted every {duration(found.every_s)}.")
        return
    spent = [point.spent_bytes for point in found.points]
    drawn = f"{size(min(spent))} {sparkline(spent)} {size(max(spent))}"
    out.facts([("of", found.name), ("since", clock(found.points[0].at)), ("spent", drawn)])
    columns = [Column("at", style="dim")]
    columns += [Column(name, right=True) for name in ("resident", "unique", "common", "saved", "overhead", "spent")]
    out.table(columns, [_point(point) for point in _picked(found.points)])


def _point(point: MemoryPoint) -> list[str]:
    from ramet.cli.render import clock

    names = ("resident", "unique", "common", "saved", "overhead", "spent")
    return [clock(point.at), *(size(getattr(point, f"{name}_bytes")) for name in names)]


def _picked(points: Sequence[Any]) -> list[Any]:
    """Some of them, evenly, the last one among them."""
    step = -(-len(points) // _ROWS)
    return list(points[::-1][::step][::-1])


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Bars from the least to the most; of more values than fit, the largest of neighbours."""
    step = -(-len(values) // width)
    peaks = [max(values[at : at + step]) for at in range(0, len(values), step)]
    low, high = min(peaks), max(peaks)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0
    return "".join(_BARS[round((peak - low) * scale)] for peak in peaks)
