"""What the machines ask of the host: records kept, events told, operations journalled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from ramet.host.debts import Debts
from ramet.host.events import EventLog
from ramet.host.inventory import Inventory
from ramet.host.journal import Journal
from ramet.machine.paths import StatePaths
from ramet.machine.rooms import JournalHandle
from ramet.model.host import Network
from ramet.model.machine import Moment, Vm
from ramet.model.vm_ids import new_vm_id

_REMEMBERED_IDS: Final = 4096


class HostBook:
    """The host's side of ``ramet.machine.rooms.Book``. The two `on_…` callbacks are set by the host once it stands."""

    def __init__(
        self, inventory: Inventory, events: EventLog, journal: Journal, paths: StatePaths, debts: Debts
    ) -> None:
        self._inventory = inventory
        self._events = events
        self._journal = journal
        self._paths = paths
        self._debts = debts
        self._given: deque[str] = deque(maxlen=_REMEMBERED_IDS)
        """The last ones: those of VMs that are being made are among them."""
        self.on_forgotten: Callable[[str], None] = lambda vm_id: None
        self.on_freeze_asked: Callable[[str], None] = lambda vm_id: None
        self.on_restart_asked: Callable[[str], None] = lambda vm_id: None

    async def save(self, vm: Vm) -> None:
        await self._inventory.put_vm(vm)
        self._debts.paid(f"vm {vm.id}")

    async def save_fact(self, vm: Vm) -> None:
        await self._debts.write(f"vm {vm.id}", lambda: self._inventory.put_vm(vm))

    async def forget(self, vm_id: str) -> None:
        await self._debts.write(f"vm {vm_id}", lambda: self._inventory.remove_vm(vm_id))
        self.on_forgotten(vm_id)

    def new_vm_id(self) -> str:
        vm_id = new_vm_id(lambda one: one in self._given or self._inventory.get_vm(one) is not None)
        self._given.append(vm_id)
        return vm_id

    async def save_moment(self, moment: Moment) -> None:
        await self._inventory.moments.put(moment)

    async def drop_moment(self, moment_id: str) -> None:
        await self._debts.write(f"moment {moment_id}", lambda: self._inventory.moments.remove(moment_id))
        self._paths.moment_state(moment_id).unlink(missing_ok=True)

    def emit(self, kind: str, message: str, vm: Vm | None = None, **fields: Any) -> None:
        if vm is not None and (vm.is_pooled or vm.provisional):
            return  # nobody's VM yet: whoever makes it tells what becomes of it
        self._events.emit(kind, message, vm=vm, **fields)

    def operation(self, kind: str, vm_id: str, detail: dict[str, Any]) -> AbstractAsyncContextManager[JournalHandle]:
        return self._journal.operation(kind, vm_id, detail)

    def network(self, name: str) -> Network | None:
        return self._inventory.networks.get(name)

    def guest_asks_freeze(self, vm_id: str) -> None:
        self.on_freeze_asked(vm_id)

    def guest_asks_restart(self, vm_id: str) -> None:
        self.on_restart_asked(vm_id)
