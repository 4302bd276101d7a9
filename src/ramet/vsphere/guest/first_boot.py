"""Guests that are customized when they are powered on next: what CustomizeVM_Task and CloneVM_Task have ordered.

await world.part(Places).change(vm_id, customization=Ordered(…))     # the order, durable
await FirstBoots(world).run()                                        # until cancelled

A guest has to boot and its agent to answer, whoever powered the VM on. A VM that goes off before it is done keeps its
order for the next time, and so does one that was powered on long ago, while nobody looked. An order is marked before
the guest is asked, for the identity that comes of it is the host's to finish, whichever daemon is there then. One
attempt is made, as in the original, and events tell of it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog

from ramet.errors import DeadlineError, GuestError, NotFoundError, RametError
from ramet.model.identity import IdentityState
from ramet.model.machine import Vm, VmState
from ramet.model.requests import Exec
from ramet.vsphere.guest import scripts
from ramet.vsphere.inventory.places import Ordered, Places
from ramet.vsphere.machine.long_work import ended

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

log = structlog.stdlib.get_logger(__name__)

STARTED, SUCCEEDED, FAILED = "vm.customization-started", "vm.customized", "vm.customization-failed"
BOOT_TIMEOUT_S = 600.0
GONE_S = 5.0
"""How long after the loss of its agent a VM may still be recorded as running."""
_EXEC_TIMEOUT_S = 30.0
_LOOK_AGAIN_S = 30.0


class _NotNow(Exception):  # noqa: N818 - not an error: the order stays for the next power-on
    pass


class FirstBoots:
    """One a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._under_way: set[str] = set()
        self._spent: dict[str, Ordered] = {}
        """Orders that were carried out, and could not be forgotten."""

    async def run(self) -> None:
        updates, places = self._world.updates, self._world.part(Places)
        async with asyncio.TaskGroup() as group:
            while True:
                stamp = updates.stamp
                for vm_id, order in places.ordered():
                    if vm_id not in self._under_way and self._spent.get(vm_id) != order and self._is_due(vm_id, order):
                        self._under_way.add(vm_id)
                        group.create_task(self._customize(vm_id), name=f"vsphere: first boot of {vm_id}")
                await updates.wait(stamp, _LOOK_AGAIN_S)

    def _vm(self, vm_id: str) -> Vm | None:
        return self._world.host.floor.inventory.get_vm(vm_id)

    def _is_due(self, vm_id: str, order: Ordered) -> bool:
        vm = self._vm(vm_id)
        if vm is None or vm.state is not VmState.RUNNING or vm.started_at is None:
            return False
        return order.begun or time.time() - vm.started_at < BOOT_TIMEOUT_S

    async def _customize(self, vm_id: str) -> None:
        try:
            vm, order = self._world.host.floor.inventory.vm(vm_id), self._order(vm_id)
            try:
                await self._attempt(vm, order)
            except (RametError, OSError, TimeoutError) as exc:
                log.warning("a guest could not be customized", vm=vm_id, error=str(exc))
                self._tell(vm_id, FAILED, f"its guest could not be customized: {exc}")
            else:
                self._tell(vm_id, SUCCEEDED, "its guest was customized.")
            await self._forget(vm_id, order)
        except _NotNow:
            await self._keep(vm_id, begun=False)
        except NotFoundError:
            log.info("a VM went before its guest was customized", vm=vm_id)
        finally:
            self._under_way.discard(vm_id)

    async def _attempt(self, vm: Vm, order: Ordered) -> None:
        """_NotNow when it goes off; RametError when it does not work."""
        if order.begun and await self._finished_by_the_host(vm):
            return
        self._tell(vm.id, STARTED, "its guest is being customized.")
        try:
            await self._wait_for_agent(vm)
            if order.time_zone is not None:
                await self._set_time_zone(vm, order.time_zone)
            await self._keep(vm.id, begun=True)
            host = self._world.host
            await ended(host, await host.customize_vm(vm.id, order.values))
        except (RametError, OSError, TimeoutError) as exc:
            if not await self._goes_on(vm):
                raise _NotNow from exc
            raise

    def _order(self, vm_id: str) -> Ordered:
        order = self._world.part(Places).note(vm_id).customization
        if order is None:
            raise _NotNow
        return order

    async def _finished_by_the_host(self, vm: Vm) -> bool:
        """A former daemon had begun: whether the identity has become the guest's. GuestError where it failed."""
        updates, deadline = self._world.updates, time.monotonic() + BOOT_TIMEOUT_S
        while True:
            stamp, now = updates.stamp, self._vm(vm.id)
            if now is None or not _same_run(now, vm):
                raise _NotNow
            if now.identity.state is IdentityState.FAILED:
                raise GuestError(now.identity.problem or "Its guest did not acknowledge.")
            if now.identity.state is not IdentityState.PENDING or time.monotonic() > deadline:
                return now.identity.state is IdentityState.ACKNOWLEDGED
            await updates.wait(stamp, _LOOK_AGAIN_S)

    async def _wait_for_agent(self, vm: Vm) -> None:
        """An agent that is lost answers at once with an error: its VM may be going off, or its guest may restart."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while True:
            try:
                await self._world.host.wait_agent(vm.id, max(1.0, deadline - time.monotonic()))
                return
            except DeadlineError:
                raise
            except (RametError, OSError):
                if not await self._goes_on(vm) or time.monotonic() > deadline:
                    raise

    async def _goes_on(self, vm: Vm) -> bool:
        """Whether it still runs; known for certain only a moment later."""
        updates, deadline = self._world.updates, time.monotonic() + GONE_S
        while (left_s := deadline - time.monotonic()) > 0:
            stamp, now = updates.stamp, self._vm(vm.id)
            if now is None or not _same_run(now, vm):
                return False
            await updates.wait(stamp, left_s)
        return True

    async def _set_time_zone(self, vm: Vm, time_zone: str) -> None:
        argv = ("/bin/sh", "-c", scripts.TIME_ZONE, "sh", time_zone)
        result = await self._world.host.exec_in_vm(vm.id, Exec(argv=argv, timeout_s=_EXEC_TIMEOUT_S))
        if result.exit_code != 0:
            raise GuestError(f"The guest has no time zone {time_zone!r}.")

    # -- what is kept ----------------------------------------------------------------------------------------------

    async def _keep(self, vm_id: str, *, begun: bool) -> None:
        order = self._world.part(Places).note(vm_id).customization
        if order is not None and order.begun is not begun:
            await self._change(vm_id, customization=order.changed(begun=begun))

    async def _forget(self, vm_id: str, order: Ordered) -> None:
        """Unless somebody has ordered something else meanwhile."""
        kept = self._world.part(Places).note(vm_id).customization
        if kept is not None and kept.values == order.values:
            self._spent[vm_id] = kept
            if await self._change(vm_id, customization=None):
                del self._spent[vm_id]

    async def _change(self, vm_id: str, **fields: Any) -> bool:
        """With a full disk it is said later, by another: what was carried out stands in memory."""
        if self._vm(vm_id) is None:
            return True
        try:
            await self._world.part(Places).change(vm_id, **fields)
        except (RametError, OSError) as exc:
            log.warning("an order could not be kept", vm=vm_id, error=str(exc))
            return False
        return True

    def _tell(self, vm_id: str, kind: str, what: str) -> None:
        vm = self._vm(vm_id)
        if vm is not None:
            self._world.host.events.emit(kind, f"{vm.name}: {what}", vm=vm)


def _same_run(now: Vm, vm: Vm) -> bool:
    return now.state is VmState.RUNNING and now.process == vm.process and now.started_at == vm.started_at
