"""From a VM's record to a QEMU that can be started: its taps, its disks' chains, its launch plan."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from ramet.errors import NotFoundError
from ramet.hypervisor.plan import DiskChain, LaunchPlan, LayerFile, NicBackend, build_plan
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


@dataclass
class Wiring:
    """Open taps of a VM that is being started; closed here once QEMU has its own copies."""

    taps: dict[str, OpenTap] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        return {nic_id: tap.name for nic_id, tap in self.taps.items()}

    def backends(self, nics: tuple[Nic, ...]) -> tuple[NicBackend, ...]:
        return tuple(NicBackend(nic.id, self.taps[nic.id].fd if nic.id in self.taps else None) for nic in nics)

    def close(self) -> None:
        for tap in self.taps.values():
            tap.close()


@contextlib.asynccontextmanager
async def wired(live: LiveMachine, *, attach: bool) -> AsyncIterator[Wiring]:
    """Taps for every NIC that needs one, on their port groups if `attach`. They vanish unless QEMU took them over."""
    wiring = Wiring()
    try:
        for index, nic in enumerate(live.vm.machine.nics):
            if not nic.is_user_mode:
                wiring.taps[nic.id] = await live.rooms.networks.open_tap(live.id, index)
                if attach:
                    await attach_nic(live, nic, wiring.taps[nic.id].name)
        yield wiring
    finally:
        wiring.close()


async def attach_nic(live: LiveMachine, nic: Nic, tap_name: str) -> None:
    """Put a tap where the NIC's record says: a port group when it is connected to one, else nowhere."""
    network = nic.network if nic.connected else None
    if network is not None and live.rooms.book.network(network) is None:
        raise NotFoundError(
            f"There is no port group {network!r}.", hint="See 'ramet network ls', or make it with 'create'."
        )
    await live.rooms.networks.attach(tap_name, network)


def launch_plan(
    live: LiveMachine,
    wiring: Wiring,
    *,
    forked: bool,
    incoming: bool,
    memory_files: Mapping[str, int] | None = None,
) -> LaunchPlan:
    """Everything QEMU is started with. The caller owns the plan's descriptor table, and closes it."""
    rooms, machine = live.rooms, live.vm.machine
    return build_plan(
        machine,
        qemu=rooms.qemu,
        accelerator=rooms.accelerator,
        run_dir=live.run_dir,
        log_dir=rooms.paths.vm(live.id),
        chains=tuple(disk_chain(rooms, disk) for disk in machine.disks),
        nics=wiring.backends(machine.nics),
        native=rooms.native,
        user=rooms.user,
        forked=forked,
        incoming=incoming,
    )
