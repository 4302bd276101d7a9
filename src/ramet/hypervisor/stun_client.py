"""The daemon's side of the stun helper: starts it, hands it plans, and makes up for it when it dies.

Whatever happens, `StunHelper.stun` ends in bounded time, and says whether the source is what it was before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ramet.errors import InternalError, RametError, from_dict
from ramet.hypervisor import stun_restore
from ramet.hypervisor.fork import ForkReply
from ramet.hypervisor.stun_link import HelperLostError, Job, Link
from ramet.hypervisor.stun_plan import RESTORE_TIMEOUT_S, SnapshotStep, StunPlan, StunResult, StunTimings
from ramet.hypervisor.stun_wire import Message
from ramet.model.cancellation import to_its_end, uncut

_CHILD_END_TIMEOUT_S: Final = 10.0
_SLACK_S: Final = 5.0  # between the helper's own bounds and ours: a helper in order always answers first

async def release(qmp_path: str, *, timeout_s: float) -> None:
    """Let a source that a stun holds run on (`cont` out of `postmigrate`), by its ``stun`` socket.

    Raises QemuError when it does not run afterwards, DeadlineError. Cancelled, it waits for its end first.
    """
    await uncut(asyncio.to_thread(stun_restore.release, qmp_path, timeout_s=timeout_s))


class StunHelper:
    """Owns the helper process, and starts another one when it died. One a daemon; `start` first, `close` last."""

    def __init__(self, *, log_path: Path | None = None) -> None:
        """`log_path` takes what the helper writes to stderr: tracebacks, if anything."""
        self._log_path = log_path
        self._link: Link | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the helper that runs, None when none does."""
        return self._link.pid if self._link is not None and self._link.alive else None

    async def start(self) -> None:
        """Start the helper unless it runs. Raises InternalError when it does not come up."""
        await self._running_link()

    async def close(self) -> None:
        """End the helper. Stuns under way are called off, and their sources restored, before it ends."""
        self._closed = True
        async with self._starting:
            if self._link is not None:
                await self._link.end(grace_s=RESTORE_TIMEOUT_S + _SLACK_S)

    async def stun(self, plan: StunPlan, on_stopped: Callable[[], None]) -> StunResult:
        """Run `plan`; `on_stopped` is called once the source has stopped: QEMU then writes no more to its sockets.

        Raises QemuError, ForkError, StunTooLongError, StateError, TaskCancelledError, DeadlineError or InternalError
        with the fields `step`, `reason`, `restored`, `status`, `snapshotted` ([active, overlay] pairs in force) and
        `disks_known` (else QEMU has to be asked for those). No child of a failed stun is left.

        Cancelled, it waits for the stun's end, undoes it (its children are ended, a held source is released) and only
        then raises CancelledError; snapshots stay in force. Whoever has to record them shields the call.
        """
        result, cancelled = await to_its_end(self._stun(plan, on_stopped))
        if cancelled:
            await to_its_end(self._take_back(plan, result))
            raise asyncio.CancelledError
        return result

    async def _stun(self, plan: StunPlan, on_stopped: Callable[[], None]) -> StunResult:
        link = await self._running_link()
        job = Job(plan, on_stopped)
        try:
            link.submit(job)
            async with asyncio.timeout(plan.longest_s + _SLACK_S):
                message = await job.ended
        except TimeoutError:
            link.kill()  # it hangs: from here on it is like one that died
            raise await self._recover(job) from None
        except HelperLostError:
            raise await self._recover(job) from None
        if message["what"] == "done":
            return _result(job, message)
        await end_children(job.forks)
        raise from_dict(message["error"])

    async def _running_link(self) -> Link:
        async with self._starting:
            if self._closed:
                raise InternalError("The stun helper is closed.")
            if self._link is None or not self._link.alive:
                if self._link is not None:
                    await self._link.end(grace_s=0.0)
                self._link = await Link.start(self._log_path)
            return self._link

    async def _recover(self, job: Job) -> RametError:
        """The helper is gone, and the plan may be half done: bring the source back, and say what happened."""
        recovery = stun_restore.Recovery(True, (), job.status_before)
        if job.status_before:
            recovery = await asyncio.to_thread(
                stun_restore.recover,
                job.plan.qmp_path,
                was_running=job.status_before == "running",
                steps=job.plan.snapshots,
                timeout_s=RESTORE_TIMEOUT_S,
            )
        await end_children(job.forks)
        return HelperLostError(
            "The stun helper ended in the middle of a stun.",
            hint=None if recovery.restored else f"The source could not be resumed: {recovery.status}",
            reason="helper-lost",
            **stun_restore.recovery_fields("helper", recovery),
        )

    async def _take_back(self, plan: StunPlan, result: StunResult) -> None:
        await end_children(result.forks)
        if result.held and result.status_before == "running":
            with contextlib.suppress(RametError):
                await asyncio.to_thread(stun_restore.release, plan.qmp_path, timeout_s=RESTORE_TIMEOUT_S)


def _result(job: Job, message: Message) -> StunResult:
    return StunResult(
        timings=StunTimings(**message["timings"]),
        snapshotted=tuple(SnapshotStep(active, overlay) for active, overlay in message["snapshotted"]),
        forks=tuple(job.forks),
        state_bytes=message["state_bytes"],
        status_before=job.status_before,
        held=job.plan.hold,
    )


async def end_children(forks: Sequence[ForkReply]) -> None:
    """Kill children, wait until they are gone, reap those that are ours, and close their pidfds."""
    if forks:
        await asyncio.to_thread(_end_children_blocking, forks)


def _end_children_blocking(forks: Sequence[ForkReply]) -> None:
    for fork in forks:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fork.pidfd, signal.SIGKILL)
    deadline = time.monotonic() + _CHILD_END_TIMEOUT_S
    for fork in forks:
        poller = select.poll()
        poller.register(fork.pidfd, select.POLLIN)
        if poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            with contextlib.suppress(ChildProcessError):  # one of a VM that an earlier daemon started is init's child
                os.waitid(os.P_PIDFD, fork.pidfd, os.WEXITED | os.WNOHANG)
        os.close(fork.pidfd)
