"""The steps of the workflows, by name: the one table of places where something may go wrong.

Tests inject a fault at each of them and look at what is left; nothing else reads this. A daemon of a test's own takes
one from its environment, ``RAMET_FAULT=STEP:KIND``:

    kill      the daemon kills itself there, as the kernel would: no clean-up, no goodbye
    enospc    the step fails as on a full disk, once
    eagain    the step fails as where no process can be made, once

A test in the daemon's own process puts a function of the step's name in the place of `inject`, and can do more.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

CREATE_STEPS = ("create.journalled", "create.layered", "create.recorded")
COPY_STEPS = ("copy.journalled", "copy.layered", "copy.recorded")
SETTLE_STEPS = ("copy.settling", "copy.settled")
START_STEPS = (
    "start.journalled",
    "start.wired",
    "start.launched",
    "start.attached",
    "start.recorded",
    "start.running",
)
STOP_STEPS = ("stop.recorded", "stop.signalled")
SUSPEND_STEPS = ("suspend.journalled", "suspend.stopped", "suspend.written", "suspend.recorded", "stop.signalled")
REMOVE_STEPS = ("remove.journalled", "remove.forgotten", "remove.cleared")
CLONE_STEPS = (
    "clone.journalled",
    "clone.prepared",
    "clone.stopped",
    "clone.taken",
    "clone.forked",
    "clone.adopted",
    "clone.loaded",
    "clone.running",
)
FREEZE_STEPS = ("freeze.journalled", "freeze.stopped", "freeze.taken", "freeze.written", "freeze.recorded")
ZYGOTE_STEPS = ("zygote.forked",)
FROZEN_CLONE_STEPS = tuple(step for step in CLONE_STEPS if step not in ("clone.stopped", "clone.taken"))
THAW_STEPS = ("thaw.journalled", "thaw.continued")
IDENTITY_STEPS = ("identity.begun", "identity.acknowledged", "identity.recorded")
POOL_GROW_STEPS = ("pool.journalled", "pool.prepared", "pool.forked", "pool.loaded", "pool.recorded")
POOL_TAKE_STEPS = ("pool.taken", "pool.running")
POOL_DROP_STEPS = ("pool.dropping", "pool.forgotten")
FLATTEN_STEPS = ("flatten.journalled", "flatten.merged", "flatten.reopened", "flatten.swapped")
TRY_STEPS = ("try.cloned", "try.looked", "try.ran")
IMPORT_STEPS = ("import.begun", "import.layered", "import.recorded")
NETWORK_STEPS = ("network.made", "network.recorded", "network.forgotten", "network.removed")
DISK_STEPS = ("disk.made", "disk.recorded", "disk.plugged")
NIC_STEPS = ("nic.recorded", "nic.plugged")

Injector = Callable[[str], None]

_RAISED = {"enospc": errno.ENOSPC, "eagain": errno.EAGAIN}


def from_environment(text: str | None) -> Injector | None:
    """The fault that RAMET_FAULT asks for. ValueError for one that there is not: a test that injects nothing lies."""
    if not text:
        return None
    step, _, kind = text.partition(":")
    if kind != "kill" and kind not in _RAISED:
        raise ValueError(f"RAMET_FAULT={text}: there is no fault {kind!r}.")
    done: list[str] = []

    def injector(reached: str) -> None:
        if reached != step or done:
            return
        done.append(reached)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(_RAISED[kind], os.strerror(_RAISED[kind]), f"injected at {step}")

    return injector


inject: Injector | None = from_environment(os.environ.get("RAMET_FAULT"))


def reach(step: str) -> None:
    """Say that a step is reached. Without a fault to inject that is one comparison."""
    if inject is not None:
        inject(step)
