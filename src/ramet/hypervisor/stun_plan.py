"""What a stun is to do, and what came of it: the values that pass between the daemon and its stun helper.

Plain dataclasses, because the helper imports nothing that it does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ramet.errors import PeerError
from ramet.hypervisor.fork import ForkReply, ForkRequest

PREPARE_TIMEOUT_S: Final = 10.0
"""Bound of everything before the source is stopped."""

RESTORE_TIMEOUT_S: Final = 120.0
"""Bound of bringing the source back after a failure. QEMU answers nobody while it drains a slow disk, and giving up on
it then would leave the source stopped."""


@dataclass(frozen=True, slots=True)
class SnapshotStep:
    """One disk: the node the guest writes to, and the overlay (added already, backing null) that takes over."""

    active: str
    overlay: str


@dataclass(frozen=True, slots=True)
class PristineCheck:
    """A qcow2 layer that is shared as it is, on the condition that nothing was ever written to it."""

    path: str


@dataclass(frozen=True, slots=True)
class StunPlan:
    """All of one stun, prepared while the source still runs.

    `qmp_path` and `fork_path` are the source's sockets ``stun`` and ``fork``. `state_fd` is an empty file that takes
    the device state. `hold` leaves the source stopped. The source must be in one of the states `expect` (QEMU's names);
    without `hold` only ``running`` can be gone back to.

    A held source stands in ``postmigrate``, its disks inactive. It can be forked, asked (query-…), released and ended;
    a second `migrate` is refused, and a write to its disks or a save makes QEMU 7.2 abort.

    Resource handling: the descriptors stay the caller's.
    """

    qmp_path: str
    fork_path: str
    state_fd: int
    snapshots: tuple[SnapshotStep, ...] = ()
    pristine: tuple[PristineCheck, ...] = ()
    forks: tuple[ForkRequest, ...] = ()
    hold: bool = False
    bound_ms: float = 10_000.0
    expect: tuple[str, ...] = ("running",)

    @property
    def longest_s(self) -> float:
        """The longest that a helper in order needs, whatever happens."""
        return PREPARE_TIMEOUT_S + 2 * self.bound_ms / 1000 + RESTORE_TIMEOUT_S  # a fork may begin at the bound

    def to_wire(self) -> tuple[dict[str, Any], list[int]]:
        """As JSON and descriptors; in the JSON a descriptor is its index in the list."""
        fds = [self.state_fd]
        forks = []
        for request in self.forks:
            first = len(fds)
            fds += request.fds
            places = list(range(first, len(fds)))
            forks.append({"argv": list(request.argv), "env": dict(request.env), "fds": places, "name": request.name})
        plan = {
            "qmp_path": self.qmp_path,
            "fork_path": self.fork_path,
            "snapshots": [[step.active, step.overlay] for step in self.snapshots],
            "pristine": [check.path for check in self.pristine],
            "forks": forks,
            "hold": self.hold,
            "bound_ms": self.bound_ms,
            "expect": list(self.expect),
        }
        return plan, fds

    @classmethod
    def from_wire(cls, plan: dict[str, Any], fds: Sequence[int]) -> StunPlan:
        """The inverse of `to_wire`. Raises PeerError."""
        try:
            return cls(
                qmp_path=plan["qmp_path"],
                fork_path=plan["fork_path"],
                state_fd=fds[0],
                snapshots=tuple(SnapshotStep(active, overlay) for active, overlay in plan["snapshots"]),
                pristine=tuple(PristineCheck(path) for path in plan["pristine"]),
                forks=tuple(_fork_request(fork, fds) for fork in plan["forks"]),
                hold=plan["hold"],
                bound_ms=plan["bound_ms"],
                expect=tuple(plan["expect"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            raise PeerError("A plan for a stun is not understood.") from exc


def _fork_request(fork: dict[str, Any], fds: Sequence[int]) -> ForkRequest:
    handed = tuple(fds[place] for place in fork["fds"])
    return ForkRequest(argv=tuple(fork["argv"]), env=dict(fork["env"]), fds=handed, name=fork["name"])


@dataclass(frozen=True, slots=True)
class StunTimings:
    """Milliseconds. `total` runs from `stop` sent to `cont` acknowledged, or to the last step of a held source."""

    stop: float = 0.0
    snapshot: float = 0.0
    state: float = 0.0
    fork: float = 0.0
    resume: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class StunResult:
    """A stun that did what its plan says. `forks` are in the plan's order; `state_bytes` is the device state's size.

    Resource handling: whoever gets it closes the forks' pidfds.
    """

    timings: StunTimings
    snapshotted: tuple[SnapshotStep, ...]
    forks: tuple[ForkReply, ...]
    state_bytes: int
    status_before: str
    held: bool

    def timings_ms(self) -> dict[str, float]:
        """The timings under the names that a record of a stun has."""
        return {f"{name}_ms": round(value, 3) for name, value in asdict(self.timings).items()}
