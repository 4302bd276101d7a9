"""What guests tell of themselves: their addresses, and what their agent says. Asked in the background.

    facts.addresses(vm) -> {nic_id: address}     # by lease, or as seen on the wire
    facts.seen(vm) -> GuestSeen or None          # of the process that runs now; None: not asked yet
    await facts.prepare(vm)                      # somebody reads it: waits a moment for what is not known at all
    facts.goes_down(vm)                          # its guest was asked to end: what it said before is no longer true
    await facts.run()                            # until cancelled

An agent is a guest's, and may be slow or silent; one command at a time reaches it, and a clone's stun waits for that
one. So it is asked rarely: guests somebody has looked at lately, a few each second, those that do not answer ever
less often, and none that an operation holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from ramet.errors import RametError
from ramet.model.machine import Vm, VmState

if TYPE_CHECKING:
    from ramet.host.service import Host

log = structlog.stdlib.get_logger(__name__)

FRESH_S = 2.0
"""How old what is shown may be while somebody looks."""
STEADY_S = 10.0
"""How often a guest is asked that has answered with an address."""
LONGEST_S = 60.0
"""How often one that does not answer."""
INTEREST_S = 3600.0
PATIENCE_S = 0.5
"""How long a reader waits for what is not known at all."""
ANSWER_S, FIRST_ANSWER_S = 5.0, 1.0
AT_ONCE = 4
_NAMES_S = 30.0


@dataclass(frozen=True)
class GuestSeen:
    """What the agent of a guest said last."""

    at: float
    """Monotonic."""
    process: Any
    """The process that was asked: what another one said means nothing."""
    answers: bool
    failures: int = 0
    interfaces: tuple[Any, ...] = ()
    host_name: str | None = None
    os: Any = None
    named_at: float = 0.0

    @property
    def has_address(self) -> bool:
        return any(_is_real(one) for interface in self.interfaces for one in interface.addresses)

    def is_like(self, other: GuestSeen | None) -> bool:
        """Whether a client would see no difference."""
        return other is not None and (self.answers, self.interfaces, self.host_name, self.os) == (
            other.answers, other.interfaces, other.host_name, other.os,
        )  # fmt: skip


def _is_real(address: Any) -> bool:
    return address.kind == "ipv4" and not address.address.startswith("127.")


class GuestFacts:
    """One a world. `touch` is called with the id of a VM of which something else is known now."""

    def __init__(self, host: Host, touch: Callable[[str], None]) -> None:
        self._host = host
        self._touch = touch
        self._leases: dict[str, str] = {}
        self._leases_at = -FRESH_S
        self._known: dict[str, dict[str, str]] = {}
        """VM id -> the addresses that were shown."""
        self._seen: dict[str, GuestSeen] = {}
        self._wanted: dict[str, float] = {}
        """VM id -> when somebody looked last."""
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._turns = asyncio.Semaphore(AT_ONCE)

    # -- what is known ---------------------------------------------------------------------------------------------

    def addresses(self, vm: Vm) -> dict[str, str]:
        if not vm.is_on:
            return {}
        return self._host.floor.rooms.networks.addresses_of(vm.id, vm.machine.nics, self._leases)

    def seen(self, vm: Vm) -> GuestSeen | None:
        found = self._seen.get(vm.id)
        return found if found is not None and vm.process is not None and found.process == vm.process else None

    def goes_down(self, vm: Vm) -> None:
        """Clients wait for its tools to end and come back: one that looks every 15 s must not miss that between."""
        self._seen[vm.id] = GuestSeen(time.monotonic(), vm.process, answers=False)
        self._touch(vm.id)

    # -- somebody looks --------------------------------------------------------------------------------------------

    async def prepare(self, vm: Vm) -> None:
        if not vm.is_on or self._group is None:
            return
        self._wanted[vm.id] = time.monotonic()
        waits = [self._read_leases_soon()] if time.monotonic() - self._leases_at > FRESH_S else []
        if vm.state is VmState.RUNNING and self.seen(vm) is None:
            is_crowded = len(self._asking) >= AT_ONCE  # a list of many guests waits for the first few only
            asked = self._ask_soon(vm.id)
            waits += [] if is_crowded else [asked]
        pending = [one for one in waits if one is not None and not one.done()]
        if pending:
            await asyncio.wait(pending, timeout=PATIENCE_S)

    def _read_leases_soon(self) -> asyncio.Task[None] | None:
        if self._group is not None and (self._reading is None or self._reading.done()):
            self._reading = self._group.create_task(self._read_leases(), name="vsphere: leases")
        return self._reading

    def _ask_soon(self, vm_id: str) -> asyncio.Task[None] | None:
        if self._group is not None and vm_id not in self._asking:
            task = self._asking[vm_id] = self._group.create_task(self._ask(vm_id), name=f"vsphere: guest {vm_id}")
            task.add_done_callback(lambda _: self._asking.pop(vm_id, None))
        return self._asking.get(vm_id)

    # -- asking ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                while True:
                    await asyncio.sleep(1.0)
                    self._turn()
            finally:
                self._group = None

    def _turn(self) -> None:
        """Once a second: leases, and the guests that are due most."""
        now = time.monotonic()
        machines = self._host.floor.machines
        for vm_id, at in list(self._wanted.items()):
            if now - at > INTEREST_S or vm_id not in machines or not machines[vm_id].vm.is_on:
                del self._wanted[vm_id]
        for gone in self._seen.keys() - machines.keys():
            del self._seen[gone]
        if self._wanted and now - self._leases_at > FRESH_S:
            self._read_leases_soon()
        due = sorted((self._due_at(vm_id), vm_id) for vm_id in self._wanted)
        for at, vm_id in due[:AT_ONCE]:
            if at <= now:
                self._ask_soon(vm_id)

    def _due_at(self, vm_id: str) -> float:
        seen: GuestSeen | None = self.seen(self._host.floor.machines[vm_id].vm)
        if seen is None:
            return 0.0
        if not seen.answers:
            return seen.at + min(LONGEST_S, FRESH_S * (1 << min(seen.failures, 6)))
        return seen.at + (STEADY_S if seen.has_address else FRESH_S)

    async def _read_leases(self) -> None:
        networks = self._host.floor.rooms.networks
        try:
            self._leases = dict(await networks.addresses()) if networks.privileged else {}
        except (RametError, OSError) as exc:
            log.info("addresses could not be read", error=str(exc))
        self._leases_at = time.monotonic()
        for vm_id in list(self._wanted):
            live = self._host.floor.machines.get(vm_id)
            now = self.addresses(live.vm) if live is not None else {}
            before, self._known[vm_id] = self._known.get(vm_id), now
            if before is not None and before != now:
                self._touch(vm_id)
        for gone in self._known.keys() - self._wanted.keys():
            del self._known[gone]

    async def _ask(self, vm_id: str) -> None:
        async with self._turns:
            live = self._host.floor.machines.get(vm_id)
            if live is None or live.vm.state is not VmState.RUNNING or self._host.is_busy(vm_id):
                return
            process, before = live.vm.process, self.seen(live.vm)
            try:
                now = await self._answer(live.agent, process, before)
            except (RametError, OSError, TimeoutError):
                failures = before.failures + 1 if before is not None else 1
                now = GuestSeen(time.monotonic(), process, answers=False, failures=failures)
            self._seen[vm_id] = now
            if not now.is_like(before):
                self._touch(vm_id)

    async def _answer(self, agent: Any, process: Any, before: GuestSeen | None) -> GuestSeen:
        now = time.monotonic()
        answered = before is not None and before.answers
        async with asyncio.timeout(ANSWER_S if answered else FIRST_ANSWER_S):
            interfaces = tuple(await agent.interfaces())
        if before is not None and answered and now - before.named_at < _NAMES_S:
            return GuestSeen(now, process, True, 0, interfaces, before.host_name, before.os, before.named_at)
        async with asyncio.timeout(ANSWER_S):
            host_name, os = await agent.hostname(), await agent.os_info()
        return GuestSeen(now, process, True, 0, interfaces, host_name, os, now)
