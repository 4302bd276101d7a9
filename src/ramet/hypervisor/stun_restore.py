"""Bringing a stopped source back: used by the stun helper when a stun fails, and by the daemon when the helper died.

The rule: only a source that ran before, and that stands in a state a stun leaves it in, is resumed. One that QEMU
stopped by itself (io-error, panic) stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ramet.errors import QemuError
from ramet.hypervisor.stun_monitor import NO_WAKE, Monitor, MonitorAbsentError, MonitorLostError
from ramet.hypervisor.stun_plan import SnapshotStep

_STOPPED_BY_A_STUN: Final = frozenset({"paused", "postmigrate"})
_MIGRATION_ENDED: Final = frozenset({None, "none", "completed", "failed", "cancelled"})
_LOOK_AGAIN_S: Final = 0.002
_CONNECTIONS: Final = 3


def resume(monitor: Monitor) -> str:
    """Make a source run that a stun stopped, whatever it was doing; the state it is in at the end.

    A migration under way is cancelled first and awaited: a source resumed meanwhile would be stopped again by it, and
    QEMU aborts when it finds a running VM where it expects the stopped one. Bounded by the monitor's deadline.
    Raises QemuError when QEMU refuses to go on, DeadlineError.
    """
    cancelled = False
    while True:
        migration, status = look(monitor)
        if migration not in _MIGRATION_ENDED:
            if not cancelled:
                monitor.call("migrate_cancel")
                cancelled = True
        elif status in _STOPPED_BY_A_STUN:
            monitor.call("cont")
            return str(monitor.call("query-status")["status"])
        elif status != "finish-migrate":
            return status
        monitor.pause(_LOOK_AGAIN_S)


def look(monitor: Monitor) -> tuple[str | None, str]:
    """The migration's status and the VM's, asked in one go."""
    migration, status = monitor.send(("query-migrate", {}), ("query-status", {}))
    return monitor.reply(migration).get("status"), str(monitor.reply(status)["status"])


def find_snapshotted(monitor: Monitor, steps: Sequence[SnapshotStep]) -> tuple[SnapshotStep, ...]:
    """Those steps whose overlay stands above its active node now."""
    if not steps:
        return ()
    graph: dict[str, Any] = monitor.call("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    backed = {(names.get(e["parent"]), names.get(e["child"])) for e in graph["edges"] if e["name"] == "backing"}
    return tuple(step for step in steps if (step.overlay, step.active) in backed)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of a source.

    `restored`: it is what it was before. `snapshotted`: the disks that moved on to their overlays. Those are only
    believed when `disks_known`; a QEMU that does not answer has to be asked again. `status`: its state, or the reason.
    """

    restored: bool
    snapshotted: tuple[SnapshotStep, ...]
    status: str
    disks_known: bool = True


def recovery_fields(step: str, recovery: Recovery) -> dict[str, Any]:
    """How an error tells of it."""
    return {
        "step": step,
        "restored": recovery.restored,
        "status": recovery.status,
        "snapshotted": [[pair.active, pair.overlay] for pair in recovery.snapshotted],
        "disks_known": recovery.disks_known,
    }


def recover_on(monitor: Monitor, *, was_running: bool, steps: Sequence[SnapshotStep], timeout_s: float) -> Recovery:
    """Bring the source back, on this connection or, when that was lost, on a new one. Never raises."""
    monitor.deadline, monitor.wake_fd = time.monotonic() + timeout_s, NO_WAKE
    try:
        return _recover(monitor, was_running=was_running, steps=steps)
    except MonitorLostError:
        return recover(monitor.path, was_running=was_running, steps=steps, timeout_s=timeout_s)
    except Exception as exc:
        return Recovery(False, (), str(exc), disks_known=not steps)


def recover(qmp_path: str, *, was_running: bool, steps: Sequence[SnapshotStep], timeout_s: float) -> Recovery:
    """On a connection of its own: bring back a source, and find out what had happened to its disks. Never raises.

    `steps` are those that may have been taken. When QEMU is gone all of them count as taken: an overlay that nobody
    wrote to reads as its base does, but one that somebody wrote to must not be lost.
    """
    deadline, reason = time.monotonic() + timeout_s, ""
    for _ in range(_CONNECTIONS):
        try:
            with Monitor(qmp_path, deadline=deadline) as monitor:
                return _recover(monitor, was_running=was_running, steps=steps)
        except MonitorAbsentError as exc:
            return Recovery(False, tuple(steps), exc.message)
        except MonitorLostError as exc:
            reason = exc.message
        except Exception as exc:
            reason = str(exc)
            break
    return Recovery(False, (), reason, disks_known=not steps)


def _recover(monitor: Monitor, *, was_running: bool, steps: Sequence[SnapshotStep]) -> Recovery:
    status = resume(monitor) if was_running else look(monitor)[1]
    restored = status == "running" if was_running else status != "postmigrate"
    return Recovery(restored, find_snapshotted(monitor, steps), status)


def release(qmp_path: str, *, timeout_s: float) -> None:
    """Let a held source run on. Raises QemuError when it does not run afterwards, DeadlineError."""
    with Monitor(qmp_path, deadline=time.monotonic() + timeout_s) as monitor:
        status = resume(monitor)
    if status != "running":
        raise QemuError(f"The source does not run on: it is {status}.", status=status)
