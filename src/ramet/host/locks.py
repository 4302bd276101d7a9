"""One operation at a time on a VM, and a clear word on which.

    locks = VmLocks(name_of=lambda vm_id: "web")
    async with locks.hold(vm_id, "stop"): ...                    # BusyError at once when another operation holds it
    async with locks.hold(vm_id, "clone", shared=True): ...      # others of the same operation may share
    async with locks.hold(vm_id, "adopt", wait_s=5.0): ...       # waits that long before the BusyError
    locks.busy_with(vm_id) -> str | None

The message: "'web' is busy: clone has been running for 3 s."
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ramet.errors import BusyError
from ramet.host.bell import Bell


@dataclass(slots=True)
class _Held:
    operation: str
    shared: bool
    since: float
    holders: int = 1


class VmLocks:
    """Not re-entrant: an operation that calls another passes the hold on by not taking it again."""

    def __init__(self, name_of: Callable[[str], str] = str) -> None:
        self._name_of = name_of
        self._held: dict[str, _Held] = {}
        self._released = Bell()

    def busy_with(self, vm_id: str) -> str | None:
        """The operation that holds the VM."""
        held = self._held.get(vm_id)
        return held.operation if held else None

    def is_busy(self, vm_id: str) -> bool:
        return vm_id in self._held

    @asynccontextmanager
    async def hold(
        self, vm_id: str, operation: str, *, shared: bool = False, wait_s: float = 0.0
    ) -> AsyncIterator[None]:
        """Hold the VM for the block. Shared holds go together when the operation's name is the same."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while not self._take(vm_id, operation, shared):
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0 or not await self._released.wait(left_s):
                if self._take(vm_id, operation, shared):
                    break
                raise self._busy(vm_id)
        try:
            yield
        finally:
            self._give_back(vm_id)

    def _take(self, vm_id: str, operation: str, shared: bool) -> bool:
        held = self._held.get(vm_id)
        if held is None:
            self._held[vm_id] = _Held(operation, shared, time.monotonic())
            return True
        if shared and held.shared and held.operation == operation:
            held.holders += 1
            return True
        return False

    def _give_back(self, vm_id: str) -> None:
        held = self._held[vm_id]
        held.holders -= 1
        if held.holders == 0:
            del self._held[vm_id]
            self._released.ring()

    def _busy(self, vm_id: str) -> BusyError:
        held = self._held[vm_id]
        for_s = time.monotonic() - held.since
        return BusyError(
            f"{self._name_of(vm_id)!r} is busy: {held.operation} has been running for {for_s:.0f} s.",
            hint="Try again when it is done; `ramet task ls` shows it.",
            operation=held.operation,
            for_s=round(for_s, 3),
        )
