"""What is in the pools: their members, what each costs, and what is known of how they are filled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from ramet.clone import pool
from ramet.host.floor import Floor
from ramet.host.pool_plan import Decision, Member, Situation, decide
from ramet.machine.live import LiveMachine
from ramet.machine.view import memory_view
from ramet.memory.admission import CLONE_OVERHEAD_BYTES
from ramet.model.machine import Moment
from ramet.model.pool import PoolSpec, PoolState, PoolView
from ramet.model.units import MIB
from ramet.model.views import MemoryView

DEFAULT_COST_BYTES = 24 * MIB
"""Of one member, before any was measured: a QEMU's own memory in the main."""


@dataclass
class Keeping:
    """What is known of one pool beyond its spec; nothing here must outlive the daemon."""

    refill: str | None = None
    """Task that fills it."""
    costs: dict[str, MemoryView] = field(default_factory=dict)
    highest_cost: int = 0
    waves: list[tuple[int, float]] = field(default_factory=list)
    """Clones and seconds of the last refills."""
    taken: int = 0
    """Since the spec was last written."""
    failures: int = 0
    not_before: float = 0.0
    problem: str | None = None

    @property
    def per_second(self) -> float | None:
        seconds = sum(took for _, took in self.waves)
        return round(sum(count for count, _ in self.waves) / seconds, 2) if seconds else None

    def note_wave(self, count: int, seconds: float) -> None:
        self.waves = [*self.waves, (count, seconds)][-16:]

    def cost_of(self, member: LiveMachine) -> int:
        view = self.costs.get(member.id)
        return _cost(view) if view else self.next_cost

    @property
    def next_cost(self) -> int:
        return self.highest_cost or DEFAULT_COST_BYTES


class PoolShelf:
    """Looks at the floor's machines. `available` tells the host's free memory, `reserve` what pools leave of it."""

    def __init__(self, floor: Floor, reserve: int, available: Callable[[], int]) -> None:
        self.available = available
        self.busy: set[str] = set()
        """Members that are being taken or dropped: nobody else's."""
        self._floor = floor
        self._reserve = reserve
        self._keeping: dict[str, Keeping] = {}

    def of(self, source_id: str) -> Keeping:
        return self._keeping.setdefault(source_id, Keeping())

    def forget(self, source_id: str) -> None:
        self._keeping.pop(source_id, None)

    def spec(self, source_id: str) -> PoolSpec | None:
        return self._floor.inventory.pools.get(source_id)

    def source_ids(self) -> list[str]:
        """Of VMs that have a pool, or had one of which something is left."""
        pooled = (live.vm.pool_of for live in self._floor.machines.values())
        return sorted({spec.vm_id for spec in self._floor.inventory.pools.all()} | {one for one in pooled if one})

    def members(self, source_id: str) -> list[LiveMachine]:
        """Oldest first."""
        found = [m for m in self._floor.machines.values() if m.vm.pool_of == source_id and m.id not in self.busy]
        return sorted(found, key=lambda member: member.vm.created_at)

    def has_any(self, source_id: str) -> bool:
        """Whether something is left of a pool, be it on its way out."""
        return any(live.vm.pool_of == source_id for live in self._floor.machines.values())

    def ready(self, source: LiveMachine) -> list[LiveMachine]:
        return [member for member in self.members(source.id) if self.is_fit(member, source)]

    def is_fit(self, member: LiveMachine, source: LiveMachine | None) -> bool:
        lineage, moment = member.vm.lineage, self.moment(source)
        return pool.is_ready(member) and lineage is not None and moment is not None and lineage.moment_id == moment.id

    def moment(self, source: LiveMachine | None) -> Moment | None:
        if source is None or not source.vm.frozen or source.process is None:
            return None
        return self._floor.inventory.moments.get(source.vm.moment_id or "")

    async def measure(self, source_id: str, keeping: Keeping) -> None:
        """Once for each: what stands still does not grow."""
        members = self.members(source_id)
        for member in members:
            if member.id not in keeping.costs and pool.is_ready(member):
                view = await asyncio.to_thread(memory_view, member)
                if view is not None:
                    keeping.costs[member.id] = view
                    keeping.highest_cost = max(keeping.highest_cost, _cost(view))
        present = {member.id for member in members}
        keeping.costs = {one: view for one, view in keeping.costs.items() if one in present}

    def decide(self, source_id: str) -> Decision:
        spec, source = self._floor.inventory.pools.get(source_id), self._floor.machines.get(source_id)
        keeping = self.of(source_id)
        next_cost = keeping.next_cost
        budget_mib = spec.memory_budget_mib if spec else None
        members = (
            Member(member.id, keeping.cost_of(member), self.is_fit(member, source))
            for member in self.members(source_id)
        )
        return decide(
            Situation(
                size=spec.size if spec else 0,
                frozen=self.moment(source) is not None,
                members=tuple(members),
                next_cost=next_cost,
                next_need=self._next_need(source, next_cost),
                promised=self._floor.rooms.admission.promised_bytes(),
                available=self.available(),
                reserve=self._reserve,
                budget=budget_mib * MIB if budget_mib is not None else None,
            )
        )

    def _next_need(self, source: LiveMachine | None, next_cost: int) -> int:
        """Of one more: what a clone wants by the host's policy, and no less than the members cost."""
        if source is None:
            return next_cost
        vm = source.vm
        need = self._floor.rooms.admission.clone_need(vm.lineage_id or vm.id, vm.machine.memory_mib * MIB)
        return need + max(0, next_cost - CLONE_OVERHEAD_BYTES)

    def view(self, spec: PoolSpec) -> PoolView:
        source, keeping = self._floor.machines.get(spec.vm_id), self.of(spec.vm_id)
        ready = self.ready(source) if source else []
        views = [keeping.costs[member.id] for member in ready if member.id in keeping.costs]
        return PoolView(
            vm_id=spec.vm_id,
            vm=source.name if source else spec.vm_id,
            state=PoolState.FAILING if keeping.problem else self.decide(spec.vm_id).state,
            size=spec.size,
            ready=len(ready),
            taken=spec.taken + keeping.taken,
            refill_per_s=keeping.per_second,
            memory_budget_mib=spec.memory_budget_mib,
            unique_bytes=sum(view.unique_bytes for view in views),
            overhead_bytes=sum(view.process_overhead_bytes for view in views),
            problem=keeping.problem,
        )


def _cost(view: MemoryView) -> int:
    return view.unique_bytes + view.process_overhead_bytes
