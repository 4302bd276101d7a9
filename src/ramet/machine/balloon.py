"""How much of its memory a guest is to have, and has: the target that its owner set, and what the host's guard asks for
when memory is short."""

from __future__ import annotations

import contextlib

from ramet.errors import RametError
from ramet.machine.live import LiveMachine
from ramet.model.machine import VmState
from ramet.model.units import MIB
from ramet.model.views import BalloonView

LISTENS = (VmState.RUNNING, VmState.PAUSED)
"""States in which QEMU may be told: that of a frozen VM is saved already, and takes no change."""
SLACK_BYTES = 4 * MIB
"""A guest gives and takes in pieces: less than that apart counts as there."""


def wanted_bytes(live: LiveMachine) -> int:
    """What the guest is to have as its owner wants it."""
    machine = live.vm.machine
    return (machine.memory_target_mib or machine.memory_mib) * MIB


async def apply_memory_target(live: LiveMachine) -> None:
    """Tell the balloon of a VM that is on what its guest is to have; without a target that is all. The guest complies
    while it runs; one that boots does so when its driver starts. What the host's guard has asked for is over: it asks
    anew if it must. Raises what QMP does."""
    await live.qmp.balloon(wanted_bytes(live))
    live.squeezed_to = None


async def balloon_view(live: LiveMachine) -> BalloonView | None:
    """None for a VM that does not run, or whose QEMU does not say."""
    if live.vm.state not in LISTENS:
        return None
    with contextlib.suppress(RametError):
        actual = await live.qmp.balloon_actual_bytes()
        return BalloonView(target_bytes=wanted_bytes(live), actual_bytes=actual, asked_by_host=live.squeezed_to)
    return None
