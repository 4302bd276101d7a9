"""Two runs beside each other: a target is worse when it moved further than the noise of both explains."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from ramet.bench.figures import FORMAT, MAX_TOLERANCE, MIN_TOLERANCE, Change, Report, Target
from ramet.errors import DamagedError, NotFoundError
from ramet.model.base import explain

_SIGMAS = 3.0
_MAX_BYTES = 64 << 20


def read_report(path: Path) -> Report:
    """A report that ``ramet bench --json`` printed. Raises NotFoundError, DamagedError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DamagedError(f"{path} is too large for a report of a bench.")
        report = Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}.", hint="Make one: ramet bench --json > FILE.") from None
    except ValidationError as exc:
        words = f"{path} is no report of a bench: {explain(exc)}"
        raise DamagedError(words, hint="Make one: ramet bench --json > FILE.") from exc
    if report.format != FORMAT:
        raise DamagedError(f"{path} was written by another version of Ramet.", hint="Run that bench again.")
    return report


def compare(before: Report, now: Report) -> tuple[Change, ...]:
    """Of every target that both runs have. Ratios alone: the runs may be of different machines."""
    known = {(case.case, case.guest, target.name): target for case in before.cases for target in case.targets}
    return tuple(
        _change(case.case, earlier, target)
        for case in now.cases
        for target in case.targets
        if (earlier := known.get((case.case, case.guest, target.name))) is not None
    )


def _change(case: str, before: Target, now: Target) -> Change:
    tolerance = min(MAX_TOLERANCE, max(MIN_TOLERANCE, _SIGMAS * math.hypot(before.noise, now.noise)))
    return Change(
        case=case,
        name=now.name,
        before=before.measured,
        now=now.measured,
        tolerance=round(tolerance, 3),
        worse=_is_worse(before.measured, now, tolerance),
        unit=now.unit,
    )


def _is_worse(before: float, now: Target, tolerance: float) -> bool:
    if now.at_least:
        return now.measured < before * (1 - tolerance)
    return now.measured > before * (1 + tolerance)
