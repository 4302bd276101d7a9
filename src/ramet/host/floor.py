"""The machines on this host: every VM of the inventory as a LiveMachine, and what is derived from all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from ramet.errors import ConflictError, DamagedError, NotFoundError
from ramet.host.inventory import Inventory
from ramet.machine.live import LiveMachine
from ramet.machine.rooms import Rooms
from ramet.model.machine import Vm
from ramet.model.units import new_id
from ramet.storage.images import adopt_disk

_log = logging.getLogger(__name__)

ROOTS_TIMEOUT_S = 60.0


class Floor:
    """Finds machines by name or id, reserves names, and collects what nobody uses."""

    def __init__(self, rooms: Rooms, inventory: Inventory) -> None:
        self.rooms = rooms
        self.inventory = inventory
        self.machines: dict[str, LiveMachine] = {}
        self._reserved: set[str] = set()
        self._collecting = asyncio.Lock()

    def find(self, ref: str) -> LiveMachine:
        """By name, id, or the unique beginning of an id. NotFoundError, with what was probably meant."""
        vm = self.inventory.find_vm(ref)
        live = self.machines.get(vm.id)
        if live is None:  # recorded this instant, and not quite there yet
            raise NotFoundError(f"{vm.name!r} is being made.", hint="Try again in a moment.")
        return live

    def add(self, live: LiveMachine) -> None:
        self.machines[live.id] = live

    def drop(self, vm_id: str) -> None:
        live = self.machines.pop(vm_id, None)
        if live is not None:
            live.removed = True

    def is_taken(self, name: str) -> bool:
        return name in self._reserved or self.inventory.is_named(name)

    def shown(self) -> list[LiveMachine]:
        """Users' machines: all but those that wait in pools, or were unregistered."""
        return [live for live in self.machines.values() if live.vm.is_shown]

    def unregistered(self) -> list[LiveMachine]:
        """Those that can be put back."""
        return [live for live in self.machines.values() if not live.vm.registered]

    def find_unregistered(self, ref: str) -> LiveMachine:
        """By id, or by a name that one of them has. NotFoundError."""
        found = [live for live in self.unregistered() if ref in (live.id, live.name)]
        if not found:
            hint = "'ramet vm ls --unregistered' lists those that there are."
            raise NotFoundError(f"No VM {ref!r} was unregistered.", hint=hint, ref=ref)
        if len(found) > 1:
            ids = ", ".join(live.id for live in found)
            raise NotFoundError(f"Several VMs {ref!r} were unregistered: {ids}.", hint="Name one by its id.", ref=ref)
        return found[0]

    @contextlib.contextmanager
    def reserve(self, *names: str) -> Iterator[None]:
        """Keep names for an operation that will need them. ConflictError when one is taken."""
        for name in names:
            if self.is_taken(name):
                raise ConflictError(f"There is a VM named {name!r} already.", hint="Choose another name.", name=name)
        self._reserved.update(names)
        try:
            yield
        finally:
            self._reserved.difference_update(names)

    # -- layers ----------------------------------------------------------------------------------------------------

    def image_layers(self) -> frozenset[str]:
        """Layers that belong to images, their ancestors included: what is never merged away."""
        tops = [layer for image in self.inventory.images.all() for layer in image.layers]
        found: set[str] = set()
        for top in tops:
            with contextlib.suppress(DamagedError):
                found.update(layer.id for layer in self.rooms.layers.chain(top))
        return frozenset(found)

    def roots_by_owner(self) -> dict[str, list[str]]:
        """Who needs which layers: VMs, images, moments, and operations under way."""
        owners: dict[str, list[str]] = {}
        for entry in self.inventory.journal.all():
            owners[f"operation {entry.id}"] = [str(layer) for layer in entry.detail.get("layers", ())]
        for vm in [*self.inventory.vms(), *(live.vm for live in self.machines.values())]:
            owners.setdefault(f"vm {vm.id}", []).extend(disk.layer for disk in vm.machine.disks)
        for image in self.inventory.images.all():
            owners[f"image {image.name}"] = list(image.layers)
        for moment in self.inventory.moments.all():
            owners[f"moment {moment.id}"] = list(moment.layers.values())
        return owners

    async def _roots(self) -> list[str]:
        """In the event loop's thread, in one go: a record that moves from the journal to a VM is in one of them."""
        return [layer for layers in self.roots_by_owner().values() for layer in layers]

    def layer_users(self) -> dict[str, int]:
        """How many VMs, images and moments use each layer."""
        owners = {name: layers for name, layers in self.roots_by_owner().items() if not name.startswith("operation")}
        return dict(self.rooms.layers.users(owners))

    async def adopt_raw(self, file: Path, layer_id: str) -> None:
        """Take a copy of a raw file in as an immutable layer; `file` stays."""
        copy = self.rooms.paths.root / f".{layer_id}-{new_id()}.raw"
        try:
            await asyncio.to_thread(shutil.copyfile, file, copy)
            await adopt_disk(self.rooms.layers, copy, layer_id=layer_id)
        finally:
            copy.unlink(missing_ok=True)

    async def collect_layers(self) -> tuple[str, ...]:
        """Delete the layers that nobody uses. Damage is told, and stops the collection: nothing is guessed."""
        async with self._collecting:
            try:
                loop = asyncio.get_running_loop()
                return await asyncio.to_thread(
                    self.rooms.layers.collect,
                    lambda: asyncio.run_coroutine_threadsafe(self._roots(), loop).result(ROOTS_TIMEOUT_S),
                )
            except DamagedError as exc:
                _log.error("layers are not collected: %s", exc)
                self.rooms.book.emit("host.warning", str(exc))
                return ()


async def let_go(floor: Floor) -> None:
    """The daemon ends, its VMs do not."""
    for live in list(floor.machines.values()):
        await live.detach()
    on = any(vm.is_on for vm in floor.inventory.vms())
    await floor.rooms.networks.close(remove_namespace=not on)
    for base, _ in floor.rooms.cgroups.bases.values():
        with contextlib.suppress(OSError):  # another daemon's VMs may be in it
            base.rmdir()


def lineage_children(vms: list[Vm]) -> dict[str | None, list[Vm]]:
    """VMs by the source they were cloned from; None for those whose source is gone, or never was."""
    present = {vm.id for vm in vms}
    children: dict[str | None, list[Vm]] = {}
    for vm in sorted(vms, key=lambda vm: vm.created_at):
        source = vm.lineage.source_id if vm.lineage and vm.lineage.source_id in present else None
        children.setdefault(source, []).append(vm)
    return children
