"""From a request to a VM that is off: the image's layers, new disks, NICs, the seed. A failure leaves nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

from ramet.errors import NotFoundError, UnsupportedError, UsageError
from ramet.guest.seed import check_ssh_key, write_seed
from ramet.host.floor import Floor
from ramet.machine.live import LiveMachine
from ramet.model.host import Image
from ramet.model.machine import (
    DEFAULT_NETWORK,
    USER_NETWORK,
    Disk,
    Firmware,
    KernelBoot,
    Machine,
    Nic,
    Vm,
)
from ramet.model.requests import CreateVm, DiskRequest, NicRequest
from ramet.model.units import MIB, new_id
from ramet.storage.layers import Layer

EFIVARS_LAYER = "efivars"
"""The immutable layer every UEFI machine's variables start from."""


async def create(floor: Floor, request: CreateVm) -> LiveMachine:
    """Raises before anything changes for everything that can be known; removes what it made when the rest fails."""
    _refuse_unsupported(request)
    vm_id = new_id()
    image = floor.inventory.images.find(request.image) if request.image else None
    nics = _nics(floor, request)
    _check_files(request)
    layers = [f"{vm_id}-{name}" for name in _disk_names(request, image)]
    async with floor.rooms.book.operation("create", vm_id, {"layers": layers, "clones": [vm_id]}):
        try:
            disks = await _make_disks(floor, request, image, vm_id)
            machine = await _machine(floor, request, image, nics, disks, vm_id)
            vm = Vm(id=vm_id, machine=machine, lineage_id=vm_id, created_at=time.time())
            live = LiveMachine(floor.rooms, vm)
            await floor.rooms.book.save(vm)
        except BaseException:
            for layer in layers:
                floor.rooms.layers.path(layer).unlink(missing_ok=True)
            await asyncio.to_thread(shutil.rmtree, floor.rooms.paths.vm(vm_id), ignore_errors=True)
            raise
    floor.add(live)
    floor.rooms.book.emit("vm.created", f"{machine.name} was created.", vm)
    return live


def _refuse_unsupported(request: CreateVm) -> None:
    if request.tpm:
        raise UnsupportedError(
            "A TPM cannot be cloned: its state would make every clone prove that it is the source.",
            hint="Create the VM without one.",
        )
    if request.passthrough:
        raise UnsupportedError(
            f"A passed-through device ({request.passthrough[0]}) cannot be cloned: it writes to guest memory by itself "
            "and exists once.",
            hint="Use virtual devices.",
        )


def _check_files(request: CreateVm) -> None:
    for key in request.ssh_keys:
        check_ssh_key(key)
    if request.ssh_keys and request.user_data is not None:
        raise UsageError("Give either user-data or SSH keys.", hint="Put the keys into the user-data.")
    for path in request.cdroms:
        if not Path(path).is_file() or not os.access(path, os.R_OK):
            raise NotFoundError(f"There is no readable file {path}.", hint="Give the absolute path of an ISO image.")
    for disk in request.disks:
        if (disk.size_mib is None) == (disk.image is None):
            raise UsageError("A disk has either a size or an image.")


def _nics(floor: Floor, request: CreateVm) -> tuple[Nic, ...]:
    wanted = request.nics
    if wanted is None:
        known = floor.inventory.networks.get(DEFAULT_NETWORK)
        wanted = (NicRequest(network=DEFAULT_NETWORK if known else USER_NETWORK),)
    for nic in wanted:
        if nic.network not in (None, USER_NETWORK):
            floor.inventory.networks.find(str(nic.network))
    return tuple(
        Nic.model_validate({"id": f"net{n}", "network": nic.network, **nic.model_dump(exclude_none=True)})
        for n, nic in enumerate(wanted)
    )


def _disk_names(request: CreateVm, image: Image | None) -> list[str]:
    count = (len(image.layers) if image else 0) + len(request.disks)
    names = [f"disk{n}" for n in range(count)]
    return [*names, "efivars"] if _firmware(request, image) is Firmware.UEFI else names


def _firmware(request: CreateVm, image: Image | None) -> Firmware:
    return request.firmware or (Firmware(image.firmware) if image else Firmware.BIOS)


async def _make_disks(floor: Floor, request: CreateVm, image: Image | None, vm_id: str) -> tuple[Disk, ...]:
    layers = floor.rooms.layers
    made: list[Layer] = []
    for base in image.layers if image else ():
        made.append(layers.create_overlay(base, layer_id=f"{vm_id}-disk{len(made)}", sync=True))
    for disk in request.disks:
        made.append(_new_disk(floor, disk, f"{vm_id}-disk{len(made)}"))
    disks = [Disk(id=f"disk{n}", layer=layer.id, size_bytes=layer.size_bytes) for n, layer in enumerate(made)]
    if _firmware(request, image) is Firmware.UEFI:
        base_layer = await _efivars_base(floor)
        layer = layers.create_overlay(base_layer, layer_id=f"{vm_id}-efivars", sync=True)
        disks.append(Disk(id="efivars", layer=layer.id, size_bytes=layer.size_bytes))
    return tuple(disks)


def _new_disk(floor: Floor, disk: DiskRequest, layer_id: str) -> Layer:
    if disk.image is not None:
        image = floor.inventory.images.find(disk.image)
        if not image.layers:
            raise UsageError(f"The image {disk.image!r} has no disk.")
        return floor.rooms.layers.create_overlay(image.layers[0], layer_id=layer_id, sync=True)
    assert disk.size_mib is not None
    return floor.rooms.layers.create_empty(disk.size_mib * MIB, layer_id=layer_id, sync=True)


async def _efivars_base(floor: Floor) -> str:
    """The firmware package's empty variables, taken in once and shared by all."""
    template = floor.rooms.qemu.firmware_vars
    if template is None:
        raise UnsupportedError("There is no UEFI firmware on this host.", hint="Install the package 'ovmf'.")
    if not floor.rooms.layers.exists(EFIVARS_LAYER):
        await floor.adopt_raw(template, EFIVARS_LAYER)
    return EFIVARS_LAYER


async def _machine(
    floor: Floor, request: CreateVm, image: Image | None, nics: tuple[Nic, ...], disks: tuple[Disk, ...], vm_id: str
) -> Machine:
    config = dict(request.extra_config)
    cdroms = list(request.cdroms)
    if request.ssh_keys:
        config["guestinfo.ramet.ssh-keys"] = "\n".join(request.ssh_keys)
    if request.ssh_keys or request.user_data is not None:
        cdroms.append(await _seed(floor, request, vm_id))
    if image is not None and image.recipe != "import":
        config.setdefault("guestinfo.ramet.hostname", request.name)
    kernel = None
    if image is not None and image.kernel is not None:
        kernel = KernelBoot(kernel=image.kernel, initrd=image.initrd, append=image.append)
    return Machine(
        name=request.name,
        memory_mib=request.memory_mib or (image.memory_mib if image else 512),
        vcpus=request.vcpus,
        firmware=_firmware(request, image),
        kernel=kernel,
        disks=disks,
        nics=nics,
        display=request.display,
        cdroms=tuple(cdroms),
        extra_config=config,
        autostart=request.autostart,
        accelerator=request.accelerator,
        cpu_limit_percent=request.cpu_limit_percent,
        image=request.image,
    )


async def _seed(floor: Floor, request: CreateVm, vm_id: str) -> str:
    directory = floor.rooms.paths.vm(vm_id)
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)
    path = directory / "seed.iso"
    await asyncio.to_thread(write_seed, path, vm_id, request.name, ssh_keys=request.ssh_keys, more=request.user_data)
    return str(path)
