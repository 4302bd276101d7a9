"""From settings to the rooms of a host: what is found on this machine, and what every VM shares."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ramet.errors import UnsupportedError
from ramet.host.book import HostBook
from ramet.host.inventory import Inventory
from ramet.host.settings import Settings
from ramet.hypervisor import cgroup
from ramet.hypervisor.accelerator import AcceleratorReport, probe
from ramet.hypervisor.fork import install_native, library_problem
from ramet.hypervisor.process import QemuUser, find_user
from ramet.hypervisor.stun_client import StunHelper
from ramet.hypervisor.version import Qemu
from ramet.machine.acceleration import Acceleration
from ramet.machine.paths import StatePaths
from ramet.machine.rooms import Limits, Rooms
from ramet.memory.admission import Admission, Policy
from ramet.model.units import MIB
from ramet.network.manager import Networks
from ramet.storage.layers import LayerStore


async def _probe(qemu: Qemu, inventory: Inventory, paths: StatePaths, user: QemuUser | None) -> AcceleratorReport:
    kernels = [Path(image.kernel) for image in inventory.images.all() if image.kernel]
    return await probe(qemu, kernels[0] if kernels else None, paths.root, user=user)


async def compose(
    settings: Settings,
    paths: StatePaths,
    qemu: Qemu,
    inventory: Inventory,
    book: HostBook,
    stack: contextlib.AsyncExitStack,
) -> Rooms:
    """Start what the rooms need; what must end is put on the stack. UnsupportedError when this host runs no VMs."""
    problem = library_problem()
    if problem is not None:
        raise UnsupportedError(problem, hint="'ramet doctor' says more.")
    user = find_user(settings.qemu_user)
    networks = Networks(paths.root, qemu_uid=user.uid if user else None)
    await networks.start()
    stun = StunHelper(log_path=paths.root / "stun.log")
    await stun.start()
    stack.push_async_callback(stun.close)
    return Rooms(
        paths=paths,
        qemu=qemu,
        acceleration=Acceleration(lambda: _probe(qemu, inventory, paths, user)),
        native=install_native(paths.native),
        user=user,
        layers=LayerStore(paths.layers, (user.uid, user.gid) if user else None),
        networks=networks,
        stun=stun,
        cgroups=cgroup.detect(),
        book=book,
        admission=Admission(Policy(settings.admission), settings.memory_reserve_mib * MIB),
        limits=Limits(
            qmp_s=settings.qmp_timeout_s,
            start_s=settings.start_timeout_s,
            stun_bound_ms=settings.stun_bound_ms,
            chain_bound=settings.chain_bound,
            parallel_forks=settings.parallel_forks,
            zygotes=settings.zygotes,
            clone_buffer_mib=settings.clone_buffer_mib,
        ),
    )
