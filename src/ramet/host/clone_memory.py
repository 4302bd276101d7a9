"""What a clone request did to its lineage's memory: before, from the ledger; after, measured beside the work.

Nothing here is waited for. `before` is arithmetic over rows that are there. `after` is measured a moment after the
clones run, while their guests take on their identities; a request that ends sooner, one served by a pool above all,
has it put into its task's record. The source is not read while it is cloned: see ``ramet.host.memory_sampler``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from ramet.errors import RametError
from ramet.host.memory_sampler import MemorySampler
from ramet.host.tasks import TaskManager
from ramet.machine.live import LiveMachine
from ramet.model.memory import CloneMemory, MemorySample
from ramet.model.views import CloneResult

log = structlog.stdlib.get_logger(__name__)

CALM_S = 0.1
"""Since the last clone ran: who clones again and again is not held up, and what they cost is measured together ..."""
PATIENCE_S = 1.0
"""... unless one has waited for so long."""
_LOOK_S = 0.02
MOST = 16
"""Processes that are read for one request; of a larger lineage the rest is estimated."""
_SHARE = 4.0
"""Times as long as it took, there is rest: cloning without pause is not slowed by more than a fifth of a processor."""


@dataclass(eq=False)
class Account:
    """Of one request. Its clones' results take `memory` as it is then."""

    lineage_id: str
    task_id: str
    source_id: str
    clone_ids: tuple[str, ...]
    memory: CloneMemory
    opened_at: float = field(default_factory=time.monotonic)
    told_early: bool = False
    """The results went out without `after`."""

    def tell(self) -> CloneMemory:
        self.told_early = self.memory.after is None
        return self.memory


class CloneAccounts:
    """One a host. `run` is its life."""

    def __init__(self, sampler: MemorySampler, is_busy: Callable[[str], bool], tasks: TaskManager) -> None:
        self._sampler = sampler
        self._is_busy = is_busy
        self._tasks = tasks
        self._open: list[Account] = []
        self._opened = asyncio.Event()

    def before(self, source: LiveMachine) -> MemorySample | None:
        """Free: what the ledger has."""
        return self._sampler.ledger.sample(source.vm.lineage_id or source.id)

    def open(
        self, source: LiveMachine, clones: Sequence[LiveMachine], before: MemorySample | None, task_id: str
    ) -> Account:
        """The clones run. Measured soon, by `run`."""
        lineage_id = source.vm.lineage_id or source.id
        ids = tuple(clone.id for clone in clones)
        account = Account(lineage_id, task_id, source.id, ids, CloneMemory(before=before))
        if ids:
            self._open.append(account)
            self._opened.set()
        return account

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._opened.wait()
                await asyncio.sleep(_LOOK_S)
                for account in await self._settle():
                    if account.told_early:
                        group.create_task(self._amend(account), name=f"memory of {account.task_id}")
                if not self._open:
                    self._opened.clear()

    async def _settle(self) -> list[Account]:
        """Measure one lineage for all who asked; those that were settled."""
        ready = [account for account in self._open if self._is_calm(account)]
        if not ready:
            return []
        lineage_id = ready[0].lineage_id
        settled = [account for account in ready if account.lineage_id == lineage_id]
        self._open = [account for account in self._open if account not in settled]
        try:
            cpu_s, after = await self._measure(lineage_id, settled)
        except Exception:  # nor a bug of ours: the clones are there, and others will be
            log.exception("the memory of a clone was not measured")
            return []
        for account in settled:
            account.memory = account.memory.changed(after=after)
        await asyncio.sleep(min(PATIENCE_S, _SHARE * cpu_s))
        return settled

    def _is_calm(self, account: Account) -> bool:
        now, last = time.monotonic(), max(account.opened_at for account in self._open)
        calm = now - last >= CALM_S and not self._is_busy(account.source_id)
        return calm or now - account.opened_at >= PATIENCE_S

    async def _measure(self, lineage_id: str, accounts: Sequence[Account]) -> tuple[float, MemorySample | None]:
        self._sampler.sync()
        members = self._sampler.ledger.members(lineage_id)
        first = [one for account in accounts for one in (*account.clone_ids, account.source_id)]
        ids = [one for one in dict.fromkeys([*first, *sorted(members)]) if one in members and not self._is_busy(one)]
        cpu_s = await self._sampler.measure(ids[:MOST], whole=False)
        return cpu_s, self._sampler.ledger.sample(lineage_id, fresh=frozenset(ids[:MOST]))

    async def _amend(self, account: Account) -> None:
        """The task may not quite have ended; one that the history has dropped meanwhile needs no numbers."""
        with contextlib.suppress(RametError, OSError):
            task = await self._tasks.wait(account.task_id, timeout_s=30.0)
            results = [CloneResult.model_validate(one) for one in task.result or ()]
            await self._tasks.amend(task.id, [one.changed(memory=account.memory) for one in results])
