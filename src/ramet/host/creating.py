"""From a request to a VM that is off: the image's layers, new disks, NICs, the seed. A failure leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from pathlib import Path

from ramet.clone.check import HOSTNAME_KEY
from ramet.errors import CapacityError, ConflictError, NotFoundError, UnsupportedError, UsageError
from ramet.guest.seed import seed_iso, write_seed
from ramet.host.floor import Floor
from ramet.hypervisor.plan import check_devices
from ramet.machine.blocks import layer_name
from ramet.machine.hardware import check_disk_size
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.model.base import parse
from ramet.model.host import Image
from ramet.model.machine import (
    DEFAULT_NETWORK,
    USER_NETWORK,
    Accelerator,
    Disk,
    Firmware,
    KernelBoot,
    Machine,
    Nic,
    Vm,
)
from ramet.model.requests import CreateVm, DiskRequest, NicRequest
from ramet.model.units import MIB, format_bytes
from ramet.network.fences import check_fence
from ramet.storage.layers import Layer, full_disk

DEFAULT_MEMORY_MIB = 512
DISK_RESERVE_BYTES = 16 * MIB
"""Kept free under the layers, for the headers and tables of new ones."""

EFIVARS_LAYER = "efivars"
"""The immutable layer every UEFI machine's variables start from."""


async def check_create(floor: Floor, request: CreateVm) -> Machine:
    """Every check there is, and no change. Returns the machine as it will be, its disks and seed still to be made.

    Raises the error that says what to do instead. With `accelerator` KVM this may take the seconds of the probe.
    """
    _refuse_unsupported(request)
    image = floor.inventory.images.find(request.image) if request.image else None
    _check_files(request)
    machine = _draft(floor, request, image)
    check_devices(machine, floor.rooms.qemu)
    _check_room(floor, machine)
    if request.accelerator is Accelerator.KVM:
        await floor.rooms.acceleration.decide(request.accelerator)
    return machine


async def create(floor: Floor, request: CreateVm) -> LiveMachine:
    """Raises before anything changes for everything that can be known; removes what it made when the rest fails."""
    draft = await check_create(floor, request)
    vm_id = floor.rooms.book.new_vm_id()
    layers = [layer_name(vm_id, disk.id) for disk in draft.disks]
    async with floor.rooms.book.operation("create", vm_id, {"layers": layers, "clones": [vm_id]}):
        try:
            reach("create.journalled")
            disks = await _make_disks(floor, request, draft, vm_id)
            cdroms = (*draft.cdroms, *([await _seed(floor, request, vm_id)] if _needs_seed(request) else []))
            machine = draft.changed(disks=disks, cdroms=cdroms)
            vm = Vm(id=vm_id, machine=machine, lineage_id=vm_id, created_at=time.time())
            live = LiveMachine(floor.rooms, vm)
            reach("create.layered")
            await floor.rooms.book.save(vm)
            reach("create.recorded")
        except BaseException:
            await asyncio.shield(floor.rooms.book.forget(vm_id))
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
    for path in request.cdroms:
        if not Path(path).is_absolute():
            raise UsageError(f"{path} is not an absolute path.")
        if not Path(path).is_file() or not os.access(path, os.R_OK):
            raise NotFoundError(f"There is no readable file {path}.", hint="Give the absolute path of an ISO image.")
    if _needs_seed(request):
        seed_iso("check", request.name, ssh_keys=request.ssh_keys, more=request.user_data)
        if len(request.cdroms) > 1:
            raise UsageError("Keys and user-data come on a CD of their own, so there is place for one more only.")


def _needs_seed(request: CreateVm) -> bool:
    return bool(request.ssh_keys) or request.user_data is not None


def _check_room(floor: Floor, machine: Machine) -> None:
    """What could never start here is not made; layers start small, but not from nothing."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if machine.memory_mib * MIB > total:
        raise CapacityError(
            f"{machine.name!r} cannot have {format_bytes(machine.memory_mib * MIB)} of memory: this host has "
            f"{format_bytes(total)}.",
            hint="Give it less: --memory SIZE.",
        )
    if machine.disks and floor.rooms.layers.free_bytes() < DISK_RESERVE_BYTES:
        raise full_disk(floor.rooms.layers, DISK_RESERVE_BYTES)


def _draft(floor: Floor, request: CreateVm, image: Image | None) -> Machine:
    """The machine without what has to be made for it: its disks have no layers yet. Raises UsageError."""
    config = dict(request.extra_config)
    if request.ssh_keys:
        config["guestinfo.ramet.ssh-keys"] = "\n".join(request.ssh_keys)
    if image is not None and image.recipe != "import":
        config.setdefault(HOSTNAME_KEY, request.name)
    kernel = None
    if image is not None and image.kernel is not None:
        kernel = KernelBoot(kernel=image.kernel, initrd=image.initrd, append=image.append)
    sizes = [*(image.sizes_bytes if image else ()), *(_size_bytes(floor, disk) for disk in request.disks)]
    disks = [Disk(id=f"disk{n}", layer="", size_bytes=size) for n, size in enumerate(sizes)]
    firmware = request.firmware or (Firmware(image.firmware) if image else Firmware.BIOS)
    if firmware is Firmware.UEFI:
        disks.append(Disk(id="efivars", layer="", size_bytes=1))
    fields = {
        "name": request.name,
        "memory_mib": request.memory_mib or (image.memory_mib if image else DEFAULT_MEMORY_MIB),
        "vcpus": request.vcpus,
        "firmware": firmware,
        "kernel": kernel,
        "disks": tuple(disks),
        "nics": _nics(floor, request),
        "display": request.display,
        "cdroms": request.cdroms,
        "extra_config": config,
        "autostart": request.autostart,
        "accelerator": request.accelerator,
        "cpu_limit_percent": request.cpu_limit_percent,
        "image": request.image,
    }
    machine: Machine = parse(Machine, fields)
    return machine


def _size_bytes(floor: Floor, disk: DiskRequest) -> int:
    if (disk.size_mib is None) == (disk.image is None):
        raise UsageError("A disk has either a size or an image.")
    if disk.image is not None:
        sizes = floor.inventory.images.find(disk.image).sizes_bytes
        if not sizes:
            raise UsageError(f"The image {disk.image!r} has no disk.")
        return sizes[0]
    assert disk.size_mib is not None
    return check_disk_size(disk.size_mib)


def _nics(floor: Floor, request: CreateVm) -> tuple[Nic, ...]:
    wanted = request.nics
    if wanted is None:
        known = floor.inventory.networks.get(DEFAULT_NETWORK)
        wanted = (NicRequest(network=DEFAULT_NETWORK if known else USER_NETWORK),)
    for nic in wanted:
        named = None
        if nic.network not in (None, USER_NETWORK):
            named = floor.inventory.networks.find(str(nic.network))
        check_fence(named, nic.fence)
    return tuple(
        Nic.model_validate({"id": f"net{n}", **nic.model_dump(exclude_none=True), "network": nic.network})
        for n, nic in enumerate(wanted)
    )


async def _make_disks(floor: Floor, request: CreateVm, draft: Machine, vm_id: str) -> tuple[Disk, ...]:
    """Layers for the disks of the draft: the image's, the further ones, the variables of UEFI."""
    layers = floor.rooms.layers
    image = floor.inventory.images.find(request.image) if request.image else None
    parents: list[str | None] = [*(image.layers if image else ()), *(_parent(floor, disk) for disk in request.disks)]
    made: list[Disk] = []
    for disk in draft.disks:
        name = layer_name(vm_id, disk.id)
        if disk.is_efivars:
            layer = await _make_efivars(floor, name)
        else:
            parent = parents[len(made)]
            layer = (
                layers.create_overlay(parent, layer_id=name, sync=True)
                if parent is not None
                else layers.create_empty(disk.size_bytes, layer_id=name, sync=True)
            )
        made.append(disk.changed(layer=layer.id, size_bytes=layer.size_bytes))
    return tuple(made)


def _parent(floor: Floor, disk: DiskRequest) -> str | None:
    return floor.inventory.images.find(disk.image).layers[0] if disk.image is not None else None


async def _make_efivars(floor: Floor, layer_id: str) -> Layer:
    """Over the firmware package's empty variables, taken in once and shared by all."""
    template, layers = floor.rooms.qemu.firmware_vars, floor.rooms.layers
    if template is None:
        raise UnsupportedError("There is no UEFI firmware on this host.", hint="Install the package 'ovmf'.")
    with layers.hold(EFIVARS_LAYER):
        if not layers.exists(EFIVARS_LAYER):
            with contextlib.suppress(ConflictError):  # another VM brought it in meanwhile
                await floor.adopt_raw(template, EFIVARS_LAYER)
        return layers.create_overlay(EFIVARS_LAYER, layer_id=layer_id, sync=True)


async def _seed(floor: Floor, request: CreateVm, vm_id: str) -> str:
    directory = floor.rooms.paths.vm(vm_id)
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)
    path = directory / "seed.iso"
    await asyncio.to_thread(write_seed, path, vm_id, request.name, ssh_keys=request.ssh_keys, more=request.user_data)
    return str(path)
