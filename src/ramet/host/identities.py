"""Clones that become machines of their own: many in a clone's task, one by request, those that a crash left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from ramet.clone.customize import custom_plan
from ramet.clone.identity import (
    accept_bare,
    check_not_asked,
    give,
    guard_of,
    open_links,
    replan,
    set_by_hand,
    wait_on_network,
)
from ramet.clone.quiesce import Quiesced, wake
from ramet.errors import RametError, StateError, UsageError
from ramet.host.floor import Floor
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.model.host import Task
from ramet.model.identity import Customization, IdentityState
from ramet.model.machine import Nic, VmState
from ramet.network.firewall import Guard

log = structlog.stdlib.get_logger(__name__)

NETWORK_WAIT_S = 10.0


class IdentityDesk:
    """Gives identities. `parallel`: guests that are asked at the same time."""

    def __init__(self, floor: Floor, tasks: TaskManager, parallel: int) -> None:
        self._floor = floor
        self._tasks = tasks
        self._gate = asyncio.Semaphore(parallel)

    async def guard(self, source: LiveMachine) -> Guard:
        """What no clone of `source` may send: read once for all of them. What the source has set by hand is claimed for
        it, so that no clone is given that by DHCP."""
        networks = self._floor.rooms.networks
        if not networks.privileged:
            return guard_of(source, {})
        addresses: Mapping[str, str] = {}
        with contextlib.suppress(RametError, OSError):
            addresses = await networks.addresses()
            for nic in source.vm.machine.nics:
                await self._claim_unleased(nic, addresses.get(nic.mac))
        return guard_of(source, addresses)

    async def _claim_unleased(self, nic: Nic, address: str | None) -> None:
        networks = self._floor.rooms.networks
        group = networks.groups.get(nic.network or "")
        if address is None or group is None or not group.dhcp or group.fenced:
            return
        if nic.mac not in await networks.leases(group.name):
            await networks.claim_addresses(group.name, {nic.mac: address})

    async def claim(self, clones: Sequence[LiveMachine]) -> None:
        """The addresses that will be set by hand, all at once. Whose is not to be had learns it by itself, later."""
        wanted: dict[str, dict[str, str]] = {}
        for live in clones:
            for network, mac, address in set_by_hand(live):
                wanted.setdefault(network, {})[mac] = address
        for network, claims in wanted.items():
            with contextlib.suppress(RametError, OSError):
                await self._floor.rooms.networks.claim_addresses(network, claims)

    async def give_all(
        self, clones: Sequence[LiveMachine], guard: Guard | None, told: Callable[[LiveMachine], None] = lambda _: None
    ) -> dict[str, float]:
        """VM id -> when its identity was acknowledged, on the monotonic clock. Those that failed are missing."""
        acknowledged: dict[str, float] = {}

        async def one(live: LiveMachine) -> None:
            async with self._gate:
                with contextlib.suppress(RametError, OSError, TimeoutError):  # its record says why
                    await give(live, guard)
                    acknowledged[live.id] = time.monotonic()
            told(live)

        async with asyncio.TaskGroup() as group:
            for live in clones:
                if live.vm.identity.state is IdentityState.PENDING:
                    group.create_task(one(live), name=f"identity of {live.name}")
        return acknowledged

    async def wake_bare(self, clones: Sequence[LiveMachine], done: Quiesced) -> dict[str, tuple[str, ...]]:
        """Clones without a plan whose guests were quiesced: VM id -> what went wrong."""
        if not done.any:
            return {}
        bare = [live for live in clones if live.vm.identity.plan is None]
        async with asyncio.TaskGroup() as group:
            waking = {live.id: group.create_task(wake(live, done)) for live in bare}
        return {vm_id: tuple(task.result()) for vm_id, task in waking.items()}

    # -- by request ------------------------------------------------------------------------------------------------

    async def identify(self, ref: str, bare: bool) -> Task:
        """Ask a clone's guest again; with `bare` take it as it is, and connect it."""
        live = self._floor.find(ref)
        check_not_asked(live)
        state = live.vm.identity.state
        if bare and not live.vm.identity.holds_links_down:
            raise StateError(f"{live.name!r} is not held off the network.", state=state.value, operation="identify")
        if not bare and live.vm.identity.plan is None:
            raise StateError(
                f"{live.name!r} was not cloned with an identity of its own.",
                hint="Clone it anew, without --bare.",
                state=state.value,
                operation="identify",
            )

        async def work(handle: TaskHandle) -> object:
            if bare:
                await accept_bare(live)
            else:
                with handle.step("identity"):
                    await give(live, await self._guard_again(live))
                with handle.step("network"):
                    await wait_on_network([live], NETWORK_WAIT_S)
            return {"id": live.id, "name": live.name, "identity": live.vm.identity.model_dump(mode="json")}

        return await self._tasks.start("vm.identify", live.name, work, vm_id=live.id, cancellable=True)

    async def customize(self, ref: str, values: Customization) -> Task:
        """Make a machine of its own, with these values, of a VM that runs: of a clone that was taken as it is, above
        all. It is off its networks meanwhile, and stays so when its guest does not acknowledge. UsageError."""
        live = self._floor.find(ref)
        check_not_asked(live)
        next_state(live.vm.state, Operation.REACH_GUEST, name=live.name)
        unknown = sorted(set(values.nics) - {nic.id for nic in live.vm.machine.nics})
        if unknown:
            raise UsageError(f"{live.name!r} has no NIC {unknown[0]!r}.")

        async def work(handle: TaskHandle) -> object:
            known = {(one.mac or "").lower() for one in await live.agent.interfaces()}
            await replan(live, custom_plan(live.vm, self._source_macs(live), known, values))
            with handle.step("identity"):
                await give(live, await self._guard_again(live))
            with handle.step("network"):
                await wait_on_network([live], NETWORK_WAIT_S)
            return {"id": live.id, "name": live.name, "identity": live.vm.identity.model_dump(mode="json")}

        return await self._tasks.start("vm.customize", live.name, work, vm_id=live.id, cancellable=True)

    def _source_macs(self, live: LiveMachine) -> dict[str, str]:
        """NIC id -> how its source knows it, while that is there."""
        source = self._floor.machines.get(live.vm.lineage.source_id) if live.vm.lineage else None
        return {nic.id: nic.mac for nic in source.vm.machine.nics} if source is not None else {}

    async def _guard_again(self, live: LiveMachine) -> Guard | None:
        source = self._floor.machines.get(live.vm.lineage.source_id) if live.vm.lineage else None
        return await self.guard(source) if source is not None else None

    # -- after a restart -------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        """In the background: clones whose identity a former daemon did not see acknowledged are asked again, and those
        that it saw may still lack their links."""
        clones = [live for live in self._floor.machines.values() if self._is_free(live)]
        due = [live for live in clones if live.vm.identity.state is IdentityState.PENDING]
        unsure = [live for live in clones if live.vm.identity.state is IdentityState.ACKNOWLEDGED]
        if not due and not unsure:
            return

        async def work(handle: TaskHandle) -> None:
            async with asyncio.TaskGroup() as group:
                for live in due:
                    group.create_task(self._resume_one(live), name=f"identity of {live.name}")
                for live in unsure:
                    group.create_task(self._link_up(live), name=f"links of {live.name}")

        await self._tasks.start("host.identities", f"{len(due) + len(unsure)} clones", work, cancellable=True)

    def _is_free(self, live: LiveMachine) -> bool:
        """In touch, and nobody is asking it already."""
        return live.vm.state is VmState.RUNNING and live.process is not None and not live.identifying

    async def _link_up(self, live: LiveMachine) -> None:
        async with self._gate:
            try:
                await open_links(live)
            except (RametError, OSError) as exc:
                log.warning("a clone's links could not be brought up", vm=live.name, error=str(exc))

    async def _resume_one(self, live: LiveMachine) -> None:
        async with self._gate:
            try:
                await give(live, await self._guard_again(live))
            except (RametError, OSError, TimeoutError) as exc:
                log.warning("a clone stays off the network", vm=live.name, error=str(exc))
