"""Changes of a VM's hardware: NICs moved, plugged and unplugged live; disks added, grown and removed; its picture."""

from __future__ import annotations

import asyncio
import contextlib

from ramet.errors import ConflictError, NotFoundError, RametError, StateError, UnsupportedError, UsageError
from ramet.hypervisor.arguments.nics import netdev_id
from ramet.machine.blocks import layer_name
from ramet.machine.lifecycle import Operation, next_state
from ramet.machine.live import LiveMachine
from ramet.machine.steps import reach
from ramet.machine.wiring import attach_nic, disk_chain
from ramet.model.machine import USER_NETWORK, Disk, Display, Machine, Nic, VmState
from ramet.model.requests import NicChange, NicRequest
from ramet.model.units import MIB, format_bytes, new_id, new_mac
from ramet.network.fences import check_fence, placement
from ramet.storage.images import grow
from ramet.storage.qcow2 import MAX_SIZE_BYTES

_TAKE_OUT_S = 5.0
HOT_PLUGGABLE = (VmState.OFF, VmState.RUNNING)


def find_nic(live: LiveMachine, nic_id: str) -> Nic:
    """NotFoundError names those there are."""
    for nic in live.vm.machine.nics:
        if nic.id == nic_id:
            return nic
    have = ", ".join(nic.id for nic in live.vm.machine.nics) or "none"
    raise NotFoundError(f"{live.name!r} has no NIC {nic_id!r}.", hint=f"It has: {have}.")


def find_disk(live: LiveMachine, disk_id: str) -> Disk:
    for disk in live.vm.machine.disks:
        if disk.id == disk_id:
            return disk
    have = ", ".join(disk.id for disk in live.vm.machine.disks) or "none"
    raise NotFoundError(f"{live.name!r} has no disk {disk_id!r}.", hint=f"It has: {have}.")


def _require_pluggable(live: LiveMachine, what: str) -> None:
    if live.vm.state not in HOT_PLUGGABLE:
        raise StateError(
            f"Cannot {what} while {live.name!r} is {live.vm.state.value}.",
            hint="It must run, or be off.",
            state=live.vm.state.value,
            operation=what,
        )


async def change_nic(live: LiveMachine, change: NicChange) -> None:
    """Move a NIC to another port group, connect or disconnect it; live where the VM is on. The MAC only while off."""
    nic = find_nic(live, change.id)
    update: dict[str, object] = {}
    if change.network is not None:
        update["network"] = change.network or None
    if change.connected is not None:
        update["connected"] = change.connected
    if change.mac is not None:
        next_state(live.vm.state, Operation.RECONFIGURE, name=live.name)
        update["mac"] = change.mac
    update |= _placement(live, nic, change)
    changed = nic.changed(**update)
    if live.vm.is_on and changed.is_user_mode != nic.is_user_mode:
        raise UnsupportedError(
            f"{nic.id} cannot change between user-mode networking and a port group while the VM is on.",
            hint="Stop it first.",
        )
    _require_network(live, changed)
    if change.connected and live.vm.identity.holds_links_down:
        raise StateError(
            f"{live.name!r} has no identity of its own yet and stays off the network.",
            hint=f"'ramet vm identify {live.name}' asks its guest again; with --bare it is taken as it is.",
            state=live.vm.state.value,
            operation="connect a NIC",
        )
    if live.vm.frozen and changed.connected != nic.connected:
        raise StateError(
            f"{live.name!r} is frozen and would not notice that {nic.id} is plugged or unplugged.",
            hint="Thaw it first; or give the change to its clones.",
            state=live.vm.state.value,
            operation="change a NIC",
        )
    if live.vm.is_on:
        await _rewire(live, changed)
    await _replace_nic(live, changed)


def _placement(live: LiveMachine, nic: Nic, change: NicChange) -> dict[str, object]:
    """Into a fence, out of one, or neither. What leaves its fence must not keep its source's MAC address."""
    stays = change.network is None or change.network == (nic.network or "")
    if stays and (change.fence is None or change.fence == nic.fence):
        return {}
    book = live.rooms.book
    name = nic.network if change.network is None else change.network or None
    source, target = (book.network(where) if where else None for where in (nic.network, name))
    update: dict[str, object] = dict(placement(nic, source, target, change.fence))
    is_clone = live.vm.lineage is not None and nic.inside is not None
    if is_clone and target is not None and not target.fenced and change.mac is None:
        if live.vm.is_on:
            raise StateError(
                f"{live.name!r} has its source's MAC address, which may be on {target.name!r} already.",
                hint="Stop it first: it gets an address of its own when it leaves its fence.",
                state=live.vm.state.value,
                operation="change a NIC",
            )
        update["mac"] = new_mac()
    return update


def _require_network(live: LiveMachine, nic: Nic) -> None:
    if nic.network not in (None, USER_NETWORK) and live.rooms.book.network(str(nic.network)) is None:
        raise NotFoundError(f"There is no port group {nic.network!r}.", hint="See 'ramet network ls'.")


async def _rewire(live: LiveMachine, nic: Nic) -> None:
    """The cable first, the light after it: a link that is up leads somewhere."""
    if nic.id in live.taps:
        await attach_nic(live, nic, live.taps[nic.id])
    if live.vm.state is not VmState.FROZEN:
        await live.qmp.set_link(nic.id, up=nic.connected and not live.vm.identity.holds_links_down)


async def _replace_nic(live: LiveMachine, changed: Nic) -> None:
    nics = tuple(changed if nic.id == changed.id else nic for nic in live.vm.machine.nics)
    await live.change(machine=live.vm.machine.changed(nics=nics))


async def add_nic(live: LiveMachine, request: NicRequest) -> None:
    """Plug a NIC in, live where the VM runs. Raises CapacityError when no slot is free."""
    _require_pluggable(live, "add a NIC")
    taken = {nic.id for nic in live.vm.machine.nics}
    nic_id = next(f"net{n}" for n in range(len(taken) + 1) if f"net{n}" not in taken)
    data = request.model_dump(exclude_none=True)
    nic = Nic.model_validate({"id": nic_id, **data, "network": request.network})
    _require_network(live, nic)
    check_fence(live.rooms.book.network(nic.network) if nic.network else None, nic.fence)
    before = live.vm.machine
    # Recorded first: what is in the record and not in QEMU is found by the next start; the other way it would not be.
    await live.change(machine=before.changed(nics=(*before.nics, nic)))
    try:
        reach("nic.recorded")
        if live.vm.is_on:
            await _plug_nic(live, nic)
        reach("nic.plugged")
    except BaseException:
        await asyncio.shield(_take_out(live, before, nic.id))
        raise


async def _plug_nic(live: LiveMachine, nic: Nic) -> None:
    if nic.is_user_mode:
        await live.qmp.hotplug_nic(nic, None)
    else:
        tap = await live.rooms.networks.open_tap(live.id, nic.index)
        with contextlib.closing(tap):
            await attach_nic(live, nic, tap.name)
            await live.qmp.hotplug_nic(nic, tap.fd)
        live.taps[nic.id] = tap.name
    if not nic.connected or live.vm.identity.holds_links_down:
        await live.qmp.set_link(nic.id, up=False)


async def _take_out(live: LiveMachine, before: Machine, device_id: str) -> None:
    """Of a device that could not be plugged in, or not to the end: the record says in the end what QEMU has."""
    with contextlib.suppress(RametError):
        if live.vm.is_on and device_id in await live.qmp.device_ids():
            await live.qmp.unplug_device(device_id, timeout_s=_TAKE_OUT_S)
            if device_id.startswith("net"):
                await live.qmp.execute("netdev_del", {"id": netdev_id(device_id)})
        await live.change(machine=live.vm.machine.changed(nics=before.nics, disks=before.disks))


async def follow_devices(live: LiveMachine) -> None:
    """Make the record name the devices that QEMU has: after a plugging that was cut off, only QEMU knows."""
    there, machine = await live.qmp.device_ids(), live.vm.machine
    nics = tuple(nic for nic in machine.nics if nic.id in there)
    disks = tuple(disk for disk in machine.disks if disk.is_efivars or disk.id in there)
    if (nics, disks) != (machine.nics, machine.disks):
        await live.change(machine=machine.changed(nics=nics, disks=disks))


async def remove_nic(live: LiveMachine, nic_id: str) -> None:
    """Unplug a NIC. Where the VM runs the guest is asked, and must let go within a deadline."""
    nic = find_nic(live, nic_id)
    _require_pluggable(live, "remove a NIC")
    if live.vm.is_on:
        await live.qmp.unplug_nic(nic.id, timeout_s=live.rooms.limits.qmp_s)
        live.taps.pop(nic.id, None)
    nics = tuple(other for other in live.vm.machine.nics if other.id != nic_id)
    await live.change(machine=live.vm.machine.changed(nics=nics))


def check_disk_size(size_mib: int) -> int:
    """In bytes; UsageError for what no layer can be."""
    if size_mib * MIB > MAX_SIZE_BYTES:
        raise UsageError(f"A disk has at most {format_bytes(MAX_SIZE_BYTES)}.", hint="Write sizes like 512M or 20G.")
    return size_mib * MIB


async def add_disk(live: LiveMachine, size_mib: int) -> Disk:
    """A new empty disk, plugged in live where the VM runs."""
    _require_pluggable(live, "add a disk")
    taken = {disk.id for disk in live.vm.machine.disks}
    disk_id = next(f"disk{n}" for n in range(len(taken) + 1) if f"disk{n}" not in taken)
    disk = Disk(id=disk_id, layer=layer_name(new_id(), disk_id), size_bytes=check_disk_size(size_mib))
    before = live.vm.machine
    with live.rooms.layers.hold(disk.layer):
        try:
            live.rooms.layers.create_empty(disk.size_bytes, layer_id=disk.layer, sync=True)
            reach("disk.made")
            await live.change(machine=before.changed(disks=(*before.disks, disk)))  # first: see add_nic
            reach("disk.recorded")
            if live.vm.is_on:
                await _plug_disk(live, disk)
            reach("disk.plugged")
        except BaseException:
            await asyncio.shield(_take_out(live, before, disk.id))
            if disk not in live.vm.machine.disks:  # else the guest keeps it
                live.rooms.layers.remove(disk.layer)
            raise
    return disk


async def _plug_disk(live: LiveMachine, disk: Disk) -> None:
    chain = disk_chain(live.rooms, disk)
    await live.qmp.add_chain(chain)
    try:
        await live.qmp.hotplug_disk(chain)
    except BaseException:
        await live.qmp.del_nodes([disk.layer])
        raise


async def grow_disk(live: LiveMachine, disk_id: str, size_mib: int) -> None:
    """Make a disk larger; never smaller, which would cut what the guest wrote."""
    disk, size = find_disk(live, disk_id), check_disk_size(size_mib)
    if disk.is_efivars:
        raise UnsupportedError("The variables of UEFI have the size that the firmware wants.")
    if size < disk.size_bytes:
        raise UsageError(
            f"{disk_id} of {live.name!r} has {format_bytes(disk.size_bytes)} already; a disk is never made smaller.",
            hint="Give a larger size.",
        )
    _require_pluggable(live, "grow a disk")
    if size == disk.size_bytes:
        return
    if live.vm.is_on:
        await live.qmp.block_resize(disk.layer, size)
    else:
        await grow(live.rooms.layers, disk.layer, size)
    disks = tuple(d.changed(size_bytes=size) if d.id == disk_id else d for d in live.vm.machine.disks)
    await live.change(machine=live.vm.machine.changed(disks=disks))


async def remove_disk(live: LiveMachine, disk_id: str) -> None:
    """Take a disk away while the VM is off; its layers go when nobody else uses them."""
    disk = find_disk(live, disk_id)
    next_state(live.vm.state, Operation.RECONFIGURE, name=live.name)
    if disk.is_efivars:
        raise ConflictError("A UEFI machine needs its variables.", hint="Create the VM with --firmware bios instead.")
    disks = tuple(other for other in live.vm.machine.disks if other.id != disk_id)
    await live.change(machine=live.vm.machine.changed(disks=disks))


async def screenshot(live: LiveMachine) -> bytes:
    """The display's picture as PNG."""
    if live.vm.machine.display is Display.NONE:
        raise UnsupportedError(f"{live.name!r} has no display.", hint="Create it with --display vga.")
    return await live.qmp.screendump()
