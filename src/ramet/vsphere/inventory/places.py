"""What this surface remembers of VMs and folders beside the host's own records: in the host's store, under `vsphere/`.

places = Places(world); await places.load()
places.note(vm_id) -> VmNote                       # a default one for a VM that nothing was said of
await places.change(vm_id, folder="group-v3")      # what is changed is durable, and told to who waits
places.vms_in(folder_moid) -> list[vm_id]
places.ordered() -> [(vm_id, Ordered)]             # who is to be customized at the next power-on
places.folder(moid) -> FolderRecord or None; places.folders_in(moid)
await places.make_folder(parent_moid, name) -> Folder's moid         # DuplicateName, InvalidName
await places.rename_folder(moid, name) / move_folder(moid, parent_moid) / remove_folder(moid)
places.check_name(parent_moid, name)               # DuplicateName for a folder's name that is taken there
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ramet.host.inventory import Table
from ramet.host.store import Change
from ramet.model.base import Model
from ramet.model.identity import Customization
from ramet.model.units import new_id
from ramet.vsphere import ids
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

MAX_NAME = 80
MAX_DEPTH = 32


class FolderRecord(Model):
    """A folder of VMs that somebody made."""

    id: str = Field(default_factory=new_id)
    name: str = Field(min_length=1, max_length=MAX_NAME)
    parent: str = ids.VM_FOLDER
    """Its moid."""

    @property
    def moid(self) -> str:
        return ids.folder_moid(self.id)


class Ordered(Model):
    """What a guest is to be told at its VM's next power-on."""

    values: Customization
    begun: bool = False
    """The guest was asked: what comes of it is the VM's identity, and the host's to finish."""
    time_zone: str | None = Field(default=None, max_length=64, pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")


class VmNote(Model):
    """What clients have said of a VM that the machine itself does not know."""

    vm_id: str
    folder: str = ids.VM_FOLDER
    template: bool = False
    annotation: str = Field(default="", max_length=65536)
    instance_uuid: str | None = None
    guest_id: str | None = Field(default=None, max_length=80)
    customization: Ordered | None = None


class Places:
    """One a world. Reads are plain, over memory; writes are durable when they return."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._folders = Table(world.store, "vsphere/folder/", FolderRecord, lambda one: one.id, "folder")
        self._notes = Table(world.store, "vsphere/vm/", VmNote, lambda one: one.vm_id, "note")
        self._by_moid: dict[str, FolderRecord] = {}
        self._inside: dict[str, set[str]] = {}
        """Folder -> ids of the VMs in it that are not in the topmost one."""
        self._ordered: dict[str, Ordered] = {}

    async def load(self) -> None:
        """Read what is remembered."""
        for table in (self._folders, self._notes):
            for entry in await self._world.store.list(table.prefix):
                self._learn(table, Change(entry.key, entry.value, entry.revision))
        self._by_moid = {one.moid: one for one in self._folders.all()}
        for note in self._notes.all():
            self._enter(note)

    @staticmethod
    def _learn(table: Table[Any], change: Change) -> None:
        table.learn(change.key.removeprefix(table.prefix), change.value, change.revision)

    # -- VMs -------------------------------------------------------------------------------------------------------

    def note(self, vm_id: str) -> VmNote:
        found = self._notes.get(vm_id)
        if found is None:
            return VmNote.model_construct(
                vm_id=vm_id, folder=ids.VM_FOLDER, template=False, annotation="", instance_uuid=None, guest_id=None,
                customization=None,
            )
        if found.folder != ids.VM_FOLDER and found.folder not in self._by_moid:  # a folder that is gone
            return found.model_copy(update={"folder": ids.VM_FOLDER})
        return found

    async def change(self, vm_id: str, **fields: Any) -> VmNote:
        """Say something else of a VM. Whoever waits is told; the VM need not be there yet."""
        before = self.note(vm_id)
        after = before.changed(**fields)
        await self._notes.put(after)
        self._leave(before)
        self._enter(after)
        moid, updates = ids.vm_moid(vm_id), self._world.updates
        if before.folder == after.folder:
            updates.touch(moid)
        else:
            updates.reshape(moid, vim.VirtualMachine)
            for folder in (before.folder, after.folder):
                updates.touch(folder)
        return after

    async def forget(self, vm_id: str) -> None:
        """The VM is gone."""
        if self._notes.get(vm_id) is not None:
            self._leave(self.note(vm_id))
            await self._notes.remove(vm_id)

    def vms_in(self, moid: str) -> list[str]:
        """Ids of the VMs of a folder that there are, in no particular order."""
        if moid != ids.VM_FOLDER:
            inside = self._inside.get(moid, ())
            return [vm_id for vm_id in inside if self._world.get(ids.vm_moid(vm_id)) is not None]
        elsewhere: set[str] = set().union(*self._inside.values()) if self._inside else set()
        vms = (ids.vm_id(mo.moid) for mo in self._world.of_kind(vim.VirtualMachine))
        return [one for one in vms if one is not None and one not in elsewhere]

    def ordered(self) -> list[tuple[str, Ordered]]:
        """VMs whose guests are to be customized when they are powered on next."""
        return list(self._ordered.items())

    def noted(self) -> list[str]:
        """Ids of VMs that something was said of, whether there are any or not."""
        return [note.vm_id for note in self._notes.all()]

    def _enter(self, note: VmNote) -> None:
        if note.customization is not None:
            self._ordered[note.vm_id] = note.customization
        if note.folder in self._by_moid:
            self._inside.setdefault(note.folder, set()).add(note.vm_id)

    def _leave(self, note: VmNote) -> None:
        self._ordered.pop(note.vm_id, None)
        inside = self._inside.get(note.folder)
        if inside is not None:
            inside.discard(note.vm_id)
            if not inside:
                del self._inside[note.folder]

    # -- folders ---------------------------------------------------------------------------------------------------

    def folder(self, moid: str) -> FolderRecord | None:
        return self._by_moid.get(moid)

    def folders(self) -> list[FolderRecord]:
        return list(self._by_moid.values())

    def folders_in(self, moid: str) -> list[FolderRecord]:
        """By name."""
        return sorted((one for one in self._by_moid.values() if one.parent == moid), key=lambda one: one.name)

    def is_below(self, moid: str, above: str) -> bool:
        """Whether a folder is another, or somewhere in it."""
        while moid != above:
            record = self._by_moid.get(moid)
            if record is None:
                return False
            moid = record.parent
        return True

    def check_name(self, parent: str, name: str) -> None:
        """DuplicateName for one that is taken in that folder, InvalidName for none at all."""
        if not 0 < len(name) <= MAX_NAME:
            raise vim.fault.InvalidName(name=name, msg=f"A folder's name has 1 to {MAX_NAME} characters.")
        taken = next((one for one in self.folders_in(parent) if one.name == name), None)
        if taken is not None:
            raise vim.fault.DuplicateName(
                name=name, object=vim.Folder(taken.moid), msg=f"There is a folder {name!r} there already."
            )

    async def make_folder(self, parent: str, name: str) -> FolderRecord:
        self.check_name(parent, name)
        if self._depth(parent) >= MAX_DEPTH:
            raise vim.fault.InvalidName(name=name, msg=f"Folders are at most {MAX_DEPTH} deep.")
        record = FolderRecord(name=name, parent=parent)
        self._by_moid[record.moid] = record  # the name is taken while it is written
        try:
            await self._folders.add(record)
        except BaseException:
            del self._by_moid[record.moid]
            raise
        return record

    async def rename_folder(self, moid: str, name: str) -> None:
        record = self._by_moid[moid]
        if name != record.name:
            self.check_name(record.parent, name)
            await self._replace(record.changed(name=name))
            self._world.updates.touch(moid)

    async def move_folder(self, moid: str, parent: str) -> None:
        """InvalidFolder for one that would stand in itself."""
        record = self._by_moid[moid]
        if self.is_below(parent, moid):
            raise vim.fault.InvalidFolder(
                target=vim.Folder(parent), msg="A folder cannot be moved into itself, or into one of its own folders."
            )
        if parent != record.parent:
            self.check_name(parent, record.name)
            await self._replace(record.changed(parent=parent))
            self._world.updates.reshape(moid, vim.Folder)
            for one in (record.parent, parent):
                self._world.updates.touch(one)

    async def _replace(self, record: FolderRecord) -> None:
        await self._folders.put(record)
        self._by_moid[record.moid] = record

    async def remove_folder(self, moid: str) -> None:
        """The record; what was in it must have gone before."""
        record = self._by_moid.get(moid)
        if record is not None:
            await self._folders.remove(record.id)
            self._by_moid.pop(moid, None)
            self._inside.pop(moid, None)  # what was unregistered in it comes back elsewhere
            self._world.remove(moid)
            self._world.updates.touch(record.parent)

    def _depth(self, moid: str) -> int:
        depth, record = 0, self._by_moid.get(moid)
        while record is not None:
            depth, record = depth + 1, self._by_moid.get(record.parent)
        return depth
