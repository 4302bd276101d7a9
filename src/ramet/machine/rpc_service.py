"""What a guest may ask of its host, for one VM: its configuration keys, its log, and to be frozen.

A call to freeze is answered when the guest goes on: in the source when it is thawed, and in each clone, which finds the
unanswered call among the bytes its moment kept. So the guest's command returns in each of them, once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ramet.errors import GuestError, RametError
from ramet.guest import commands
from ramet.model.machine import VmState

if TYPE_CHECKING:
    from ramet.machine.live import LiveMachine

_LOG_BURST = 200.0
_LOG_PER_S = 10.0
"""Lines of a guest's for the log: all VMs' events share one history, which one guest is not to fill."""


class GuestService:
    """The host's side of guest RPC for one VM (``ramet.guest.commands.GuestHost``)."""

    def __init__(self, live: LiveMachine) -> None:
        self._live = live
        self._thawed: asyncio.Future[str | None] | None = None
        self._log_lines = _LOG_BURST
        self._logged_at = time.monotonic()

    async def handle(self, text: bytes) -> tuple[bool, bytes]:
        """Answer a request that this VM's guest made."""
        return await commands.answer(text, self)

    async def handle_inherited(self, text: bytes) -> tuple[bool, bytes]:
        """Answer a request that the guest of a clone has from its source."""
        return await commands.answer_inherited(text, self)

    # -- GuestHost -------------------------------------------------------------------------------------------------

    def config(self) -> Mapping[str, str]:
        return self._live.vm.machine.extra_config

    async def store(self, key: str, value: str) -> None:
        machine = self._live.vm.machine
        try:
            await self._live.change(machine=machine.changed(extra_config={**machine.extra_config, key: value}))
        except RametError as exc:
            raise GuestError("Not stored") from exc

    def log(self, text: str) -> None:
        """GuestError, which the guest is told, for more lines than a guest may log."""
        now = time.monotonic()
        self._log_lines = min(_LOG_BURST, self._log_lines + (now - self._logged_at) * _LOG_PER_S)
        self._logged_at = now
        if self._log_lines < 1:
            raise GuestError("Too many log lines")
        self._log_lines -= 1
        self._live.rooms.book.emit("guest.log", f"{self._live.name}: {text}", self._live.vm)

    async def freeze(self) -> None:
        """Returns when the guest may go on; GuestError, which the guest is told, when it could not be frozen."""
        if self._thawed is None:
            self._thawed = asyncio.get_running_loop().create_future()
            if self._live.vm.state is not VmState.FROZEN:
                self._live.rooms.book.guest_asks_freeze(self._live.id)
        problem = await asyncio.shield(self._thawed)
        if problem is not None:
            raise GuestError(problem)

    # -- told by the operations ------------------------------------------------------------------------------------

    def thaw(self) -> None:
        """The source goes on: the guest's call returns."""
        self._settle(None)

    def fail_freeze(self, reason: str) -> None:
        """The freeze did not come about, or the VM ended in it."""
        self._settle(reason)

    def _settle(self, problem: str | None) -> None:
        if self._thawed is not None and not self._thawed.done():
            self._thawed.set_result(problem)
        self._thawed = None
