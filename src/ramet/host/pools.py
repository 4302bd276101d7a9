"""Pools as callers see them: set up, listed, given up, and clones taken out of them.

    pools = PoolDesk(floor, tasks, locks, events, PoolLimits())
    await pools.set(ref, SetPool(size=3)) -> PoolView             # size 0 gives it up
    pools.views() -> list[PoolView]
    if pools.can_serve(source, request):                          # under the source's shared 'clone' lock
        taken = await pools.take(source, want) -> Taken | None    # it runs; None: make an ordinary clone
    await pools.keeper.run()                                      # until cancelled

A clone that is taken is a VM like every other; what fills the pools stands in ``pool_keeper``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from ramet.clone import pool
from ramet.errors import ConflictError, RametError
from ramet.host.events import EventLog
from ramet.host.floor import Floor
from ramet.host.locks import VmLocks
from ramet.host.pool_keeper import PoolKeeper, PoolLimits
from ramet.host.pool_shelf import PoolShelf
from ramet.host.tasks import TaskManager
from ramet.machine.live import LiveMachine
from ramet.memory.host import available_memory_bytes
from ramet.model.cancellation import to_its_end
from ramet.model.machine import Vm
from ramet.model.pool import PoolSpec, PoolState, PoolView, SetPool
from ramet.model.requests import CloneVm

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class Taken:
    """A pooled clone that runs now, under the name that was asked for."""

    live: LiveMachine
    running_at: float
    """On the monotonic clock, seconds."""
    took_ms: float
    """From asking the pool to the first instruction."""


class PoolDesk:
    """`available` tells the host's free memory in bytes."""

    def __init__(
        self,
        floor: Floor,
        tasks: TaskManager,
        locks: VmLocks,
        events: EventLog,
        limits: PoolLimits,
        available: Callable[[], int] = available_memory_bytes,
    ) -> None:
        self._floor = floor
        self.shelf = PoolShelf(floor, limits.reserve_bytes, available)
        self.keeper = PoolKeeper(floor, self.shelf, tasks, locks, events, limits)

    async def set(self, ref: str, request: SetPool) -> PoolView:
        """Have a pool for a VM, change it, or with size 0 give it up: its clones are gone when this returns."""
        source = self._floor.find(ref)
        specs = self._floor.inventory.pools
        before = specs.get(source.id)
        if request.size == 0:
            if before is not None:
                await self.remove(ref)
            return PoolView(vm_id=source.id, vm=source.name, state=PoolState.WAITING, size=0, ready=0, taken=0)
        taken = before.taken if before else 0
        budget = request.memory_budget_mib
        await specs.put(PoolSpec(vm_id=source.id, size=request.size, memory_budget_mib=budget, taken=taken))
        self.shelf.of(source.id).not_before = 0.0
        self._floor.rooms.book.emit("pool.set", f"{source.name} has a pool of {request.size}.", source.vm)
        self.keeper.wake()
        return self.shelf.view(specs.find(source.id))

    async def remove(self, ref: str) -> None:
        """Give a VM's pool up; NotFoundError when it has none."""
        source = self._floor.find(ref)
        self._floor.inventory.pools.find(source.id)
        await self._floor.inventory.pools.remove(source.id)
        await self.keeper.give_up(source.id)
        self._floor.rooms.book.emit("pool.removed", f"{source.name} has no pool any more.", source.vm)

    def views(self) -> list[PoolView]:
        """All pools of VMs that are registered, by their names."""
        inventory = self._floor.inventory
        sources = {vm.id for vm in inventory.users_vms()}
        return sorted(
            (self.shelf.view(spec) for spec in inventory.pools.all() if spec.vm_id in sources), key=lambda view: view.vm
        )

    # -- taking ----------------------------------------------------------------------------------------------------

    def can_serve(self, source: LiveMachine, request: CloneVm) -> bool:
        """Whether clones that were made ahead can be what is asked for, and there is one now."""
        return pool.serves(request) and bool(self.shelf.ready(source))

    async def take(self, source: LiveMachine, want: Vm) -> Taken | None:
        """The oldest ready clone, as `want` and running; None when there is none that fits.

        `want` is the record an ordinary clone of the source would get; see `ramet.clone.pool.take`. The caller holds
        the source's shared 'clone' lock and has reserved the name. A member that fails is dropped, the next one tried.
        """
        asked_at = time.monotonic()
        if self._is_fenced(want):
            return None
        while ready := self.shelf.ready(source):
            member = ready[0]
            if not pool.same_hardware(member.vm, want):
                return None
            running_at = await self._take(member, want)
            if running_at is not None:
                self.keeper.note_taken(source.id)
                return Taken(member, running_at, (running_at - asked_at) * 1000)
        return None

    def _is_fenced(self, want: Vm) -> bool:
        """A clone in a fence has its source's MAC address, which a member has not."""
        networks = [self._floor.rooms.book.network(nic.network) for nic in want.machine.nics if nic.network]
        return any(network.fenced for network in networks if network is not None)

    async def _take(self, member: LiveMachine, want: Vm) -> float | None:
        """When it ran; None when it could not. It is nobody else's meanwhile."""
        self.shelf.busy.add(member.id)
        try:
            running_at, cancelled = await to_its_end(pool.take(member, want))
        except ConflictError:
            self.shelf.busy.discard(member.id)
            raise
        except (RametError, OSError) as exc:
            log.warning("a pooled clone could not be taken", vm=member.id, error=str(exc))
            await self.keeper.drop(member)
            return None
        except asyncio.CancelledError:
            await self.keeper.drop(member)
            raise
        if cancelled:  # it runs, and nobody waits for it
            await self.keeper.drop(member)
            raise asyncio.CancelledError
        self.shelf.busy.discard(member.id)
        return running_at
