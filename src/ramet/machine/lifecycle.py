"""The lifecycle of a VM: everything that decides which state follows which stands in this file.

An *operation* is asked for by a caller; a *happening* is told by QEMU or the guest. Both are looked up in one
table, so that the command line, the API, recovery and the documentation agree. `frozen` is a state of a VM that is
on; power-off and restart lose it, `thaw` resumes it.
"""

from __future__ import annotations

from enum import StrEnum

from ramet.errors import StateError
from ramet.model.machine import VmState


class Operation(StrEnum):
    """What callers ask for."""

    START = "start"
    STOP = "stop"
    KILL = "stop --hard"
    RESTART = "restart"
    SUSPEND = "suspend"
    RESUME = "resume"
    FREEZE = "freeze"
    THAW = "thaw"
    CLONE = "clone"
    RECONFIGURE = "change the hardware"
    REACH_GUEST = "reach the guest"
    REMOVE = "remove"


class Happening(StrEnum):
    """What QEMU, the guest or the kernel tell."""

    STARTED = "started"
    LOADED = "loaded"
    START_FAILED = "start failed"
    GUEST_POWERED_OFF = "guest powered off"
    QEMU_ENDED = "QEMU ended"
    GUEST_STOPPED = "guest stopped by QEMU"
    GUEST_CONTINUED = "guest continued"


_S, _O, _H = VmState, Operation, Happening
_ON = (_S.STARTING, _S.READY, _S.RUNNING, _S.PAUSED, _S.FROZEN, _S.STOPPING)

TRANSITIONS: dict[tuple[VmState, Operation | Happening], VmState] = {
    (_S.OFF, _O.START): _S.STARTING,
    (_S.OFF, _O.RECONFIGURE): _S.OFF,
    (_S.OFF, _O.REMOVE): _S.OFF,
    (_S.STARTING, _H.STARTED): _S.RUNNING,
    (_S.STARTING, _H.LOADED): _S.READY,
    (_S.STARTING, _H.START_FAILED): _S.OFF,
    (_S.READY, _H.STARTED): _S.RUNNING,
    (_S.RUNNING, _O.STOP): _S.STOPPING,
    (_S.RUNNING, _O.RESTART): _S.RUNNING,
    (_S.RUNNING, _O.SUSPEND): _S.SUSPENDED,
    (_S.RUNNING, _O.FREEZE): _S.FROZEN,
    (_S.RUNNING, _O.CLONE): _S.RUNNING,
    (_S.RUNNING, _O.REACH_GUEST): _S.RUNNING,
    (_S.RUNNING, _H.GUEST_STOPPED): _S.PAUSED,
    (_S.STOPPING, _H.GUEST_STOPPED): _S.PAUSED,
    (_S.PAUSED, _O.RESUME): _S.RUNNING,
    (_S.PAUSED, _O.RESTART): _S.RUNNING,
    (_S.PAUSED, _H.GUEST_CONTINUED): _S.RUNNING,
    (_S.FROZEN, _O.THAW): _S.RUNNING,
    (_S.FROZEN, _O.CLONE): _S.FROZEN,
    (_S.FROZEN, _O.RESTART): _S.RUNNING,
    (_S.SUSPENDED, _O.RESUME): _S.STARTING,
    (_S.SUSPENDED, _O.START): _S.STARTING,
    (_S.SUSPENDED, _O.KILL): _S.OFF,
    (_S.SUSPENDED, _O.REMOVE): _S.OFF,
    (_S.STOPPING, _H.START_FAILED): _S.OFF,
    **{(state, _O.KILL): _S.OFF for state in _ON},
    **{(state, happening): _S.OFF for state in _ON for happening in (_H.QEMU_ENDED, _H.GUEST_POWERED_OFF)},
}

_REMEDIES: dict[tuple[VmState, Operation], str] = {
    (_S.OFF, _O.CLONE): "Start it first: an instant clone is made from a VM that is on.",
    (_S.OFF, _O.STOP): "It is off already.",
    (_S.OFF, _O.FREEZE): "Start it first.",
    (_S.OFF, _O.REACH_GUEST): "Start it first.",
    (_S.RUNNING, _O.START): "It runs already.",
    (_S.RUNNING, _O.THAW): "Only a frozen VM can be thawed.",
    (_S.RUNNING, _O.REMOVE): "Stop it first, or remove it with --force.",
    (_S.RUNNING, _O.RECONFIGURE): "Stop it first.",
    (_S.FROZEN, _O.FREEZE): "It is frozen already.",
    (_S.FROZEN, _O.STOP): "A frozen guest cannot shut down: thaw it first, or stop it with --hard.",
    (_S.FROZEN, _O.SUSPEND): "Thaw it first.",
    (_S.FROZEN, _O.REACH_GUEST): "A frozen guest executes nothing: thaw it, or clone it and reach the clone.",
    (_S.FROZEN, _O.REMOVE): "Stop it with --hard first, or remove it with --force.",
    (_S.SUSPENDED, _O.CLONE): "Resume it first.",
    (_S.PAUSED, _O.CLONE): "Resume it first: QEMU holds it because of the reason shown by 'ramet vm show'.",
}


def next_state(state: VmState, move: Operation | Happening, *, name: str = "the VM") -> VmState:
    """The state that follows; StateError, with the remedy where there is one, when the table has none."""
    try:
        return TRANSITIONS[state, move]
    except KeyError:
        remedy = _REMEDIES.get((state, move)) if isinstance(move, Operation) else None
        if remedy is None and isinstance(move, Operation):
            remedy = _states_that_allow(move)
        raise StateError(
            f"Cannot {move.value} {name!r}: it is {state.value}.", hint=remedy, state=state.value, operation=move.value
        ) from None


def allows(state: VmState, move: Operation | Happening) -> bool:
    """Whether the table has a transition."""
    return (state, move) in TRANSITIONS


def _states_that_allow(move: Operation) -> str:
    states = sorted({state.value for (state, m) in TRANSITIONS if m is move})
    return f"That needs a VM that is {' or '.join(states)}."
