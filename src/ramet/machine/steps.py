"""The steps of the workflows, by name: where a daemon may die, for tests that prove what is left then.

With RAMET_KILL_AT set to a step's name the daemon kills itself there, as the kernel would: no clean-up, no goodbye.
"""

from __future__ import annotations

import os
import signal

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
FROZEN_CLONE_STEPS = tuple(step for step in CLONE_STEPS if step not in ("clone.stopped", "clone.taken"))
THAW_STEPS = ("thaw.journalled", "thaw.continued")
IDENTITY_STEPS = ("identity.begun", "identity.acknowledged", "identity.recorded")
POOL_GROW_STEPS = ("pool.journalled", "pool.prepared", "pool.forked", "pool.loaded", "pool.recorded")
POOL_TAKE_STEPS = ("pool.taken", "pool.running")
POOL_DROP_STEPS = ("pool.dropping", "pool.forgotten")

_KILL_AT = os.environ.get("RAMET_KILL_AT")


def reach(step: str) -> None:
    """Say that a step is reached."""
    if step == _KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
