"""Who keeps the ledger of memory fresh, in turn, for a fixed share of one processor.

It feels every process's pulse now and then, which costs nearly nothing, and reads those of which the ledger is probably
wrong by most (``ramet.memory.turns``). After each reading it rests for as long as its share demands. A VM that an
operation works on is not read by it: the kernel holds the process's memory map while it counts, and a fork, in the
stun of a clone, would wait for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from ramet.errors import RametError
from ramet.host.floor import Floor
from ramet.host.memory_ledger import MemoryLedger
from ramet.machine.live import LiveMachine
from ramet.memory.holdings import Holding
from ramet.memory.reading import Pulse, Reading, feel, look_again, look_whole
from ramet.memory.turns import in_turn
from ramet.model.memory import MemoryKind
from ramet.model.units import MIB

log = structlog.stdlib.get_logger(__name__)

_BESIDES = 1.25
"""A reading in its thread, and around it: the hand-over, the row, the choice of the next."""
_FEEL_S = 0.05
"""For each process, between two rounds: a host with few VMs can afford to look every second."""
_REFRESH_S = 0.3
_AT_ONCE = 8
"""Readings in one go in a thread: the threads are everybody's."""


@dataclass(frozen=True)
class SamplerLimits:
    """From the settings."""

    every_s: float = 10.0
    """No process's pulse is felt less often."""
    cpu_percent: float = 2.0
    """Of one processor."""


class MemorySampler:
    """`run` is its life. `ledger` is what it keeps; everything here belongs to the event loop's thread."""

    def __init__(self, floor: Floor, is_busy: Callable[[str], bool], limits: SamplerLimits) -> None:
        self.ledger = MemoryLedger()
        self.cpu_s = 0.0
        """Spent so far."""
        self.readings = 0
        self._refresh_after = 0.0
        self._floor = floor
        self._is_busy = is_busy
        self._limits = limits

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.round()
            except Exception:  # a bug of ours in one reading must not end the measuring of all
                log.exception("memory was not measured")
                await asyncio.sleep(self._limits.every_s)

    async def round(self) -> None:
        """Feel every pulse, then read what is due until it is time to feel again."""
        began = time.monotonic()
        due, cpu_s = await self._due()
        ends_at = began + min(self._limits.every_s, max(1.0, _FEEL_S * len(self.ledger.holdings())))
        await self._rest(cpu_s)
        for one in due:
            if time.monotonic() >= ends_at:
                return
            if not self._is_busy(one):
                await self._rest(await self._read_in_turn(one))
        await asyncio.sleep(max(0.0, ends_at - time.monotonic()))

    async def _due(self) -> tuple[list[str], float]:
        """Whose turn it is by their pulses now, and what it took to feel them, in seconds of a processor."""
        self.sync()
        pulses, cpu_s = await asyncio.to_thread(_feel_all, self.ledger.holdings())
        self.ledger.note_pulses(pulses)
        return in_turn(self.ledger.standings(time.time())), cpu_s

    async def _rest(self, cpu_s: float) -> None:
        spent_s = _BESIDES * cpu_s
        self.cpu_s += spent_s
        await asyncio.sleep(spent_s * (100 / self._limits.cpu_percent - 1))

    async def _read_in_turn(self, one: str) -> float:
        holding = self.ledger.holding(one)
        reading = await asyncio.to_thread(_look, holding, self.ledger.reading(one)) if holding else None
        if holding is None or reading is None:
            return 0.0
        self.readings += 1
        self.ledger.note(holding, reading)
        return reading.cpu_s

    # -- by request ------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Take over who holds guest RAM at this moment."""
        self.ledger.sync(holdings_of(self._floor))

    async def refresh(self) -> None:
        """Somebody looks: read what is due, the most urgent first, for a moment; again only after ten times as long."""
        began = time.monotonic()
        if began < self._refresh_after:
            return
        due, _ = await self._due()
        for one in due:
            if time.monotonic() - began > _REFRESH_S:
                break
            if not self._is_busy(one):
                self.cpu_s += _BESIDES * await self._read_in_turn(one)
        now = time.monotonic()
        self._refresh_after = now + 10 * (now - began)

    async def measure(self, ids: Iterable[str], *, whole: bool = True) -> float:
        """Read these now, whatever share that takes: somebody asked. Those that are gone are left out.

        Without `whole` the processes' own memory is taken as it was, unless it seems to have changed. Returns the
        processor's time that it took, in seconds.
        """
        held = [found for one in ids if (found := self.ledger.holding(one)) is not None]
        asked = [(holding, None if whole else self.ledger.reading(holding.id)) for holding in held]
        cpu_s = 0.0
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            for (holding, _), reading in zip(part, await asyncio.to_thread(_look_at_all, part), strict=True):
                if reading is not None:
                    self.ledger.note(holding, reading)
                    cpu_s += reading.cpu_s
        self.readings += len(asked)
        self.cpu_s += _BESIDES * cpu_s
        return cpu_s


def holdings_of(floor: Floor) -> list[Holding]:
    """VMs that are on, clones that wait in pools, and whoever else keeps guest RAM."""
    return [*filter(None, map(_of_vm, floor.machines.values())), *floor.rooms.holdings.all()]


def _of_vm(live: LiveMachine) -> Holding | None:
    vm = live.vm
    if vm.process is None:
        return None
    kind = MemoryKind.POOL if vm.is_pooled else MemoryKind.VM
    ram_bytes = vm.machine.memory_mib * MIB
    lineage_id = vm.lineage_id or vm.id
    return Holding(vm.id, live.name, kind, lineage_id, vm.process.pid, vm.process.start_ticks, ram_bytes)


def _feel_all(holdings: Sequence[Holding]) -> tuple[dict[str, Pulse], float]:
    began = time.thread_time()
    pulses = {}
    for holding in holdings:
        try:
            pulses[holding.id] = feel(holding)
        except RametError:
            continue  # gone meanwhile
    return pulses, time.thread_time() - began


def _look(holding: Holding, last: Reading | None) -> Reading | None:
    """None for a process that is gone, or is not a VM yet."""
    try:
        return look_whole(holding) if last is None else look_again(holding, last)
    except (RametError, OSError):
        return None


def _look_at_all(asked: Sequence[tuple[Holding, Reading | None]]) -> list[Reading | None]:
    return [_look(holding, last) for holding, last in asked]
