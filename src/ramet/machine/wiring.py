"""From a VM's record to a QEMU that can be started: its taps, its disks' chains, its launch plan."""

from __future__ import annotations

import asyncio
import os

from ramet.errors import NotFoundError
from ramet.hypervisor.arguments.machine import TCG_BUFFER_MIB
from ramet.hypervisor.blocknodes import DiskChain, LayerFile
from ramet.hypervisor.plan import LaunchPlan, NicBackend, build_plan
from ramet.machine.live import LiveMachine
from ramet.machine.rooms import Rooms
from ramet.model.machine import Disk, Nic
from ramet.network.taps import OpenTap


def disk_chain(rooms: Rooms, disk: Disk) -> DiskChain:
    """The files of a disk, topmost first; only that one is written to. DamagedError when a layer is missing."""
    layers = rooms.layers.chain(disk.layer)
    return DiskChain(
        disk=disk,
        layers=tuple(LayerFile(layer.id, rooms.layers.path(layer.id), n == 0) for n, layer in enumerate(layers)),
    )


async def attach_nic(live: LiveMachine, nic: Nic, tap_name: str) -> None:
    """Put a tap where the NIC's record says: a port group when it is connected to one, else nowhere.

    A clone without the identity that it was to have is on no network, whatever its NICs say.
    """
    network = nic.network if nic.connected and not live.vm.identity.holds_links_down else None
    if network is not None and live.rooms.book.network(network) is None:
        raise NotFoundError(
            f"There is no port group {network!r}.", hint="See 'ramet network ls', or make it with 'create'."
        )
    await live.rooms.networks.attach(tap_name, network, nic)


async def wire(live: LiveMachine, *, attach: bool, forked: bool, incoming: bool) -> LaunchPlan:
    """Open all that the VM's QEMU is born with, and write its command line.

    Taps are put on their port groups if `attach`. The caller owns the plan; on failure nothing stays open.
    """
    if live.accelerator is None or not forked:
        live.accelerator = await live.rooms.acceleration.decide(live.vm.machine.accelerator)
    taps = await _open_taps(live, attach=attach)
    live.taps = {nic_id: tap.name for nic_id, tap in taps.items()}
    return await asyncio.to_thread(_plan, live, taps, forked, incoming)


async def _open_taps(live: LiveMachine, *, attach: bool) -> dict[str, OpenTap]:
    taps: dict[str, OpenTap] = {}
    try:
        for nic in live.vm.machine.nics:
            if nic.is_user_mode:
                continue
            taps[nic.id] = await live.rooms.networks.open_tap(live.id, nic.index)
            if attach:
                await attach_nic(live, nic, taps[nic.id].name)
    except BaseException:
        for tap in taps.values():
            tap.close()
        raise
    return taps


def _check_cdroms(live: LiveMachine) -> None:
    for path in live.vm.machine.cdroms:
        if not os.access(path, os.R_OK):
            raise NotFoundError(f"The CD image {path} of {live.name!r} is gone.", hint="Put it back where it was.")


def _plan(live: LiveMachine, taps: dict[str, OpenTap], forked: bool, incoming: bool) -> LaunchPlan:
    rooms, machine = live.rooms, live.vm.machine
    user, log_dir = rooms.user, rooms.paths.vm(live.id)
    try:
        _check_cdroms(live)
        chains = [disk_chain(rooms, disk) for disk in machine.disks]
        log_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        log_dir.chmod(0o711)
        live.run_dir.create(user.uid if user else None, user.gid if user else None)
    except BaseException:
        for tap in taps.values():
            tap.close()
        raise
    backends = [NicBackend(nic.id, taps[nic.id].fd if nic.id in taps else None) for nic in machine.nics]
    return build_plan(
        machine,
        rooms.qemu,
        live.require_accelerator(),
        live.run_dir,
        log_dir,
        chains,
        backends,
        rooms.native,
        forked=forked,
        generation=live.vm.generation,
        incoming="defer" if incoming else None,
        paused=True,
        buffer_mib=rooms.limits.clone_buffer_mib if forked else TCG_BUFFER_MIB,
    )
