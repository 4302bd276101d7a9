"""What the host does about memory, put together: who may run, what is shared, what happens when it becomes short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ramet.host.floor import Floor
from ramet.host.gauge import Gauge
from ramet.host.guard import Guard
from ramet.host.locks import VmLocks
from ramet.host.sharing import SharingDesk
from ramet.host.tasks import TaskManager
from ramet.model.memory import MemoryRow


class MemoryPolicies:
    """`rows` are the ledger's. From here on admission counts the VMs that run."""

    def __init__(
        self, floor: Floor, tasks: TaskManager, locks: VmLocks, rows: Callable[[], Iterable[MemoryRow]]
    ) -> None:
        admission, gauge = floor.rooms.admission, Gauge(floor)
        admission.tenants = gauge.tenants
        self.sharing = SharingDesk(floor, tasks, locks)
        self.guard = Guard(floor, locks, gauge, rows, admission.reserve_bytes)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sharing.run(), name="memory: page sharing")
            group.create_task(self.guard.run(), name="memory: guard")
