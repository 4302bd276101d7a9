"""What a VM looks like from outside: the record, with what can only be asked of the kernel and the disk now."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from ramet.errors import RametError
from ramet.machine.live import LiveMachine
from ramet.memory.ledger import guest_memory
from ramet.model.machine import Disk
from ramet.model.units import MIB
from ramet.model.views import DiskView, LayerView, MemoryView, NicView, VmView


def vm_view(
    live: LiveMachine,
    *,
    layer_users: Mapping[str, int],
    addresses: Mapping[str, tuple[str, ...]],
    busy_with: str | None,
) -> VmView:
    """Blocking (reads /proc and layer headers): call it in a thread. `addresses` is by MAC."""
    vm, machine = live.vm, live.vm.machine
    return VmView(
        id=vm.id,
        name=machine.name,
        uuid=machine.uuid,
        state=vm.state,
        pause_reason=vm.pause_reason,
        frozen=vm.frozen,
        accelerator=vm.process.accelerator.value if vm.process else None,
        qemu_version=vm.process.qemu_version if vm.process else None,
        pid=vm.process.pid if vm.process else None,
        memory_mib=machine.memory_mib,
        vcpus=machine.vcpus,
        image=machine.image,
        nics=tuple(
            NicView(
                id=nic.id,
                model=nic.model.value,
                mac=nic.mac,
                network=nic.network,
                connected=nic.connected,
                addresses=addresses.get(nic.mac, ()) if nic.connected else (),
            )
            for nic in machine.nics
        ),
        disks=tuple(_disk_view(live, disk, layer_users) for disk in machine.disks),
        lineage=vm.lineage,
        memory=memory_view(live),
        stuns=vm.stuns,
        machine=machine,
        created_at=vm.created_at,
        started_at=vm.started_at,
        busy_with=busy_with,
        identity=vm.identity,
        expires_at=vm.expires_at,
    )


def memory_view(live: LiveMachine) -> MemoryView | None:
    """None for a VM that is off, or whose process has just ended."""
    if live.vm.process is None:
        return None
    with contextlib.suppress(RametError, OSError):
        return guest_memory(live.vm.process.pid, live.vm.machine.memory_mib * MIB)
    return None


def _disk_view(live: LiveMachine, disk: Disk, users: Mapping[str, int]) -> DiskView:
    try:
        layers = live.rooms.layers.chain(disk.layer)
    except RametError:
        return DiskView(id=disk.id, size_bytes=disk.size_bytes, chain=())
    return DiskView(
        id=disk.id,
        size_bytes=disk.size_bytes,
        chain=tuple(
            LayerView(
                id=layer.id,
                bytes_on_disk=layer.bytes_on_disk,
                writable=index == 0,
                shared_by=users.get(layer.id, 1),
            )
            for index, layer in enumerate(layers)
        ),
    )
