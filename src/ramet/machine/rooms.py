"""What the operations on a VM are composed of: the five lower rooms, and what they ask of the house above."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ramet.guest.agent import Agent
from ramet.hypervisor.cgroup import CgroupHost
from ramet.hypervisor.fork import NativePaths
from ramet.hypervisor.process import QemuUser
from ramet.hypervisor.stun_client import StunHelper
from ramet.hypervisor.version import Qemu
from ramet.machine.acceleration import Acceleration
from ramet.machine.paths import StatePaths
from ramet.memory.admission import Admission
from ramet.memory.holdings import Holdings
from ramet.model.host import Network
from ramet.model.machine import Moment, Vm
from ramet.network.manager import Networks
from ramet.storage.layers import LayerStore

__all__ = ["Agent", "Book", "JournalHandle", "Limits", "Rooms"]


class JournalHandle(Protocol):
    """An operation under way, durable: what recovery finishes or undoes."""

    async def update(self, **detail: Any) -> None: ...


class Book(Protocol):
    """What the host above keeps for the machines: records, events, the journal. Injected, never imported."""

    async def save(self, vm: Vm) -> None: ...

    async def save_fact(self, vm: Vm) -> None:
        """Like `save`, of what is true whether or not it can be written: with a full disk it is written later."""

    async def forget(self, vm_id: str) -> None:
        """A VM that did not come about, or was removed: its record and its name go, with a full disk later."""

    def new_vm_id(self) -> str:
        """One that no VM has, and none that is being made."""

    async def save_moment(self, moment: Moment) -> None: ...

    async def drop_moment(self, moment_id: str) -> None: ...

    def emit(self, kind: str, message: str, vm: Vm | None = None, **fields: Any) -> None: ...

    def operation(
        self, kind: str, vm_id: str, detail: dict[str, Any]
    ) -> AbstractAsyncContextManager[JournalHandle]: ...

    def network(self, name: str) -> Network | None: ...

    def guest_asks_freeze(self, vm_id: str) -> None:
        """Called when a guest freezes itself: the host runs the operation as a task of its own."""

    def guest_asks_restart(self, vm_id: str) -> None:
        """Called when a guest that cannot reset in place has ended with a reset: the host starts it again."""


@dataclass(frozen=True)
class Limits:
    """Deadlines and bounds of the operations; every wait takes its own from here."""

    qmp_s: float = 30.0
    start_s: float = 60.0
    load_s: float = 60.0
    fork_s: float = 30.0
    stun_bound_ms: float = 10_000.0
    chain_bound: int = 8
    recent_stuns: int = 8
    parallel_forks: int = 4
    clone_buffer_mib: int = 32
    """Room for the code that a clone's QEMU translates under emulation."""
    zygotes: bool = True
    """Fork clones from a QEMU that is linked already."""


@dataclass(frozen=True)
class Rooms:
    """The composed rooms, made once by the daemon."""

    paths: StatePaths
    qemu: Qemu
    acceleration: Acceleration
    native: NativePaths
    user: QemuUser | None
    layers: LayerStore
    networks: Networks
    stun: StunHelper
    cgroups: CgroupHost
    book: Book
    limits: Limits = Limits()
    admission: Admission = field(default_factory=Admission)
    holdings: Holdings = field(default_factory=Holdings)
    """Processes with guest RAM that are no VM's: the ledger of memory counts them."""
