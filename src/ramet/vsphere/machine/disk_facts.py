"""The layers of disks, as they are on the host's own disk. Read in threads, many at once, and kept for a moment.

await disks.prepare(vm)
disks.chain(layer_id) -> (Layer, …)      # topmost first; empty when it is not known, or damaged
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ramet.errors import RametError
from ramet.model.machine import Vm

if TYPE_CHECKING:
    from ramet.host.service import Host

FRESH_ON_S, FRESH_OFF_S = 2.0, 30.0
"""The top layer of a VM that is on grows; of others only an operation changes the chain."""
_KEPT = 50_000


@dataclass(frozen=True, slots=True)
class _Chain:
    read_at: float
    """Monotonic."""
    since: float
    """Unix time of the reading that differed."""
    layers: tuple[Any, ...]


_UNKNOWN = _Chain(-1e9, 0.0, ())


class DiskFacts:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._chains: dict[str, _Chain] = {}
        self._wanted: set[str] = set()
        self._reading: asyncio.Future[None] | None = None

    def chain(self, layer_id: str) -> tuple[Any, ...]:
        return self._chains.get(layer_id, _UNKNOWN).layers

    def changed_at(self, vm: Vm) -> float:
        """Unix time: since when its disks are as they are shown."""
        return max(vm.created_at, *(self._chains.get(disk.layer, _UNKNOWN).since for disk in vm.machine.disks), 0.0)

    async def prepare(self, vm: Vm) -> None:
        oldest = time.monotonic() - (FRESH_ON_S if vm.is_on else FRESH_OFF_S)
        stale = [disk.layer for disk in vm.machine.disks if self._chains.get(disk.layer, _UNKNOWN).read_at < oldest]
        if stale:
            self._wanted.update(stale)
            await self._read()

    async def _read(self) -> None:
        """One thread reads what all who ask in the same moment want."""
        while self._wanted:
            if self._reading is None or self._reading.done():
                await asyncio.sleep(0)  # others are about to ask
                if self._wanted and (self._reading is None or self._reading.done()):
                    wanted, self._wanted = list(self._wanted), set()
                    self._reading = asyncio.ensure_future(asyncio.to_thread(self._load, wanted))
            if self._reading is not None:
                await asyncio.shield(self._reading)

    def _load(self, wanted: list[str]) -> None:
        if len(self._chains) > _KEPT:
            self._chains.clear()
        for layer_id in wanted:
            try:
                chain = self._host.floor.rooms.layers.chain(layer_id)
            except (RametError, OSError):
                chain = ()
            before = self._chains.get(layer_id, _UNKNOWN)
            since = before.since if before.layers == chain and before is not _UNKNOWN else time.time()
            self._chains[layer_id] = _Chain(time.monotonic(), since, chain)
