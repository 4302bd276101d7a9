"""Clones, freezes and the chains behind them, as tasks. The workflows themselves stand in ``ramet.clone``."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ramet.clone import chains, workflows
from ramet.clone.check import Order, check
from ramet.clone.seedling import Seedling
from ramet.errors import NotFoundError, RametError, StateError
from ramet.host.floor import Floor
from ramet.host.locks import VmLocks
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.host.vms import PATIENCE_S, until_free
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.model.host import Task
from ramet.model.machine import Moment
from ramet.model.requests import CloneVm
from ramet.model.views import CloneForecast, CloneResult


class CloneDesk:
    """Starts tasks that clone and freeze."""

    def __init__(self, floor: Floor, tasks: TaskManager, locks: VmLocks) -> None:
        self._floor = floor
        self._tasks = tasks
        self._locks = locks

    async def forecast(self, ref: str, request: CloneVm) -> CloneForecast:
        """The dry run: every check, no change."""
        live = self._floor.find(ref)
        await until_free(self._locks, live, "clone", shared=live.vm.frozen)
        return check(live, request, self._floor.is_taken, time.monotonic()).as_forecast()

    async def clone(self, ref: str, request: CloneVm, by_uid: int | None) -> Task:
        """Refusals come at once, before there is a task; then the work, under the source's lock."""
        accepted_at = time.monotonic()
        live = self._floor.find(ref)
        await until_free(self._locks, live, "clone", shared=live.vm.frozen)
        first = check(live, request, self._floor.is_taken, accepted_at)
        target = ", ".join(first.names[:3]) + (" …" if len(first.names) > 3 else "")

        async def work(handle: TaskHandle) -> list[CloneResult]:
            with self._floor.reserve(*first.names):
                async with self._locks.hold(live.id, "clone", shared=first.workflow == "frozen", wait_s=PATIENCE_S):
                    order = self._checked_again(live, request, first)
                    seedlings = await self._grow(live, request, order, handle)
            with contextlib.suppress(RametError):  # the clones are there, whatever becomes of their source now
                await self._shorten_soon(live)
            return self._results(live, order, seedlings, handle)

        return await self._tasks.start("clone", target, work, vm_id=live.id, by_uid=by_uid)

    def _checked_again(self, live: LiveMachine, request: CloneVm, first: Order) -> Order:
        """Under the lock: what was checked before may have changed meanwhile; the names are ours already."""
        order = check(live, request, lambda name: False, first.accepted_at)
        if order.workflow != first.workflow:
            raise StateError(
                f"{live.name!r} was {'thawed' if first.workflow == 'frozen' else 'frozen'} meanwhile.",
                hint="Ask again, if that is what you want.",
                state=live.vm.state.value,
                operation="clone",
            )
        return order

    async def _grow(self, live: LiveMachine, request: CloneVm, order: Order, handle: TaskHandle) -> list[Seedling]:
        if live.vm.frozen:
            return await workflows.clone_frozen(live, self.moment_of(live), order, self._adopt)
        if chains.needs_flatten(live):
            with handle.step("shorten chain"):
                await chains.shorten(live, self._floor.image_layers())
        return await workflows.clone_running(live, order, self._adopt)

    async def _adopt(self, clone: LiveMachine) -> None:
        """The clone's record is durable, and others can see it, before its guest executes."""
        await self._floor.rooms.book.save(clone.vm)
        self._floor.add(clone)

    def _results(
        self, live: LiveMachine, order: Order, seedlings: list[Seedling], handle: TaskHandle
    ) -> list[CloneResult]:
        results = []
        for seedling in seedlings:
            clone, timings = seedling.live, seedling.timings
            _note_steps(handle, seedling)
            self._floor.rooms.book.emit(
                "vm.cloned",
                f"{clone.name} was cloned from {live.name} in {timings.total:.0f} ms (stun {timings.stun:.0f} ms).",
                clone.vm,
                source=live.id,
                workflow=order.workflow,
                timings_ms=timings.model_dump(),
            )
            results.append(
                CloneResult(
                    name=clone.name,
                    id=clone.id,
                    task=handle.id,
                    timings_ms=timings,
                    warnings=order.warnings,
                )
            )
        return results

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
        if chains.needs_flatten(live):
            with handle.step("shorten chain"):
                await chains.shorten(live, self._floor.image_layers())
        with handle.step("freeze"):
            return await workflows.freeze(live)

    async def freeze_for_guest(self, vm_id: str) -> None:
        """The guest itself asked. A refusal reaches it as its command's error."""
        live = self._floor.machines.get(vm_id)
        if live is None:
            return
        try:
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

    async def _shorten_soon(self, live: LiveMachine) -> None:
        """In the background, as soon as the next clone would need it: that clone then need not wait."""
        if live.vm.frozen or not chains.needs_flatten(live):
            return

        async def work(handle: TaskHandle) -> Any:
            async with self._locks.hold(live.id, "shorten chain", wait_s=30.0):
                if live.vm.frozen:
                    return {"disks": 0}
                with handle.step("shorten chain"):
                    done = await chains.shorten(live, self._floor.image_layers(), handle.progress)
            await self._floor.collect_layers()
            return {"disks": done}

        await self._tasks.start("vm.shorten", live.name, work, vm_id=live.id)


def _note_steps(handle: TaskHandle, seedling: Seedling) -> None:
    """The clone's own times as steps of the task, in the order they happened."""
    at = 0.0
    for name, took_ms in seedling.timings.model_dump(exclude={"total"}).items():
        handle.add_step(f"{name} {seedling.live.name}", at, took_ms)
        at += took_ms
