"""A guest made ready for the stun, and woken afterwards: its own hooks, and its file systems.

The hooks in the guest's /etc/ramet/freeze.d run with ``freeze`` before the stun, and with ``thaw`` after it: in the
source whatever happened, and in every clone before anything else is asked of it. With `quiesce` the file systems are
flushed and held through the guest agent, so that the disks are whole without a journal's replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ramet.errors import DeadlineError, GuestError, RametError
from ramet.guest.identity import freeze_hooks
from ramet.machine.live import LiveMachine
from ramet.model.cancellation import to_its_end, uncut
from ramet.model.requests import CloneVm

_log = logging.getLogger(__name__)

FS_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Quiesced:
    """What was done to the guest, and has to be undone in source and clones."""

    hooks: bool = False
    file_systems: bool = False
    timeout_s: float = FS_TIMEOUT_S

    @property
    def any(self) -> bool:
        return self.hooks or self.file_systems


@contextlib.asynccontextmanager
async def quiesced(live: LiveMachine, request: CloneVm) -> AsyncIterator[Quiesced]:
    """Hold this around the stun, closely. Raises GuestError or DeadlineError, with the source woken again."""
    timeout_s = request.freeze_hooks_timeout_s
    done = Quiesced(timeout_s=timeout_s)
    try:
        if request.freeze_hooks and await _has_agent(live):
            # To their end, also when cancelled: one that is cut off in the middle cannot be followed by its thaw hook.
            hooks, cancelled = await to_its_end(_run_freeze_hooks(live, timeout_s))
            done = Quiesced(hooks=hooks, timeout_s=timeout_s)
            if cancelled:
                raise asyncio.CancelledError
        if request.quiesce:
            await _freeze_file_systems(live)
            done = Quiesced(hooks=done.hooks, file_systems=True, timeout_s=timeout_s)
        yield done
    finally:
        if done.any:
            await uncut(_wake_source(live, done))


async def _has_agent(live: LiveMachine) -> bool:
    """Whether somebody listens in the guest: to ask one who does not would cost every clone a timeout."""
    with contextlib.suppress(RametError, OSError):
        return await live.qmp.is_listening("agent")
    return False


async def _run_freeze_hooks(live: LiveMachine, timeout_s: float) -> bool:
    try:
        return await freeze_hooks(live.agent, "freeze", timeout_s)
    except (GuestError, DeadlineError) as exc:
        exc.hint = "Look into the guest ('ramet vm console'), or leave its hooks out: --no-freeze-hooks."
        raise


async def _freeze_file_systems(live: LiveMachine) -> None:
    if not await _has_agent(live):
        raise GuestError(
            f"No guest agent answers in {live.name!r}, and only it can hold the file systems.",
            hint="Install qemu-guest-agent in the guest, or leave out --quiesce.",
        )
    try:
        await live.agent.freeze_file_systems(timeout_s=FS_TIMEOUT_S)
    except BaseException:
        with contextlib.suppress(RametError, OSError):
            await asyncio.shield(_thaw_file_systems(live))
        raise


async def _thaw_file_systems(live: LiveMachine) -> None:
    """An agent that is stuck may have the freeze still before it: it is to find the thaw behind that."""
    try:
        await live.agent.thaw_file_systems(timeout_s=FS_TIMEOUT_S)
    except (RametError, OSError):
        with contextlib.suppress(RametError, OSError):
            await live.agent.tell("guest-fsfreeze-thaw")
        raise


async def _wake_source(live: LiveMachine, done: Quiesced) -> None:
    """Each step for itself: a file system that stays frozen is worse than any message."""
    for problem in await wake(live, done):
        live.rooms.book.emit("host.warning", f"{live.name}: {problem}", live.vm)


async def wake(live: LiveMachine, done: Quiesced) -> list[str]:
    """Undo in a guest that runs; what went wrong, in sentences."""
    problems = []
    if done.file_systems:
        try:
            await _thaw_file_systems(live)
        except (RametError, OSError) as exc:
            problems.append(f"The guest's file systems may still be frozen: {exc}")
    if done.hooks:
        try:
            await freeze_hooks(live.agent, "thaw", done.timeout_s)
        except (RametError, OSError) as exc:
            problems.append(f"A thaw hook failed in the guest: {exc}")
    return problems
