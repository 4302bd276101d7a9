"""Which processes hold guest RAM: VMs, and those that run no guest but keep the memory of one.

A page is unique when one process maps it. So whoever counts must know of every process that maps guest RAM: a holder
that nobody counts would make its VM's pages look shared, by nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ramet.model.memory import MemoryKind


@dataclass(frozen=True, slots=True)
class Holding:
    """One process that maps guest RAM. `start_ticks`: field 22 of its stat, for a pid can be reused."""

    id: str
    name: str
    kind: MemoryKind
    lineage_id: str
    pid: int
    start_ticks: int
    ram_bytes: int


class Holdings:
    """Those that are no VM's process: whoever makes one keeps it here for as long as it lives."""

    def __init__(self) -> None:
        self._held: dict[str, Holding] = {}

    def all(self) -> list[Holding]:
        return list(self._held.values())

    @contextlib.contextmanager
    def keep(self, holding: Holding) -> Iterator[None]:
        """Counted for the length of the block. It ends nobody."""
        self._held[holding.id] = holding
        try:
            yield
        finally:
            self._held.pop(holding.id, None)
