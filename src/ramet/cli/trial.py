"""The report of a trial for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from ramet.cli.output import Cell, Output, millis, size
from ramet.model.trying import Changes, FileChange, PackageChange, TryReport

LISTED = 30
"""So many lines of each kind."""
_SIGN = {
    "created": Cell("+", "green"),
    "changed": Cell("~", "yellow"),
    "deleted": Cell("-", "red"),
    "installed": Cell("+", "green"),
    "upgraded": Cell("^", "cyan"),
    "downgraded": Cell("v", "yellow"),
    "removed": Cell("-", "red"),
    "started": Cell("+", "green"),
    "restarted": Cell("~", "yellow"),
    "stopped": Cell("-", "red"),
    "failed": Cell("!", "bold red"),
    "opened": Cell("+", "green"),
    "closed": Cell("-", "red"),
}

Row = tuple[str, str, str]
"""What happened, to what, and more about it."""


def page(out: Output, report: TryReport) -> None:
    out.line("")
    out.line(*_ending(report))
    if report.changes is not None:
        _changes(out, report.changes)
    if report.changes_problem:
        out.warn(f"What changed is not known: {report.changes_problem}")
    out.facts([("took", _times(report)), ("stun", _stun(report)), ("clone", _clone(report))])


def _ending(report: TryReport) -> list[Cell | str]:
    took = millis(report.timings_ms.command)
    if report.timed_out:
        return [Cell("killed", "bold red"), f" when its time was over, after {took}"]
    if report.signal is not None:
        return [Cell(f"signal {report.signal}", "bold red"), f" ended the command after {took}"]
    return [Cell(f"exit status {report.exit_code}", "bold red" if report.exit_code else "bold green"), f" after {took}"]


def _changes(out: Output, found: Changes) -> None:
    if found.is_empty:
        out.line("Nothing was changed.")
    counts = ((found.files_created, "created"), (found.files_changed, "changed"), (found.files_deleted, "deleted"))
    _section(out, f"files: {_counted(counts)}", list(_files(found.files)))
    _section(out, "packages", [(p.change, p.name, _versions(p)) for p in found.packages])
    _section(out, "services", [(s.change, s.name, f"{s.change}, {s.state}") for s in found.services])
    ports = [(p.change, f"{p.protocol} {_endpoint(p.address, p.port)}", p.process or "") for p in found.ports]
    _section(out, "listening ports", ports)
    if found.files_limit is not None:
        out.warn(f"The guest has more than {found.files_limit} files; the rest was not compared.")


def _counted(counts: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{number} {what}" for number, what in counts if number)


def _section(out: Output, title: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    out.line(Cell(title, "bold"))
    width = max(len(what) for _, what, _ in islice(rows, LISTED))
    for change, what, more in islice(rows, LISTED):
        out.line(
            "  ", _SIGN[change], f" {what.ljust(width) if more else what}", Cell(f"  {more}" if more else "", "dim")
        )
    if len(rows) > LISTED:
        out.line("  ", Cell(f"… and {len(rows) - LISTED} more; --json tells all", "dim"))


def _files(files: Sequence[FileChange]) -> Iterator[Row]:
    """What lies in a folder that came or went with it is one line with that. Folders come before what is in them."""
    folder, inside = None, 0
    for file in (*sorted(files, key=lambda file: file.path.split("/")), None):
        if folder is not None and file is not None and _is_in(file, folder):
            inside += 1
            continue
        if folder is not None:
            yield folder.change, f"{folder.path}/", f"{inside} in it" if inside else ""
            folder, inside = None, 0
        if file is None:
            return
        if file.kind == "folder" and file.change != "changed":
            folder = file
        else:
            yield file.change, file.path, size(file.size_bytes)


def _is_in(file: FileChange, folder: FileChange) -> bool:
    return file.change == folder.change and file.path.startswith(f"{folder.path}/")


def _versions(package: PackageChange) -> str:
    if package.before and package.after:
        return f"{package.before} -> {package.after}"
    return package.after or package.before or ""


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _times(report: TryReport) -> str:
    t = report.timings_ms
    parts = (("cloning", t.clone), ("looking", t.before + t.after), ("command", t.command), ("removing", t.remove))
    return f"{millis(t.total)} = {' + '.join(f'{name} {millis(value)}' for name, value in parts if value)}"


def _stun(report: TryReport) -> str:
    stun = report.timings_ms.stun
    return f"{report.source} stood still for {millis(stun)}" if stun else ""


def _clone(report: TryReport) -> str:
    if report.kept:
        return f"{report.clone} is kept; 'ramet vm rm --force {report.clone}' removes it"
    return f"{report.clone} is removed; {report.source} is as it was"
