"""How a guest ended, from the event log that its QEMU left: the answer is there even if no daemon was listening."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.hypervisor.plan import EVENT_LOG

_TAIL_BYTES = 65536
_MAX_LINE_BYTES = 8192

GUEST_RESET = "guest-reset"
GUEST_SHUTDOWN = "guest-shutdown"


@dataclass(frozen=True, slots=True)
class Ending:
    """The last SHUTDOWN event. `reason` is QEMU's own word: guest-shutdown, guest-reset, guest-panic, host-qmp-quit,
    host-signal, …"""

    reason: str
    by_guest: bool
    at: float
    """Unix time."""

    @property
    def wants_restart(self) -> bool:
        """A guest that was booted from a kernel of ours restarted: its QEMU ended, and is to be launched anew."""
        return self.reason == GUEST_RESET


def read_ending(log_dir: Path) -> Ending | None:
    """How the latest QEMU that logged to `log_dir` ended, or None: it was killed, or it still runs.

    What QEMU writes there a guest can provoke, so only the end of the log is read, and lines of a sane length.
    """
    ending = None
    for line in _tail(log_dir / EVENT_LOG):
        message = _parse(line)
        if "QMP" in message:  # the greeting of the next process
            ending = None
        elif message.get("event") == "SHUTDOWN":
            ending = _ending(message) or ending
    return ending


def _tail(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return []


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > _MAX_LINE_BYTES:
        return {}
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _ending(message: dict[str, Any]) -> Ending | None:
    try:
        stamp = message["timestamp"]
        at = stamp["seconds"] + stamp["microseconds"] / 1e6
        return Ending(str(message["data"]["reason"]), bool(message["data"]["guest"]), float(at))
    except (KeyError, TypeError, OverflowError):
        return None
