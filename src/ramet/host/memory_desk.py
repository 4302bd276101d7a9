"""The ledger of memory, as callers ask for it: rows and sums, now and before."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from ramet.errors import NotFoundError
from ramet.host.clone_memory import CloneAccounts
from ramet.host.floor import Floor
from ramet.host.locks import VmLocks
from ramet.host.memory_history import HOST, SPANS, MemoryRecord
from ramet.host.memory_sampler import MemorySampler, SamplerLimits
from ramet.host.settings import Settings
from ramet.host.tasks import TaskManager
from ramet.memory.sums import total
from ramet.model.memory import HostMemory, MemoryCounters, MemoryHistory, MemoryRow

_RECORD_S = 10.0


class MemoryDesk:
    """`run` is its life: the sampler's, the record's, and that of the accounts of clones."""

    def __init__(self, floor: Floor, tasks: TaskManager, locks: VmLocks, settings: Settings) -> None:
        limits = SamplerLimits(settings.memory_every_s, settings.memory_cpu_percent)
        self.sampler = MemorySampler(floor, locks.is_busy, limits)
        self.accounts = CloneAccounts(self.sampler, locks.is_busy, tasks)
        self._floor = floor
        self._record = MemoryRecord()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sampler.run(), name="memory: sampler")
            group.create_task(self.accounts.run(), name="memory: clones")
            while True:
                await asyncio.sleep(_RECORD_S)
                self._note(time.time())

    def _note(self, now: float) -> None:
        rows = self.sampler.ledger.rows()
        self._record.add(now, {HOST: MemoryCounters(**total(rows)), **{row.id: row for row in rows}})

    async def view(self, refs: Sequence[str] = (), now: bool = False) -> HostMemory:
        """What is known, each row with its age; what changed since is read first, for a moment, with `now` all of it.

        With `refs` only these VMs' rows, with the sums of their lineages. Raises NotFoundError for a VM that is not
        there; one that is off has no row.
        """
        wanted = {self._floor.find(ref).id for ref in refs}
        ledger = self.sampler.ledger
        self.sampler.sync()
        lineages = {found.lineage_id for one in wanted if (found := ledger.holding(one)) is not None}
        if now:
            held = [one for one in ledger.holdings() if not wanted or one.lineage_id in lineages]
            await self.sampler.measure([one.id for one in held])
            self.sampler.sync()  # those that went meanwhile
        else:
            await self.sampler.refresh()
        return await self._view(wanted, lineages)

    async def _view(self, wanted: set[str], lineages: set[str]) -> HostMemory:
        ledger = self.sampler.ledger
        rows = ledger.rows()
        total_bytes, available_bytes = await asyncio.to_thread(_host_bytes)
        related = [row for row in rows if not wanted or row.lineage_id in lineages]
        return HostMemory(
            at=time.time(),
            total_bytes=total_bytes,
            available_bytes=available_bytes,
            totals=MemoryCounters(**total(rows)),
            lineages=tuple(ledger.lineages(related)),
            rows=tuple(row for row in related if not wanted or row.id in wanted),
            unread=len(ledger.unread()),
        )

    def rows(self) -> list[MemoryRow]:
        """As they are known."""
        self.sampler.sync()
        return self.sampler.ledger.rows()

    def history(self, ref: str | None, span: str) -> MemoryHistory:
        """Of one VM, or of the host. Raises NotFoundError for a VM that is not there and has not been there lately."""
        key, name = HOST, "host"
        if ref is not None:
            key = name = ref
            with contextlib.suppress(NotFoundError):
                live = self._floor.find(ref)
                key, name = live.id, live.name
        points = self._record.points(key, span)
        if ref is not None and not points:
            name = self._floor.find(ref).name  # says that there is none, and what may be meant
        return MemoryHistory(name=name, every_s=SPANS[span].every_s, points=tuple(points))


def _host_bytes() -> tuple[int, int]:
    """MemTotal and MemAvailable."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {words[0]: int(words[1]) * 1024 for words in lines}
    return found["MemTotal:"], found["MemAvailable:"]
