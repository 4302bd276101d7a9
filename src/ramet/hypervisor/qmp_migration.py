"""Device state in and out: what QEMU calls migration, from and to a descriptor."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ramet.errors import DeadlineError, QemuError
from ramet.hypervisor.qmp_executor import Executor

UNLIMITED_BYTES_PER_S = 1 << 40
_STATE_NAME = "state"


class MigrationCommands(Executor):
    async def configure_migration(self, *, ignore_ram: bool = True) -> None:
        """Once per QEMU, after connecting: guest RAM stays out of the device state, and every change is reported.

        (The capability is no property that could be set on the command line, in any version.)
        """
        await self.set_capabilities(x_ignore_shared=ignore_ram, events=True)

    async def set_capabilities(self, **states: bool) -> None:
        capabilities = [{"capability": name.replace("_", "-"), "state": state} for name, state in states.items()]
        await self.execute("migrate-set-capabilities", {"capabilities": capabilities})

    async def incoming(self, fd: int, *, timeout_s: float) -> None:
        """Load a device state from a descriptor (positioned at its start; QEMU gets a copy) and wait until it is in.

        QEMU was started with ``-incoming defer``; afterwards it is paused. Raises QemuError when the state is refused:
        QEMU before 9.1 ends then, and its log says why.
        """
        with self.events("MIGRATION") as events:
            await self.execute_with_fd(fd, "getfd", {"fdname": _STATE_NAME})
            await self.execute("migrate-incoming", {"uri": f"fd:{_STATE_NAME}"}, timeout_s=timeout_s)
            await self._finish(events, timeout_s)

    async def migrate_to_fd(self, fd: int, *, with_ram: bool, timeout_s: float) -> None:
        """Write the state of a stopped VM, with its RAM or without, to a descriptor; QEMU gets a copy.

        Afterwards the VM is in ``postmigrate``: `cont` resumes it. Raises QemuError, DeadlineError; then the
        migration is cancelled and the VM is as it was.
        """
        if with_ram:
            await self.set_capabilities(x_ignore_shared=False)
        try:
            with self.events("MIGRATION") as events:
                await self.execute_with_fd(fd, "getfd", {"fdname": _STATE_NAME})
                await self.execute("migrate", {"uri": f"fd:{_STATE_NAME}"}, timeout_s=timeout_s)
                try:
                    await self._finish(events, timeout_s)
                except DeadlineError:
                    await self.execute("migrate_cancel")
                    raise
            await self._finalized(timeout_s)
        finally:
            if with_ram:
                await self.set_capabilities(x_ignore_shared=True)

    async def _finish(self, events: Any, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            event = await events.next(max(0.0, deadline - time.monotonic()))
            if event is None:
                raise QemuError("QEMU ended while it read or wrote a device state.", lost=True)
            status = event["data"]["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise QemuError(f"The device state was not taken over: {await self._failure()}.")

    async def _finalized(self, timeout_s: float) -> None:
        """QEMU says "completed" a moment before it is done, and refuses `cont` until then; there is no event for it."""
        deadline = time.monotonic() + timeout_s
        while (await self.execute("query-status", timeout_s=timeout_s))["status"] == "finish-migrate":
            if time.monotonic() > deadline:
                raise DeadlineError(f"QEMU did not finish writing the device state within {timeout_s:g} s.")
            await asyncio.sleep(0.0005)

    async def _failure(self) -> str:
        answer = await self.execute("query-migrate")
        return str(answer.get("error-desc", answer.get("status", "QEMU does not say why"))).rstrip(".")
