"""Running, stopping, looking."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ramet.hypervisor.qmp_executor import Executor

PICTURE_SET_OPAQUE = "screendump"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """`status` is QEMU's own word: running, paused, postmigrate, inmigrate, io-error, shutdown, prelaunch, …"""

    status: str
    running: bool


class RunCommands(Executor):
    async def status(self, timeout_s: float = 30.0) -> RunStatus:
        answer = await self.execute("query-status", timeout_s=timeout_s)
        return RunStatus(answer["status"], answer["running"])

    async def uuid(self) -> str:
        """Which VM this is: asked of every process that was found again."""
        answer = await self.execute("query-uuid")
        return str(answer["UUID"])

    async def cont(self, timeout_s: float = 30.0) -> None:
        await self.execute("cont", timeout_s=timeout_s)

    async def stop(self, timeout_s: float = 30.0) -> None:
        """Stops the processors and flushes the disks, which on a slow disk takes its time."""
        await self.execute("stop", timeout_s=timeout_s)

    async def system_powerdown(self) -> None:
        """Press the power button. Whether the guest heeds it shows in a SHUTDOWN event."""
        await self.execute("system_powerdown")

    async def system_reset(self) -> None:
        await self.execute("system_reset")

    async def quit(self) -> None:
        """QEMU flushes its disks and ends; the session is lost with it."""
        await self.execute("quit")

    async def screendump(self, *, timeout_s: float = 30.0) -> bytes:
        """The picture of the VM's display, as PNG. Raises QemuError when it has none."""
        picture = os.memfd_create("screendump")
        try:
            # QEMU wants a descriptor that is open for writing only, and a memfd is open for both.
            writable = os.open(f"/proc/self/fd/{picture}", os.O_WRONLY)
            try:
                added = await self.execute_with_fd(writable, "add-fd", {"opaque": PICTURE_SET_OPAQUE})
            finally:
                os.close(writable)
            number = added["fdset-id"]
            try:
                await self.execute(
                    "screendump", {"filename": f"/dev/fdset/{number}", "format": "png"}, timeout_s=timeout_s
                )
            finally:
                await self.execute("remove-fd", {"fdset-id": number})
            return os.pread(picture, os.fstat(picture).st_size, 0)
        finally:
            os.close(picture)
