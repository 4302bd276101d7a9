"""Which files VMs write to without end, and which of them may have grown since somebody looked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ramet.host.floor import Floor
from ramet.host.settings import Settings
from ramet.hypervisor.plan import EVENT_LOG, QEMU_LOG


class VmLogs:
    """One a host, asked by one rotator."""

    def __init__(self, floor: Floor, settings: Settings) -> None:
        self._floor = floor
        self._settings = settings
        self._ran: set[str] | None = None

    def due(self) -> Iterator[tuple[Path, int]]:
        """With their quotas in bytes: of VMs that are on, or were when this was asked last; the first time of all that
        there are. Of ten thousand that are off it would take seconds each time. May be called in a thread."""
        machines = list(self._floor.machines.values())
        on = {live.id for live in machines if live.vm.is_on}
        due = {live.id for live in machines} if self._ran is None else on | self._ran
        self._ran = on
        paths = self._floor.rooms.paths
        for vm_id in due:
            yield paths.console_log(vm_id), self._settings.console_quota_bytes
            for name in (QEMU_LOG, EVENT_LOG):
                yield paths.vm(vm_id) / name, self._settings.log_quota_bytes
