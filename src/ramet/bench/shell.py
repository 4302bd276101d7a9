"""A guest's shell, whether the daemon has its agent or we have."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Protocol

from ramet.api.client import Client
from ramet.errors import GuestError
from ramet.model.requests import Exec


class Shell(Protocol):
    """`run` returns a script's output and raises GuestError when it fails; `write` makes a file."""

    def run(self, script: str, timeout_s: float = 120.0) -> str: ...
    def write(self, path: str, content: bytes) -> None: ...


@dataclass(frozen=True)
class DaemonShell:
    """Of a VM of the daemon's. The daemon keeps its connection to an agent, and QEMU takes one at a time."""

    client: Client
    vm_id: str

    def run(self, script: str, timeout_s: float = 120.0) -> str:
        request = Exec(argv=("/bin/sh", "-c", script), timeout_s=timeout_s)
        result = self.client.exec_in_vm(self.vm_id, request)
        if result.exit_code != 0:
            raise GuestError(f"A script in the guest failed: {script[:60]}")
        return base64.b64decode(result.stdout_base64).decode(errors="replace")

    def write(self, path: str, content: bytes) -> None:
        self.client.write_file(self.vm_id, path, content)
