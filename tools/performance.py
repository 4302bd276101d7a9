"""``python tools/performance.py REPORT.json…``: docs/performance.md and its charts, from what ``ramet bench`` measured.

Of several reports, of some cases each, the last that has a case is taken.

The page's words stay; what stands between two markers ``<!-- measured: NAME -->`` and ``<!-- end -->`` is written anew:
the machine, what was to be reached, and a table for each case. The charts are SVG files beside the page, plain enough
to be read in light and dark.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ramet.bench.catalogue import CASES
from ramet.bench.compare import read_report
from ramet.bench.figures import CaseResult, Report, Series, Target

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
CHARTS = ROOT / "docs" / "performance"

_BLOCK = re.compile(r"(<!-- measured: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

COLOURS = {"ramet": "#2563eb", "by hand": "#9ca3af"}
_OURS = ("ramet", "live", "frozen", "pooled", "source")


# -- the page --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    report = merged([read_report(Path(name)) for name in argv[1:]])
    CHARTS.mkdir(exist_ok=True)
    for name, picture in charts(report).items():
        (CHARTS / f"{name}.svg").write_text(picture, encoding="utf-8")
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
    return 0


def merged(reports: Sequence[Report]) -> Report:
    """One report of all cases, in the order in which a whole run has them; where and when is the last one's."""
    latest = {case.case: case for report in reports for case in report.cases}
    order = [case.name for case in CASES]
    cases = tuple(sorted(latest.values(), key=lambda case: order.index(case.case)))
    return reports[-1].model_copy(update={"cases": cases, "quick": any(report.quick for report in reports)})


def rewritten(page: str, report: Report) -> str:
    """The page with the report's numbers; blocks of cases that the report does not have stay as they are."""
    made = {"machine": machine(report), "targets": targets(report), **{case.case: table(case) for case in report.cases}}
    return _BLOCK.sub(
        lambda block: f"{block[1]}{made[block['name']]}{block[3]}" if block["name"] in made else block[0], page
    )


def machine(report: Report) -> str:
    """Where and when, in a sentence or two."""
    facts = report.facts
    day = time.strftime("%Y-%m-%d", time.gmtime(report.at))
    quick = "It was, at least in part, a quick run (`--quick`): smaller guests, few rounds.\n" if report.quick else ""
    line = f"The command line's own start and end, {facts.command_line_ms:.0f} ms, is in none of the figures." \
        if facts.command_line_ms is not None else ""  # fmt: skip
    return (
        f"Measured on {day}: {facts.cores} × {facts.processor}, {facts.memory_mib / 1024:.0f} GiB of memory,\n"
        f"Linux {facts.kernel}, QEMU {facts.qemu_version} with {facts.accelerator.upper()}, Ramet {facts.version}; "
        f"load {facts.load_before:.1f} before and {facts.load_after:.1f} after.\n{line}\n{quick}"
    )


def targets(report: Report) -> str:
    rows = [
        (f"`{case.case}`", target.name, target.wanted, shown(target.measured, target.unit), verdict(target))
        for case in report.cases
        for target in case.targets
    ]
    rows += [(f"`{case.case}`", "not measured", "", "", case.problem) for case in report.cases if case.problem]
    return markdown(("Case", "What", "To reach", "Measured", ""), rows)


def verdict(target: Target) -> str:
    return "met" if target.met else "**not met**"


def table(case: CaseResult) -> str:
    rows = [
        (what, str(s.n), shown(s.median, s.unit), shown(s.p95, s.unit), shown(s.low, s.unit), shown(s.high, s.unit))
        for what, s in case.series.items()
    ]
    notes = "".join(f"\n{note}\n" for note in case.notes)
    return f"Guest: {case.guest}.\n\n" + markdown(("What", "n", "median", "95 %", "least", "most"), rows) + notes


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(value: float, unit: str) -> str:
    """Three digits that matter."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f} {unit}"


# -- the charts ------------------------------------------------------------------------------------------------------

CHARTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "stun": ("Stun of a live clone", ("ramet: stun", "bare mechanism: stun")),
    "busy": ("Stun of a live clone of a busy guest", ("ramet: stun", "bare mechanism: stun")),
    "frozen": (
        "From the request to a running clone",
        ("ramet: running", "bare mechanism: whole clone", "memory template: running", "savevm/loadvm: running"),
    ),
    "pooled": (
        "From the request to a running clone, with a pool",
        ("ramet, pooled: running", "ramet: running", "memory template: running"),
    ),
    "answer": (
        "From the request to the agent's first answer",
        ("pooled: answer", "frozen: answer", "live: answer", "boot: answer"),
    ),
    "burst": ("A burst of clones, wall clock", ("ramet: wall", "bare mechanism: wall", "bare QEMU starts: wall")),
    "identity": (
        "From the request to an answer on the network",
        tuple(f"{kind}: first answer on the network" for kind in ("pooled", "frozen", "live")),
    ),
}
"""Chart of each case: its title, and the series in it."""

_WIDTH, _LABEL, _BAR, _GAP, _TOP = 760, 250, 22, 14, 44
_VALUE = 110


def charts(report: Report) -> dict[str, str]:
    """SVG by case, of those whose series are all there; and how fifty stuns in a row went."""
    made = {}
    for case in report.cases:
        title, names = CHARTED.get(case.case, ("", ()))
        if names and all(name in case.series for name in names):
            made[case.case] = bars(title, {name: case.series[name] for name in names})
        if case.case == "fifty" and "ramet: stun" in case.series:
            made["fifty"] = line("Stun of each of a row of live clones", case.series["ramet: stun"])
    return made


def bars(title: str, series: dict[str, Series]) -> str:
    """Medians as bars, 95th percentiles as whiskers."""
    scale = (_WIDTH - _LABEL - _VALUE) / max(one.p95 for one in series.values())
    height = _TOP + len(series) * (_BAR + _GAP) + 24
    parts = []
    for row, (name, one) in enumerate(series.items()):
        y = _TOP + row * (_BAR + _GAP)
        parts += bar(name, one, y, scale)
    parts.append(text(_LABEL, height - 8, "bar: median; line: 95th percentile", "start", small=True))
    return picture(title, height, parts)


def bar(name: str, one: Series, y: float, scale: float) -> list[str]:
    middle, end = y + _BAR / 2, _LABEL + one.p95 * scale
    ours = name.split(":")[0].split(",")[0] in _OURS
    colour = COLOURS["ramet" if ours else "by hand"]
    width = max(1.0, one.median * scale)
    return [
        text(_LABEL - 10, middle + 4, name, "end"),
        f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>',
        f'<line x1="{_LABEL}" x2="{end:.1f}" y1="{middle}" y2="{middle}" stroke="#6b7280" stroke-width="1.5"/>',
        f'<line x1="{end:.1f}" x2="{end:.1f}" y1="{y + 5}" y2="{y + _BAR - 5}" stroke="#6b7280" stroke-width="1.5"/>',
        text(end + 8, middle + 4, shown(one.median, one.unit), "start"),
    ]


def line(title: str, one: Series) -> str:
    """Every value in its turn."""
    left, right, bottom = 60, _WIDTH - 20, 220
    step = (right - left) / max(1, one.n - 1)
    scale = (bottom - _TOP) / one.high
    points = " ".join(f"{left + n * step:.1f},{bottom - value * scale:.1f}" for n, value in enumerate(one.values))
    parts = [
        f'<polyline points="{points}" fill="none" stroke="{COLOURS["ramet"]}" stroke-width="2"/>',
        f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#6b7280"/>',
        text(left - 8, _TOP + 4, shown(one.high, one.unit), "end"),
        text(left - 8, bottom + 4, "0", "end"),
        text(left, bottom + 20, "1st", "middle"),
        text(right, bottom + 20, f"{one.n}th", "middle"),
    ]
    return picture(title, bottom + 32, parts)


def text(x: float, y: float, words: str, anchor: str, *, small: bool = False, bold: bool = False) -> str:
    size, weight = (11 if small else 13), (' font-weight="600"' if bold else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight}>{escape(words)}</text>'


def picture(title: str, height: float, parts: Iterable[str]) -> str:
    """On a white ground, as pages with dark ones exist."""
    body = "\n".join([text(16, 24, title, "start", bold=True), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" font-family="system-ui, sans-serif" fill="#111827">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" fill="#ffffff" rx="6"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
