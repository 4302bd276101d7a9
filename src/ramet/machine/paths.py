"""Where things lie under the state directory: one place that knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StatePaths:
    """Paths under one state directory. Nothing here touches the disk but `prepare`."""

    root: Path

    @property
    def inventory(self) -> Path:
        return self.root / "inventory.db"

    @property
    def records(self) -> Path:
        """A second copy of every record of the inventory."""
        return self.root / "records"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def native(self) -> Path:
        return self.run / "native"

    @property
    def network(self) -> Path:
        return self.root / "network"

    def vm(self, vm_id: str) -> Path:
        """Logs, the console's scrollback, the seed, a suspended VM's state."""
        return self.root / "vms" / vm_id

    def vm_run(self, vm_id: str) -> Path:
        """Sockets of a VM that is on."""
        return self.run / vm_id

    def console_log(self, vm_id: str) -> Path:
        return self.vm(vm_id) / "console.log"

    def suspended_state(self, vm_id: str) -> Path:
        return self.vm(vm_id) / "suspended.state"

    def moment_state(self, moment_id: str) -> Path:
        """Device state of a held moment."""
        return self.root / "moments" / f"{moment_id}.state"

    def prepare(self) -> None:
        """Make the directories. 0711: QEMU's user must pass through to its own, and list nothing."""
        for directory in (self.root, self.run, self.root / "vms", self.network, self.native):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o711)
        for directory in (self.images, self.root / "moments"):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o700)
