"""Put what came of the faults into docs/reliability.md.

    RAMET_TEST_FAULTS=all RAMET_TEST_FAULTS_TABLE=FILE .venv/bin/pytest tests/guest/test_faults.py
    python tools/faults.py FILE

A cell is 'done' when the operation came to its end all the same, else the code of the error that its caller was told.
In both cases the judge found nothing wrong afterwards; what it did find is a cell in capitals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.guest.faults import unruly  # noqa: E402
from tests.guest.faults.blows import FAULTS  # noqa: E402
from tests.guest.faults.table import cases  # noqa: E402
from tests.guest.faults.workflows import WORKFLOWS  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->\n", "<!-- /faults -->\n"

Outcomes = dict[tuple[str, str, str], str]


def read(path: Path) -> Outcomes:
    """The last word of each case."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row[0], row[1], row[2]): row[3] for row in rows}


def tables(outcomes: Outcomes) -> Iterator[str]:
    """A sentence of how many, and a table for each workflow."""
    known = [*cases(), *((name, unruly.STEP, behaviour) for name, behaviour in unruly.cases())]
    run = [case for case in known if case in outcomes]
    failed = [case for case in run if outcomes[case] == "failed"]
    yield f"{len(known)} cases; {len(run)} were run, and after {len(run) - len(failed)} of them nothing was wrong.\n"
    for name, flow in WORKFLOWS.items():
        mine = {case for case in known if case[0] == name}
        faults = [fault for fault in FAULTS if any(case[2] == fault for case in mine)]
        yield f"\n**{name}**\n\n| step | {' | '.join(faults)} |\n|---|{'---|' * len(faults)}\n"
        for step in flow.steps:
            cells = [_cell(outcomes, mine, (name, step, fault)) for fault in faults]
            yield f"| `{step}` | {' | '.join(cells)} |\n"
    yield f"\n**guests that misbehave**\n\n| workflow | {' | '.join(unruly.BEHAVIOURS)} |\n"
    yield f"|---|{'---|' * len(unruly.BEHAVIOURS)}\n"
    for name in unruly.WORKFLOWS:
        row = [(name, unruly.STEP, behaviour) for behaviour in unruly.BEHAVIOURS]
        yield f"| {name} | {' | '.join(_cell(outcomes, set(row), case) for case in row)} |\n"


def _cell(outcomes: Outcomes, mine: set[tuple[str, str, str]], case: tuple[str, str, str]) -> str:
    if case not in mine:
        return "·"
    outcome = outcomes.get(case, "not run")
    return "WRONG" if outcome == "failed" else outcome


def main() -> int:
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "".join(tables(read(Path(sys.argv[1])))) + END + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
