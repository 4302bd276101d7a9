"""Which accelerator a VM runs on: asked for once, when the first VM needs it, and then known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ramet.errors import UnsupportedError
from ramet.hypervisor.accelerator import AcceleratorReport
from ramet.model.machine import Accelerator


class Acceleration:
    """Runs the probe, which may boot a guest for some seconds, at the first need; everybody waits for the same one."""

    def __init__(self, probe: Callable[[], Awaitable[AcceleratorReport]]) -> None:
        self._probe = probe
        self._lock = asyncio.Lock()
        self._report: AcceleratorReport | None = None

    @property
    def known(self) -> AcceleratorReport | None:
        """The verdict, if there is one yet."""
        return self._report

    async def report(self) -> AcceleratorReport:
        async with self._lock:
            if self._report is None:
                self._report = await self._probe()
            return self._report

    async def decide(self, wanted: Accelerator) -> Accelerator:
        """KVM or TCG. Raises UnsupportedError when KVM is asked for and does not run guests here."""
        if wanted is Accelerator.TCG:
            return wanted
        report = await self.report()
        if wanted is Accelerator.KVM and report.accelerator is not Accelerator.KVM:
            raise UnsupportedError(
                f"KVM cannot be used on this host: {report.reason}.", hint="Leave the choice to Ramet: --accel auto."
            )
        return report.accelerator
