"""Sums over processes that share memory, by the definitions of the field.

    common = Σ (Pss - Private) over those that share        saved = shared - common

A page that n processes map counts n times in `shared` and once in `common`. That holds only if every process that maps
guest RAM is counted, those that run no guest too: else a page that a VM shares with a holder alone would be common by
half, and nobody's by the other half.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from ramet.model.memory import MemoryCounters
from ramet.model.views import MemoryView


def counters(view: MemoryView, *, runs_guest: bool = True) -> MemoryCounters:
    """One process. Its part of `common` is never negative: the kernel cuts Pss to whole KiB, Private it does not."""
    common = max(0, view.proportional_bytes - view.unique_bytes)
    return MemoryCounters(
        configured_bytes=view.configured_bytes if runs_guest else 0,
        resident_bytes=view.resident_bytes,
        unique_bytes=view.unique_bytes,
        shared_bytes=view.shared_bytes,
        common_bytes=common,
        saved_bytes=max(0, view.shared_bytes - common),
        overhead_bytes=view.process_overhead_bytes,
        page_tables_bytes=view.page_tables_bytes,
        swapped_bytes=view.swapped_bytes,
        spent_bytes=view.unique_bytes + common + view.process_overhead_bytes + view.page_tables_bytes,
    )


FIELDS = tuple(MemoryCounters.model_fields)
_values = attrgetter(*FIELDS)


def total(parts: Iterable[MemoryCounters]) -> dict[str, int]:
    """The sums, by field: for `MemoryCounters` and what is made of them. Quick: a request for a clone waits for it."""
    columns = list(zip(*map(_values, parts), strict=True)) or [()] * len(FIELDS)
    return dict(zip(FIELDS, map(sum, columns), strict=True))
