"""What a guest may ask of its host, for one VM: its configuration keys, its log, and to be frozen.

A call to freeze is answered when the guest goes on: in the source when it is thawed, and in each clone, which finds the
unanswered call among the bytes its moment kept. So the guest's command returns in each of them, once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ramet.guest.commands import CommandError, run_command
from ramet.guest.rpc import GuestRpc, Request
from ramet.model.machine import VmState

if TYPE_CHECKING:
    from ramet.machine.live import LiveMachine

FREEZE = b"instantclone.freeze"
MAX_GUEST_KEYS = 1024
MAX_GUEST_BYTES = 1 << 20


class GuestService:
    """The host's side of guest RPC for one VM. Everything that arrives here comes from a guest: hostile, bounded."""

    def __init__(self, live: LiveMachine) -> None:
        self._live = live
        self._resumed: set[str] = set()
        self._thawed: asyncio.Future[str | None] | None = None

    async def handle(self, request: Request) -> tuple[bool, bytes]:
        """Answer one request: (ok, value)."""
        try:
            return True, await run_command(self, request)
        except CommandError as exc:
            return False, str(exc).encode()

    # -- the verbs (ramet.guest.commands.Service) ------------------------------------------------------------------

    async def get(self, key: str) -> str | None:
        return self._live.vm.machine.extra_config.get(key.lower())

    async def set(self, key: str, value: str) -> None:
        config = {**self._live.vm.machine.extra_config, key.lower(): value}
        if len(config) > MAX_GUEST_KEYS or sum(len(k) + len(v) for k, v in config.items()) > MAX_GUEST_BYTES:
            raise CommandError("Too many keys")
        await self._live.change(machine=self._live.vm.machine.changed(extra_config=config))

    async def log(self, text: str) -> None:
        self._live.rooms.book.emit("guest.log", f"{self._live.name}: {text}", self._live.vm)

    async def freeze(self, request_id: str) -> None:
        """Returns when the guest may go on; CommandError when it could not be frozen."""
        if request_id in self._resumed:
            self._resumed.discard(request_id)
            return
        if self._thawed is None:
            self._thawed = asyncio.get_running_loop().create_future()
            if self._live.vm.state is VmState.RUNNING:
                self._live.rooms.book.guest_asks_freeze(self._live.id)
        problem = await asyncio.shield(self._thawed)
        if problem is not None:
            raise CommandError(problem)

    # -- told by the operations ------------------------------------------------------------------------------------

    def forgive_freezes(self, pending: bytes) -> None:
        """In a clone (or a thawed source after a restart): calls to freeze that were under way are answered at once."""
        codec = GuestRpc()
        for request in codec.receive(pending):
            if request.text.strip().lower() == FREEZE:
                self._resumed.add(request.id)

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
