"""Clones, freezes and the chains behind them, as tasks. The workflows themselves stand in ``ramet.clone``."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ramet.clone import chains, workflows
from ramet.clone.check import Order, check
from ramet.clone.growth import Adopt, Harvest, Told
from ramet.errors import NotFoundError, RametError, StateError
from ramet.host.batch import Batch, Born, batch_progress, finish, from_pool, note_steps, results
from ramet.host.clone_memory import CloneAccounts
from ramet.host.floor import Floor
from ramet.host.identities import IdentityDesk
from ramet.host.locks import VmLocks
from ramet.host.pools import PoolDesk
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.host.vms import PATIENCE_S, until_free
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.model.cancellation import to_its_end
from ramet.model.host import Task
from ramet.model.machine import Moment, VmState
from ramet.model.memory import MemorySample
from ramet.model.requests import CloneVm
from ramet.model.views import CloneForecast, CloneResult, CloneTimings
from ramet.network.firewall import Guard
from ramet.storage.runner import Progress

_STEPS_UP_TO = 3
"""Clones of one request, whose steps stand in its task."""


class CloneDesk:
    """Starts tasks that clone and freeze."""

    def __init__(
        self,
        floor: Floor,
        tasks: TaskManager,
        locks: VmLocks,
        pools: PoolDesk,
        identities: IdentityDesk,
        remove: Callable[[str], Awaitable[None]],
        accounts: CloneAccounts,
    ) -> None:
        self._floor = floor
        self._tasks = tasks
        self._locks = locks
        self._pools = pools
        self._identities = identities
        self._remove = remove
        self._accounts = accounts
        self._keys = VmLocks()
        """Of requests with a key that are being begun."""

    async def forecast(self, ref: str, request: CloneVm) -> CloneForecast:
        """The dry run: every check, no change."""
        live = self._floor.find(ref)
        await until_free(self._locks, live, "clone", shared=live.vm.frozen)
        return check(live, request, self._floor.is_taken, time.monotonic()).as_forecast()

    async def clone(self, ref: str, request: CloneVm, by_uid: int | None) -> Task:
        """Refusals come at once, before there is a task; then the work, under the source's lock.

        With a key that was seen before, the task of that time, unless it failed.
        """
        accepted_at = time.monotonic()
        live = self._floor.find(ref)
        if request.key is None:
            return await self._begin(live, request, by_uid, accepted_at)
        digest = _digest(live, request)
        async with self._keys.hold(request.key, "clone", wait_s=2 * PATIENCE_S):  # two at once: one task, not two
            earlier = self._tasks.by_key(request.key, digest)
            return earlier or await self._begin(live, request, by_uid, accepted_at, digest)

    async def _begin(
        self, live: LiveMachine, request: CloneVm, by_uid: int | None, accepted_at: float, digest: str | None = None
    ) -> Task:
        await until_free(self._locks, live, "clone", shared=live.vm.frozen)
        before = self._made_before(live, request.key)
        first = check(live, request, lambda name: name not in before and self._floor.is_taken(name), accepted_at)
        target = ", ".join(first.names[:3]) + (" …" if len(first.names) > 3 else "")

        async def work(handle: TaskHandle) -> list[CloneResult]:
            made: list[LiveMachine] = []
            try:
                return await self._clone(live, first, before, made, handle)
            except BaseException as exc:  # cancelled, or failed as a whole: the request leaves nothing
                if handle.cancel_requested or not isinstance(exc, asyncio.CancelledError):
                    await to_its_end(self._take_back(made))
                raise  # else the daemon stops: the next one goes on with what runs

        return await self._tasks.start(
            "clone", target, work, vm_id=live.id, by_uid=by_uid, key=request.key, digest=digest, cancellable=True
        )

    def _made_before(self, live: LiveMachine, key: str | None) -> dict[str, LiveMachine]:
        """By name: clones of a request with this key, whose task a crash of the daemon has ended."""
        clones = [] if key is None else list(self._floor.machines.values())
        return {clone.name: clone for clone in clones if clone.vm.request_key == key and _is_clone(clone, live)}

    async def _clone(
        self,
        live: LiveMachine,
        first: Order,
        before: dict[str, LiveMachine],
        made: list[LiveMachine],
        handle: TaskHandle,
    ) -> list[CloneResult]:
        """`made` is told of every clone that others can see, before it runs."""
        memory_before = self._accounts.before(live)
        with self._floor.reserve(*first.without(before).names):
            async with self._locks.hold(live.id, "clone", shared=first.workflow == "frozen", wait_s=PATIENCE_S):
                order = self._checked_again(live, first)
                guard = await self._identities.guard(live)
                rest = order.without(before)
                batch = await self._grow(live, rest, made, handle) if rest.names else Batch(order, [])
        batch.order, batch.born = order, [*batch.born, *(Born(clone, CloneTimings()) for clone in before.values())]
        with contextlib.suppress(RametError):  # the clones are there, whatever becomes of their source now
            await self._shorten_soon(live)
        return await self._finish(live, batch, guard, memory_before, handle)

    def _checked_again(self, live: LiveMachine, first: Order) -> Order:
        """Under the lock: what was checked before may have changed meanwhile; the names are ours already."""
        order = check(live, first.request, lambda name: False, first.accepted_at)
        if order.workflow != first.workflow:
            raise StateError(
                f"{live.name!r} was {'thawed' if first.workflow == 'frozen' else 'frozen'} meanwhile.",
                hint="Ask again, if that is what you want.",
                state=live.vm.state.value,
                operation="clone",
            )
        return order

    async def _grow(self, live: LiveMachine, order: Order, made: list[LiveMachine], handle: TaskHandle) -> Batch:
        """Others see a clone before it runs, and have to wait until it does."""
        async with contextlib.AsyncExitStack() as births:

            async def adopt(clone: LiveMachine) -> None:
                made.append(clone)
                await births.enter_async_context(self._locks.hold(clone.id, "clone"))
                await self._adopt(clone)

            return await self._grow_under_locks(live, order, made, adopt, handle)

    async def _grow_under_locks(
        self, live: LiveMachine, order: Order, made: list[LiveMachine], adopt: Adopt, handle: TaskHandle
    ) -> Batch:
        told = batch_progress(handle, len(order.names))
        if live.vm.frozen:
            pooled = await from_pool(self._pools, live, order, made)
            rest = order.without({born.name for born in pooled})
            if not rest.names:
                return Batch(order, pooled)
            harvest = await self._from_moment(live, rest, pooled, adopt, told)
        else:
            await self._shorten_now(live, handle)
            pooled = []
            harvest = await workflows.clone_running(live, order, adopt, told)
        return Batch(order, [*pooled, *map(Born.of_seedling, harvest.seedlings)], harvest.failures, harvest.quiesced)

    async def _from_moment(
        self, live: LiveMachine, rest: Order, pooled: list[Born], adopt: Adopt, told: Told
    ) -> Harvest:
        """Those for which the pool was too small. If none of them comes about, those of the pool are still good."""
        try:
            return await workflows.clone_frozen(live, self.moment_of(live), rest, adopt, told)
        except RametError as exc:
            if not pooled:
                raise
            return Harvest(failures=dict.fromkeys(rest.names, exc))

    async def _adopt(self, clone: LiveMachine) -> None:
        """The clone's record is durable, and others can see it, before its guest executes."""
        await self._floor.rooms.book.save(clone.vm)
        self._floor.add(clone)

    async def _finish(
        self, live: LiveMachine, batch: Batch, guard: Guard, before: MemorySample | None, handle: TaskHandle
    ) -> list[CloneResult]:
        """The clones run: tell of them, give them their identities, reshape them, wait for their addresses."""
        for born in batch.born:
            if born.is_new:
                if len(batch.born) <= _STEPS_UP_TO:
                    note_steps(handle, born)
                self._tell(live, batch.order, born)
        account = self._accounts.open(live, [born.live for born in batch.born], before, handle.id)
        await finish(self._identities, batch, guard, handle)
        return results(batch, handle.id, account.tell())

    async def _take_back(self, made: Sequence[LiveMachine]) -> None:
        """Those that failed by themselves are gone already."""
        for clone in made:
            with contextlib.suppress(RametError, OSError):
                await self._remove(clone.id)

    def _tell(self, live: LiveMachine, order: Order, born: Born) -> None:
        clone, timings = born.live, born.timings
        self._floor.rooms.book.emit(
            "vm.cloned",
            f"{clone.name} was cloned from {live.name} in {timings.total:.0f} ms (stun {timings.stun:.0f} ms).",
            clone.vm,
            source=live.id,
            workflow=order.workflow,
            timings_ms=timings.model_dump(exclude={"identity", "network"}),
        )

    # -- freezing --------------------------------------------------------------------------------------------------

    async def freeze(self, ref: str) -> Task:
        live = self._floor.find(ref)
        await until_free(self._locks, live, "freeze")
        next_state(live.vm.state, Operation.FREEZE, name=live.name)
        return await self._freeze(live)

    async def _freeze(self, live: LiveMachine) -> Task:
        async def work(handle: TaskHandle) -> Any:
            try:
                async with self._locks.hold(live.id, "freeze", wait_s=30.0):
                    moment = await self._freeze_now(live, handle)
            except BaseException as exc:
                live.guest.fail_freeze(exc.message if isinstance(exc, RametError) else "The freeze was interrupted.")
                raise
            return {"id": live.id, "name": live.name, "moment": moment.id, "stun": live.vm.stuns[-1].model_dump()}

        return await self._tasks.start("vm.freeze", live.name, work, vm_id=live.id)

    async def _freeze_now(self, live: LiveMachine, handle: TaskHandle) -> Moment:
        await self._shorten_now(live, handle)
        with handle.step("freeze"):
            return await workflows.freeze(live)

    async def freeze_for_guest(self, vm_id: str) -> None:
        """The guest itself asked. A refusal reaches it as its command's error."""
        live = self._floor.machines.get(vm_id)
        if live is None:
            return
        try:
            if live.vm.state is VmState.STARTING:  # a clone whose first words these are: it runs, and is written down
                async with self._locks.hold(live.id, "freeze", wait_s=PATIENCE_S):
                    pass
            next_state(live.vm.state, Operation.FREEZE, name=live.name)
            await self._freeze(live)
        except RametError as exc:
            live.guest.fail_freeze(exc.message)

    def moment_of(self, live: LiveMachine) -> Moment:
        """The moment a frozen VM holds."""
        moment = self._floor.inventory.moments.get(live.vm.moment_id or "")
        if moment is None:
            raise NotFoundError(f"The moment of {live.name!r} is gone.", hint="Thaw it and freeze it again.")
        return moment

    # -- chains ----------------------------------------------------------------------------------------------------

    async def _shorten_now(self, live: LiveMachine, handle: TaskHandle) -> None:
        """Where the next moment needs it, and nobody has done it in the background."""
        if chains.needs_flatten(live):
            with handle.step("shorten chain"):
                await self._shorten(live)

    async def _shorten(self, live: LiveMachine, progress: Progress | None = None) -> int:
        """Whatever becomes of it, what nobody uses then goes: the layers of before, or the one that was not needed."""
        try:
            return await chains.shorten(live, self._floor.image_layers(), progress)
        finally:
            await self._floor.collect_layers()

    async def _shorten_soon(self, live: LiveMachine) -> None:
        """In the background, as soon as the next clone would need it: that clone then need not wait."""
        if live.vm.frozen or not chains.needs_flatten(live):
            return

        async def work(handle: TaskHandle) -> Any:
            async with self._locks.hold(live.id, "shorten chain", wait_s=30.0):
                if live.vm.frozen:
                    return {"disks": 0}
                with handle.step("shorten chain"):
                    return {"disks": await self._shorten(live, handle.progress)}

        await self._tasks.start("vm.shorten", live.name, work, vm_id=live.id)


def _is_clone(vm: LiveMachine, source: LiveMachine) -> bool:
    return vm.vm.lineage is not None and vm.vm.lineage.source_id == source.id


def _digest(live: LiveMachine, request: CloneVm) -> str:
    """The same key with another request is a mistake: this tells them apart."""
    return hashlib.sha256(f"{live.id} {request.model_dump_json()}".encode()).hexdigest()
