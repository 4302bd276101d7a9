"""What the daemon knows, typed: VMs, images, port groups, moments, journal entries and stored settings.

    async with Inventory.open(store) as inventory:
        inventory.vms() -> list[Vm]                       # by name; from memory, as all reads are
        inventory.vm(vm_id) -> Vm                         # NotFoundError
        inventory.find_vm(ref) -> Vm                      # by name, id, or a unique beginning of the id
        inventory.check_name_is_free(name)                # ConflictError
        await inventory.put_vm(vm) -> Vm                  # new, changed or renamed; ConflictError on a taken name
        await inventory.change_vm(vm_id, **fields) -> Vm  # read, change, write without losing another's change
        await inventory.remove_vm(vm_id)                  # nothing when it is gone
        inventory.images, .networks, .moments, .pools, .users, .journal   # Table[...]
        inventory.setting(name) / await inventory.put_setting(name, value)

    Table[M]:  all() -> list[M];  get(key) -> M | None;  find(key) -> M (NotFoundError with 'did you mean')
               await add(item) (ConflictError when taken);  await put(item);  await remove(key)

`vm/<id>` and the name index `vm-name/<name>` change in one transaction. Memory is in step with the store when a write
returns; writes of others (one day, another host's) arrive by the store's watch.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import structlog
from pydantic import ValidationError

from ramet.errors import ConflictError, DamagedError, NotFoundError
from ramet.host.store import Change, Delete, Put, Store
from ramet.model.access import User
from ramet.model.base import Model, explain
from ramet.model.host import Image, JournalEntry, Network
from ramet.model.machine import Moment, Vm
from ramet.model.pool import PoolSpec

log = structlog.stdlib.get_logger(__name__)

M = TypeVar("M", bound=Model)

_SHORTEST_ID = 4
"""Digits of an id's beginning that may stand for it."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str | None:
    """A hint that names what is closest, or None."""
    close = difflib.get_close_matches(wrong, list(known), n=2, cutoff=0.6)
    return f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else None


class Table(Generic[M]):
    """Records of one kind, whole in memory. Made and kept in step by `Inventory`."""

    def __init__(self, store: Store, prefix: str, model: type[M], key_of: Callable[[M], str], what: str) -> None:
        self._store = store
        self._model = model
        self._key_of = key_of
        self._what = what
        self._items: dict[str, M] = {}
        self._revisions: dict[str, int] = {}
        """Of what is in memory, deletions included: a late word of the watch must not undo a newer write."""
        self.prefix = prefix

    def all(self) -> list[M]:
        """Sorted by key."""
        return [self._items[key] for key in sorted(self._items)]

    def get(self, key: str) -> M | None:
        return self._items.get(key)

    def find(self, key: str) -> M:
        """Like `get`, but NotFoundError, with a hint, for an unknown key."""
        item = self._items.get(key)
        if item is None:
            hint = did_you_mean(key, self._items)
            raise NotFoundError(f"There is no {self._what} {key!r}.", hint=hint, ref=key)
        return item

    async def add(self, item: M) -> None:
        """ConflictError when there is one of that key."""
        key = self._key_of(item)
        try:
            revision = await self._store.put(self.prefix + key, item.model_dump(mode="json"), 0)
        except ConflictError as exc:
            raise ConflictError(f"The {self._what} {key!r} exists already.", name=key) from exc
        self.keep(key, item, revision)

    async def put(self, item: M) -> None:
        """Add or replace."""
        key = self._key_of(item)
        self.keep(key, item, await self._store.put(self.prefix + key, item.model_dump(mode="json")))

    async def remove(self, key: str) -> None:
        """Nothing happens when it is gone already."""
        revision = await self._store.delete(self.prefix + key)
        if revision is not None:
            self.keep(key, None, revision)

    def keep(self, key: str, item: M | None, revision: int) -> None:
        """Remember what the store holds since `revision`; older words than the last are ignored."""
        if revision < self._revisions.get(key, 0):
            return
        self._revisions[key] = revision
        if item is None:
            self._items.pop(key, None)
        else:
            self._items[key] = item

    def keys_until(self, revision: int) -> set[str]:
        """Keys of what is in memory since `revision` or before."""
        return {key for key in self._items if self._revisions[key] <= revision}

    def learn(self, key: str, value: dict[str, Any] | None, revision: int) -> None:
        """Take over a record as the store tells it. DamagedError when it is not of this kind."""
        if revision <= self._revisions.get(key, 0):
            if value is None and revision == self._revisions[key]:
                del self._revisions[key]  # the watch has caught up with the deletion: nothing older can come
            return
        if value is None:
            self._items.pop(key, None)
            self._revisions.pop(key, None)
            return
        try:
            item = self._model.model_validate(value)
        except ValidationError as exc:
            raise DamagedError(
                f"The inventory's record {self.prefix + key} is not valid: {explain(exc)}",
                hint="Run the version of Ramet that wrote it, or let 'ramet doctor --repair' keep what is whole.",
                key=self.prefix + key,
            ) from exc
        self.keep(key, item, revision)


class Setting(Model):
    """A setting changed while the daemon ran: it outlives the daemon."""

    name: str
    value: Any = None


class Inventory:
    """Reads are plain functions over memory; writes are durable when they return."""

    def __init__(self, store: Store) -> None:
        self.store = self._store = store
        self._vms = Table(store, "vm/", Vm, lambda vm: vm.id, "VM")
        self._settings = Table(store, "setting/", Setting, lambda setting: setting.name, "setting")
        self.images = Table(store, "image/", Image, lambda image: image.name, "image")
        self.networks = Table(store, "network/", Network, lambda network: network.name, "port group")
        self.moments = Table(store, "moment/", Moment, lambda moment: moment.id, "moment")
        self.pools = Table(store, "pool/", PoolSpec, lambda spec: spec.vm_id, "pool")
        self.users = Table(store, "user/", User, lambda user: user.name, "user")
        self.journal = Table(store, "journal/", JournalEntry, lambda entry: entry.id, "journal entry")
        self._tables: tuple[Table[Any], ...] = (
            self._vms, self._settings, self.images, self.networks, self.moments, self.pools, self.users, self.journal,
        )  # fmt: skip
        self._ids: dict[str, str] = {}
        """Name -> id of the VMs in memory."""
        self._writing: dict[str, asyncio.Lock] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, store: Store) -> AsyncIterator[Inventory]:
        """Read everything, then stay in step until the end of the block. The store stays the caller's."""
        inventory = cls(store)
        revision = await inventory._load()
        # No task group: it would wrap every error of the block into a group.
        follower = asyncio.create_task(inventory._follow(revision), name="inventory-follow")
        try:
            yield inventory
        finally:
            follower.cancel()
            await asyncio.wait([follower])

    async def _load(self) -> int:
        """Take over all that the store holds, forget what it no longer holds. The revision to watch from."""
        revision = await self._store.revision()
        for table in self._tables:
            entries = await self._store.list(table.prefix)
            for entry in entries:
                self._learn(Change(entry.key, entry.value, entry.revision))
            found = {entry.key.removeprefix(table.prefix) for entry in entries}
            for key in table.keys_until(revision) - found:
                self._learn(Change(table.prefix + key, None, revision + 1))
        return revision

    async def _follow(self, revision: int) -> None:
        while True:
            try:
                async for change in self._store.watch("", revision):
                    revision = change.revision
                    self._learn(change)
                return
            except ConflictError:  # fell behind what the store keeps
                revision = await self._load()
            except DamagedError as exc:  # another's write: no reason to give up our own
                log.error("a record of the inventory was ignored", error=str(exc))

    def _learn(self, change: Change) -> None:
        table = next((table for table in self._tables if change.key.startswith(table.prefix)), None)
        if table is None:
            return
        key = change.key.removeprefix(table.prefix)
        before = self._vms.get(key)
        table.learn(key, change.value, change.revision)
        if table is self._vms:
            self._index(before, self._vms.get(key))

    def _index(self, before: Vm | None, after: Vm | None) -> None:
        if before is not None and self._ids.get(before.name) == before.id:
            del self._ids[before.name]
        if after is not None and after.is_shown:
            self._ids[after.name] = after.id

    # VMs

    def vms(self) -> list[Vm]:
        """All VMs, those that wait in pools too, sorted by name."""
        return sorted(self._vms.all(), key=lambda vm: vm.name)

    def users_vms(self) -> list[Vm]:
        """What users see: all but those that wait in pools, or were unregistered; nobody can name these either."""
        return [vm for vm in self.vms() if vm.is_shown]

    def vm(self, vm_id: str) -> Vm:
        """The VM of that id, as it is now. NotFoundError when it is gone."""
        vm = self._vms.get(vm_id)
        if vm is None:
            raise NotFoundError(f"The VM {vm_id} is gone.", ref=vm_id)
        return vm

    def get_vm(self, vm_id: str) -> Vm | None:
        return self._vms.get(vm_id)

    def find_vm(self, ref: str) -> Vm:
        """By name, id, or a unique beginning of the id (4 digits at least). NotFoundError with 'did you mean'.

        One that is provisional only by its whole id, which nobody is told but who reshapes it.
        """
        by_name = self._ids.get(ref)
        vm = self._vms.get(by_name or ref)
        if vm is not None and (vm.is_shown or vm.provisional):
            return vm
        shown = [vm for vm in self._vms.all() if vm.is_shown] if len(ref) >= _SHORTEST_ID else []
        matches = [vm for vm in shown if vm.id.startswith(ref)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(f"{vm.id} ({vm.name})" for vm in matches[:4])
            raise NotFoundError(f"{ref!r} is the beginning of several VMs' ids: {names}.", ref=ref)
        raise NotFoundError(f"There is no VM {ref!r}.", hint=did_you_mean(ref, self._ids), ref=ref)

    def check_name_is_free(self, name: str) -> None:
        """ConflictError when a VM has the name. `put_vm` checks again: only that is the word."""
        if self.is_named(name):
            raise _taken(name)

    def is_named(self, name: str) -> bool:
        """Whether a VM has the name; those that are not shown have none."""
        return name in self._ids

    async def put_vm(self, vm: Vm) -> Vm:
        """Write the whole record: a new VM, a changed one, one renamed. ConflictError on a taken name.

        Prefer `change_vm` for a VM that exists: this one overwrites what others changed meanwhile.
        """
        async with self._lock(vm.id):
            return await self._write(vm)

    async def change_vm(self, vm_id: str, **fields: Any) -> Vm:
        """Change some fields of the record as it is now, validated. NotFoundError when the VM is gone."""
        async with self._lock(vm_id):
            return await self._write(self.vm(vm_id).changed(**fields))

    async def remove_vm(self, vm_id: str) -> None:
        """Forget a VM and free its name. Nothing happens when it is gone already."""
        async with self._lock(vm_id):
            vm = self._vms.get(vm_id)
            if vm is None:
                return
            named = [Delete(f"vm-name/{vm.name}")] if vm.is_shown else []
            revision = await self._store.put_all([Delete(f"vm/{vm_id}"), *named])
            self._vms.keep(vm_id, None, revision)
            self._index(vm, None)
        self._writing.pop(vm_id, None)

    def _lock(self, vm_id: str) -> asyncio.Lock:
        return self._writing.setdefault(vm_id, asyncio.Lock())

    async def _write(self, vm: Vm) -> Vm:
        """A VM that waits in a pool, or was unregistered, has no name that others would have to avoid."""
        before = self._vms.get(vm.id)
        old = before.name if before is not None and before.is_shown else None
        new = vm.name if vm.is_shown else None
        changes: list[Put | Delete] = [Put(f"vm/{vm.id}", vm.model_dump(mode="json"))]
        if new is not None and new != old:
            changes.append(Put(f"vm-name/{new}", {"id": vm.id}, if_revision=0))
        if old is not None and new != old:
            changes.append(Delete(f"vm-name/{old}"))
        try:
            revision = await self._store.put_all(changes)
        except ConflictError as exc:
            raise _taken(vm.name) from exc
        self._vms.keep(vm.id, vm, revision)
        self._index(before, vm)
        return vm

    # Settings that were changed while the daemon ran

    def setting(self, name: str) -> Any:
        """The stored value, or None."""
        found = self._settings.get(name)
        return found.value if found else None

    async def put_setting(self, name: str, value: Any) -> None:
        """`value` is JSON; None forgets it."""
        if value is None:
            await self._settings.remove(name)
        else:
            await self._settings.put(Setting(name=name, value=value))


def _taken(name: str) -> ConflictError:
    return ConflictError(f"A VM named {name!r} exists already.", hint="Choose another name.", name=name)
