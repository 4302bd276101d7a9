"""One stun, step by step, in the helper: prepare, stop, pristine, snapshot, state, fork, resume; and the way back.

prepare    connect, negotiate, hand over the state file; refuse what can be refused     the source still runs
stop       the vCPUs halt, the disks are drained and flushed
pristine   layers that are shared as they are have never been written to
snapshot   all disks move on to their overlays, in one transaction
state      QEMU writes the device state, all RAM but the guest's included
fork       the library in QEMU forks it, once for each request
resume     `cont`
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, Protocol

from ramet.errors import (
    DeadlineError,
    ForkError,
    InternalError,
    QemuError,
    RametError,
    StateError,
    StunTooLongError,
    TaskCancelledError,
)
from ramet.hypervisor.fork import ForkClient, ForkReply
from ramet.hypervisor.qcow2_pristine import is_pristine
from ramet.hypervisor.stun_monitor import Monitor, MonitorLostError
from ramet.hypervisor.stun_plan import PREPARE_TIMEOUT_S, RESTORE_TIMEOUT_S, SnapshotStep, StunPlan, StunTimings
from ramet.hypervisor.stun_restore import Recovery, recover_on, recovery_fields

_STATE_NAME: Final = "ramet-state"
_LOOK_AGAIN_S: Final = 0.0002
_UNLIMITED_BYTES_PER_S: Final = 1 << 40  # the default of 128 MiB/s would throttle video memory inside the stun


class Notify(Protocol):
    """Tells the daemon something about this stun. Raises OSError when the daemon is gone."""

    def __call__(self, what: str, fields: dict[str, Any], handed: Sequence[int] = (), /) -> None: ...


class StunSequence:
    """Runs one plan. It tells `began` (about to stop), `stopped`, `forked` (with the child's pidfd) and `done`.

    Children are told of at once: should the helper be killed, somebody has to know of them.
    """

    def __init__(self, plan: StunPlan, notify: Notify, wake_fd: int) -> None:
        self._plan = plan
        self._notify = notify
        self._wake_fd = wake_fd
        self._step = "prepare"
        self._status_before = ""
        self._stop_sent = False
        self._transaction_sent = False
        self._snapshotted: tuple[SnapshotStep, ...] = ()
        self._children: list[ForkReply] = []
        self._timings = StunTimings()
        self._began = self._mark = 0.0

    def run(self) -> None:
        """Do it. On failure the source is brought back to what it was before, and no child is left.

        Raises RametError with the field `reason` and those of `recovery_fields`.
        """
        try:
            with contextlib.ExitStack() as stack:
                self._run(stack)
        finally:
            for child in self._children:
                os.close(child.pidfd)

    def _run(self, stack: contextlib.ExitStack) -> None:
        monitor: Monitor | None = None
        try:
            layers = [stack.enter_context(_opened(check.path)) for check in self._plan.pristine]
            fork = self._connect_fork(stack)
            prepare_deadline = time.monotonic() + PREPARE_TIMEOUT_S
            monitor = Monitor(self._plan.qmp_path, deadline=prepare_deadline, wake_fd=self._wake_fd)
            stack.callback(monitor.close)
            self._prepare(monitor)
            self._stun(monitor, layers, fork)
            self._await_children(fork)
            self._tell("done", self._outcome())
        except Exception as exc:
            raise self._undo(monitor, exc) from exc

    # -- the way there

    def _connect_fork(self, stack: contextlib.ExitStack) -> ForkClient | None:
        if not self._plan.forks:
            return None
        try:
            return stack.enter_context(ForkClient.connect(self._plan.fork_path, timeout_s=self._plan.bound_ms / 1000))
        except OSError as exc:
            raise ForkError(f"The source's fork socket cannot be reached: {exc.strerror}.") from exc

    def _prepare(self, monitor: Monitor) -> None:
        """All that needs no stopped guest. Ends with the source running, and nothing changed that outlives us."""
        capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        getfd = monitor.send(("getfd", {"fdname": _STATE_NAME}), fd=self._plan.state_fd)
        asked = monitor.send(
            ("migrate-set-capabilities", {"capabilities": capabilities}),
            ("migrate-set-parameters", {"max-bandwidth": _UNLIMITED_BYTES_PER_S, "announce-rounds": 0}),
            ("query-migrate", {}),
            ("query-status", {}),
        )
        _, _, _, migration, status = [monitor.reply(number) for number in getfd + asked]
        if blockers := migration.get("blocked-reasons"):
            raise QemuError(f"The source's state cannot be saved: {'; '.join(blockers)}.", reason="blocked")
        self._status_before = status["status"]
        if self._status_before not in self._plan.expect:
            raise StateError(f"The source is {self._status_before}.", state=self._status_before, operation="stun")
        self._tell("began", {"status": self._status_before})

    def _stun(self, monitor: Monitor, layers: Sequence[int], fork: ForkClient | None) -> None:
        self._stop(monitor)
        self._check_pristine(layers)
        self._snapshot(monitor)
        self._save_state(monitor)
        asked = monitor.send(("query-status", {}))[0]  # answered while the library forks
        self._fork(fork)
        self._resume(monitor, asked)

    def _stop(self, monitor: Monitor) -> None:
        self._enter("stop")
        self._began = self._mark = time.monotonic()
        monitor.deadline = self._began + self._plan.bound_ms / 1000
        self._stop_sent = True
        stop, query = monitor.send(("stop", {}), ("query-status", {}))
        monitor.reply(stop)
        status = monitor.reply(query)["status"]
        if status != "paused":  # QEMU had stopped it by itself a moment ago: that is not ours to undo
            self._status_before = status
            raise StateError(f"The source has become {status}.", state=status, operation="stun")
        self._tell("stopped", {})
        self._lap("stop")

    def _check_pristine(self, layers: Sequence[int]) -> None:
        self._enter("pristine")
        for fd, check in zip(layers, self._plan.pristine, strict=True):
            if not is_pristine(fd):
                raise StateError("A layer counted on as unwritten was written to.", reason="stale", path=check.path)

    def _snapshot(self, monitor: Monitor) -> None:
        self._enter("snapshot")
        if not self._plan.snapshots:
            return
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": step.active, "overlay": step.overlay}}
            for step in self._plan.snapshots
        ]
        self._transaction_sent = True
        number = monitor.send(("transaction", {"actions": actions}))[0]
        try:
            monitor.reply(number)
        except MonitorLostError:
            raise
        except QemuError:
            self._transaction_sent = False  # refused as a whole
            raise
        self._snapshotted = self._plan.snapshots
        self._lap("snapshot")

    def _save_state(self, monitor: Monitor) -> None:
        self._enter("state")
        if (ended := monitor.migrate(f"fd:{_STATE_NAME}")) != "completed":
            why = monitor.call("query-migrate").get("error-desc", ended)
            raise QemuError(f"QEMU did not save the source's state: {why}.")
        self._lap("state")

    def _fork(self, fork: ForkClient | None) -> None:
        """All forks; the last child may still be on its way to its program when this returns (`_await_children`)."""
        self._enter("fork")
        if fork is None:
            return
        for index, request in enumerate(self._plan.forks):
            if index:
                fork.finish_fork()
                self._check_time()
            child = fork.start_fork(request)
            self._children.append(child)
            self._tell("forked", {"index": index, "pid": child.pid, "fork_ms": child.fork_ms}, [child.pidfd])
        self._lap("fork")

    def _resume(self, monitor: Monitor, asked: int) -> None:
        self._enter("resume")
        # The migration is "completed" a moment before the VM follows, and a `cont` in between would abort QEMU.
        while monitor.reply(asked)["status"] != "postmigrate":
            monitor.pause(_LOOK_AGAIN_S)
            asked = monitor.send(("query-status", {}))[0]
        if not self._plan.hold:
            monitor.call("cont")
            self._stop_sent = False
            self._lap("resume")
        self._timings = replace(self._timings, total=1000 * (time.monotonic() - self._began))

    def _await_children(self, fork: ForkClient | None) -> None:
        """The source runs again, so this costs it nothing."""
        if fork is not None:
            self._enter("fork")
            fork.finish_fork()

    def _outcome(self) -> dict[str, Any]:
        return {
            "timings": asdict(self._timings),
            "snapshotted": [[step.active, step.overlay] for step in self._snapshotted],
            "state_bytes": os.fstat(self._plan.state_fd).st_size,
        }

    def _tell(self, what: str, fields: dict[str, Any], handed: Sequence[int] = ()) -> None:
        try:
            self._notify(what, fields, handed)
        except OSError as exc:
            raise TaskCancelledError("The daemon is gone.") from exc

    def _enter(self, step: str) -> None:
        self._step = step

    def _lap(self, step: str) -> None:
        now = time.monotonic()
        self._timings = replace(self._timings, **{step: 1000 * (now - self._mark)})
        self._mark = now

    def _check_time(self) -> None:
        if time.monotonic() > self._began + self._plan.bound_ms / 1000:
            raise DeadlineError("The stun's time ran out.")

    # -- the way back

    def _undo(self, monitor: Monitor | None, cause: Exception) -> RametError:
        """Restore the source, kill the children, and say what happened."""
        recovery = Recovery(True, (), self._status_before)
        if self._stop_sent and monitor is not None:
            recovery = self._restore(monitor)
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        error = self._error(cause)
        error.fields.setdefault("reason", error.code)
        recovery = replace(recovery, snapshotted=self._snapshotted or recovery.snapshotted)
        error.fields.update(recovery_fields(self._step, recovery))
        if not recovery.restored:
            error.hint = f"The source could not be resumed: {recovery.status}"
        return error

    def _restore(self, monitor: Monitor) -> Recovery:
        was_running = self._status_before == "running"
        unsure = self._plan.snapshots if self._transaction_sent and not self._snapshotted else ()
        return recover_on(monitor, was_running=was_running, steps=unsure, timeout_s=RESTORE_TIMEOUT_S)

    def _error(self, cause: Exception) -> RametError:
        if isinstance(cause, DeadlineError) and self._began:
            bound = self._plan.bound_ms
            message = f"The stun was ended at its bound of {bound:.0f} ms."
            return StunTooLongError(message, bound_ms=bound, reason="bound")
        if isinstance(cause, RametError):
            return cause
        if isinstance(cause, OSError):
            return InternalError(f"The stun failed: {cause}.")
        return InternalError(f"The stun helper has a bug: {cause!r}.")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
