"""All cases, in the order in which they run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ramet.bench.cases.frozen import frozen, pooled
from ramet.bench.outcome import Case
from ramet.errors import UsageError

_USUAL = ("debian",)

CASES: tuple[Case, ...] = (
    Case("frozen", "A clone of a frozen VM", frozen, _USUAL),
    Case("pooled", "A clone out of a pool", pooled, _USUAL),
)


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names, all of them for none. Raises UsageError for a name that is none."""
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Cases are: {', '.join(known)}."
            raise UsageError(f"There is no case {name!r}.", hint=hint)
    return [case for case in CASES if case.name in names] if names else list(CASES)
