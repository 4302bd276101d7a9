"""Images and port groups: what VMs are made from, and what they are plugged into."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from ramet.errors import ConflictError, NotFoundError, RametError
from ramet.guest.images.built import BuiltImage
from ramet.guest.images.debian import build_debian
from ramet.guest.images.micro import build_micro
from ramet.host.floor import Floor
from ramet.host.tasks import TaskHandle, TaskManager
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.host import Image, Network, Task
from ramet.model.machine import DEFAULT_NETWORK
from ramet.model.requests import BuildImage, ChangeNetwork, CreateNetwork, ImportImage
from ramet.model.units import new_id
from ramet.storage.images import adopt_disk, import_file


class StockDesk:
    """Images are made by tasks; port groups at once."""

    def __init__(self, floor: Floor, tasks: TaskManager) -> None:
        self._floor = floor
        self._tasks = tasks
        self._building: set[str] = set()
        self._networking = asyncio.Lock()
        """One change of port groups at a time: each begins with what the one before has left."""

    # -- images ----------------------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        return self._floor.inventory.images.all()

    async def build(self, request: BuildImage) -> Task:
        name = request.name or request.recipe
        self._check_free(name, replace=request.force)

        async def work(handle: TaskHandle) -> Image:
            directory = self._floor.rooms.paths.images / f"{name}-{new_id()}"
            try:
                with handle.step("build"):
                    built = await _build(request, directory, handle)
                layer_id = f"img-{new_id()}"
                with handle.step("take in"), self._floor.rooms.layers.hold(layer_id):
                    return await self._keep(await self._take_in(name, request.recipe, built, layer_id))
            except BaseException:
                if not self._has_recorded(directory):  # a write that was cancelled may have been done
                    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
                raise

        return await self._start("image.build", name, work)

    def _has_recorded(self, directory: Path) -> bool:
        return any(image.kernel and Path(image.kernel).parent == directory for image in self.images())

    async def _start(self, kind: str, name: str, work: Any) -> Task:
        self._building.add(name)

        async def guarded(handle: TaskHandle) -> Any:
            try:
                return await work(handle)
            except BaseException:
                with contextlib.suppress(RametError, OSError):  # a layer that no image came to name
                    await asyncio.shield(self._floor.collect_layers())
                raise
            finally:
                self._building.discard(name)

        return await self._tasks.start(kind, name, guarded, cancellable=True)

    def _check_free(self, name: str, *, replace: bool = False) -> None:
        if name in self._building:
            raise ConflictError(f"The image {name!r} is being made.", hint="See 'ramet task ls'.")
        if not replace and self._floor.inventory.images.get(name) is not None:
            raise ConflictError(
                f"There is an image {name!r} already.", hint="Remove it, choose another name, or build with --force."
            )

    async def _take_in(self, name: str, recipe: str, built: BuiltImage, layer_id: str) -> Image:
        layers: tuple[str, ...] = ()
        if built.disk is not None:
            await adopt_disk(self._floor.rooms.layers, built.disk, layer_id=layer_id)
            layers = (layer_id,)
        return Image(
            name=name,
            recipe=recipe,
            layers=layers,
            sizes_bytes=(built.disk_size_bytes,) if layers else (),
            kernel=str(built.kernel) if built.kernel else None,
            initrd=str(built.initrd) if built.initrd else None,
            append=built.append,
            memory_mib=built.memory_mib,
            sha256=built.sha256,
            created_at=time.time(),
        )

    async def _keep(self, image: Image) -> Image:
        old = self._floor.inventory.images.get(image.name)
        await self._floor.inventory.images.put(image)
        reach("import.recorded")
        if old is not None:
            await self._discard_files(old)
        self._floor.rooms.book.emit("image.made", f"The image {image.name} is ready.")
        return image

    async def import_image(self, request: ImportImage) -> Task:
        path = Path(request.path)
        name = request.name or path.stem
        self._check_free(name)
        if not path.is_file():
            raise NotFoundError(f"There is no file {path}.", hint="Give the path of a qcow2, raw or vmdk file.")

        async def work(handle: TaskHandle) -> Image:
            layer_id = f"img-{new_id()}"
            with handle.step("import"), self._floor.rooms.layers.hold(layer_id):
                return await self._import(name, path, request, layer_id, handle)

        return await self._start("image.import", name, work)

    async def _import(self, name: str, path: Path, request: ImportImage, layer_id: str, handle: TaskHandle) -> Image:
        reach("import.begun")
        disk = await import_file(self._floor.rooms.layers, path, handle.progress, layer_id=layer_id)
        reach("import.layered")
        return await self._keep(
            Image(
                name=name,
                recipe="import",
                layers=(disk.layer_id,),
                sizes_bytes=(disk.size_bytes,),
                firmware=request.firmware.value,
                sha256={path.name: disk.sha256},
                created_at=time.time(),
            )
        )

    async def remove_image(self, name: str) -> None:
        """VMs made from it go on: they hold its layers. A kernel they boot from must stay."""
        image = self._floor.inventory.images.find(name)
        users = [live for live in self._floor.machines.values() if self._boots_from(live.vm.machine.kernel, image)]
        if users:
            raise ConflictError(
                f"The image {name!r} holds the kernel that {users[0].name!r} boots.",
                hint=_how_to_reach(users[0], "Remove that VM first."),
            )
        await self._floor.inventory.images.remove(name)
        await self._discard_files(image)

    @staticmethod
    def _boots_from(kernel: Any, image: Image) -> bool:
        return kernel is not None and kernel.kernel == image.kernel

    async def _discard_files(self, image: Image) -> None:
        users = [live for live in self._floor.machines.values() if self._boots_from(live.vm.machine.kernel, image)]
        if image.kernel is not None and not users:
            await asyncio.to_thread(shutil.rmtree, Path(image.kernel).parent, ignore_errors=True)
        await self._floor.collect_layers()

    async def collect_directories(self) -> None:
        """At start: directories of builds that a crash cut off."""
        kept = {Path(image.kernel).parent for image in self.images() if image.kernel}
        kept |= {Path(live.vm.machine.kernel.kernel).parent for live in self._floor.machines.values()
                 if live.vm.machine.kernel}  # fmt: skip
        for directory in self._floor.rooms.paths.images.iterdir():
            if directory not in kept:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    # -- port groups -----------------------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        return self._floor.inventory.networks.all()

    async def create_network(self, request: CreateNetwork) -> Network:
        """Raises ConflictError (name, overlapping addresses), PrivilegeError; nothing is left then."""
        async with self._networking:
            if self._floor.inventory.networks.get(request.name) is not None:
                raise ConflictError(f"There is a port group {request.name!r} already.", hint="Choose another name.")
            network = await self._floor.rooms.networks.ensure(Network.model_validate(request.model_dump()))
            reach("network.made")
            await self._floor.inventory.networks.add(network)
            reach("network.recorded")
        self._floor.rooms.book.emit("network.created", f"The port group {network.name} was created.")
        return network

    def network(self, name: str) -> Network:
        """Raises NotFoundError."""
        return self._floor.inventory.networks.find(name)

    async def change_network(self, name: str, request: ChangeNetwork) -> Network:
        """At once, for guests that are plugged in too. What is refused, or fails, leaves everything as it was."""
        async with self._networking:
            before = self._floor.inventory.networks.find(name)
            network = await self._floor.rooms.networks.ensure(changed_network(before, request))
            await self._floor.inventory.networks.put(network)
        self._floor.rooms.book.emit("network.changed", f"The port group {name} was changed.")
        return network

    async def remove_network(self, name: str) -> None:
        async with self._networking:
            await self._remove_network(self._floor.inventory.networks.find(name))
        self._floor.rooms.book.emit("network.removed", f"The port group {name} was removed.")

    async def _remove_network(self, network: Network) -> None:
        name = network.name
        users = [live for live in self._floor.machines.values() for nic in live.vm.machine.nics if nic.network == name]
        if users:
            raise ConflictError(
                f"The port group {name!r} is used by {users[0].name!r}.",
                hint=_how_to_reach(users[0], "Move its NIC to another, or remove the VM."),
            )
        await self._floor.inventory.networks.remove(name)
        reach("network.forgotten")
        await self._floor.rooms.networks.remove(name)
        reach("network.removed")

    async def ensure_networks(self) -> None:
        """At start: what the inventory knows exists in the kernel, and a default port group where one may."""
        if self._floor.rooms.networks.problem is not None:
            return
        await self._floor.rooms.networks.restore(self.networks())
        if self._floor.inventory.networks.get(DEFAULT_NETWORK) is None:
            try:
                await self.create_network(CreateNetwork(name=DEFAULT_NETWORK, dhcp=True))
            except RametError as exc:  # without dnsmasq, say: the rest of the house stands without it
                self._floor.rooms.book.emit("host.warning", f"There is no default port group: {exc}")


def changed_network(network: Network, request: ChangeNetwork) -> Network:
    """The description after a request. Raises NotFoundError for a rule that is to be removed and is not there."""
    fields = ("dhcp", "nat", "isolated", "egress_default")
    update = request.model_dump(include=set(fields), exclude_none=True)
    rules = [] if request.clear_rules else list(network.egress)
    for rule in request.remove_rules:
        if rule not in rules:
            raise NotFoundError(
                f"Port group {network.name!r} has no rule '{rule.action} {rule.text}'.",
                hint=f"See 'ramet network show {network.name}'.",
            )
        rules.remove(rule)
    rules += [rule for rule in dict.fromkeys(request.add_rules) if rule not in rules]
    return network.changed(**update, egress=tuple(rules))


async def _build(request: BuildImage, directory: Path, handle: TaskHandle) -> BuiltImage:
    if request.recipe == "micro":
        return await build_micro(directory, handle.progress)
    return await build_debian(directory, size_mib=request.size_mib, packages=request.packages, progress=handle.progress)


def _how_to_reach(live: LiveMachine, hint: str) -> str:
    if live.vm.registered:
        return hint
    return f"It was unregistered: bring it back with 'ramet vm register {live.id}'. {hint}"
