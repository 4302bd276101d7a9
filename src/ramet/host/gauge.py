"""How fast VMs make memory their own: the measured side of admission, and of the guard. Fed from the ledger's rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ramet.host.floor import Floor
from ramet.machine.live import LiveMachine
from ramet.memory.admission import HORIZON_S, Tenant
from ramet.model.machine import VmState
from ramet.model.memory import MemoryKind, MemoryRow
from ramet.model.units import MIB

SHORTEST_S = 20.0
"""Of a history that tells a rate: a guest's first seconds are no forecast."""


@dataclass
class History:
    """Of one VM. Readings of the last minutes, oldest first: Unix time, and bytes that were its own."""

    row: MemoryRow
    readings: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, row: MemoryRow) -> None:
        if self.readings and row.measured_at <= self.readings[-1][0]:
            return
        self.row = row
        self.readings.append((row.measured_at, row.unique_bytes))
        while self.readings[0][0] < row.measured_at - HORIZON_S:
            self.readings.popleft()

    @property
    def growth_per_s(self) -> float:
        """Bytes a second, over what is remembered; 0 before that is long enough, and for one that shrank."""
        (since, first), (until, last) = self.readings[0], self.readings[-1]
        return max(0.0, (last - first) / (until - since)) if until - since >= SHORTEST_S else 0.0


class Gauge:
    """Knows the floor's machines by the rows that it is given now and then."""

    def __init__(self, floor: Floor, now: Callable[[], float] = time.time) -> None:
        self._floor = floor
        self._now = now
        self._known: dict[str, History] = {}
        self._tenants: tuple[Tenant, ...] = ()
        self._tenants_of: tuple[int, int] = (-1, -1)
        """Which instant, and how many machines, `_tenants` was made from."""

    def take(self, rows: Iterable[MemoryRow]) -> None:
        """Take over what was measured; all that is there, for what is left out has gone."""
        present = {row.id: row for row in rows if row.kind in (MemoryKind.VM, MemoryKind.POOL)}
        self._forget(set(self._known) - set(present))
        for vm_id, row in present.items():
            self._known.setdefault(vm_id, History(row)).note(row)

    def _forget(self, gone: set[str]) -> None:
        """Where one has gone, the pages that it shared become others': that is no growth of theirs, so count anew."""
        lineages = {self._known.pop(vm_id).row.lineage_id for vm_id in gone}
        for known in self._known.values():
            if known.row.lineage_id in lineages:
                known.readings.clear()

    def growth_per_s(self, vm_id: str) -> float:
        known = self._known.get(vm_id)
        return known.growth_per_s if known and known.readings else 0.0

    def unique_bytes(self, vm_id: str) -> int:
        """0 for one that was not measured yet."""
        known = self._known.get(vm_id)
        return known.row.unique_bytes if known else 0

    def tenants(self) -> tuple[Tenant, ...]:
        """Every VM that is on, with what is known of it. Good for half a second: clones are checked against it while
        somebody waits."""
        instant = (int(2 * self._now()), len(self._floor.machines))
        if instant != self._tenants_of:
            machines = list(self._floor.machines.values())
            self._tenants = tuple(self._tenant(live) for live in machines if live.vm.is_on)
            self._tenants_of = instant
        return self._tenants

    def _tenant(self, live: LiveMachine) -> Tenant:
        vm, known = live.vm, self._known.get(live.id)
        row = known.row if known else None
        return Tenant(
            id=vm.id,
            lineage_id=vm.lineage_id or vm.id,
            configured=vm.machine.memory_mib * MIB,
            unique=row.unique_bytes if row else 0,
            proportional=row.unique_bytes + row.common_bytes if row else 0,
            resident=row.resident_bytes if row else 0,
            writes=vm.state is not VmState.FROZEN,
            is_clone=vm.lineage is not None,
            age_s=max(0.0, self._now() - (vm.started_at or vm.created_at)),
            growth_per_s=self.growth_per_s(vm.id),
        )

    def growing(self, least_per_s: float) -> list[tuple[LiveMachine, float]]:
        """VMs that make more than that their own, bytes a second, the fastest first."""
        rates = [(live, self.growth_per_s(live.id)) for live in self._floor.shown()]
        return sorted((pair for pair in rates if pair[1] > least_per_s), key=lambda pair: -pair[1])
