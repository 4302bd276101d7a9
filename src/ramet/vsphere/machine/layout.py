"""The files of a VM, and how much they take: FileLayoutEx, FileLayout, StorageInfo.

The layers of a disk stand as its chain, the oldest first. What lies below the topmost layer belongs to the image, or
to the moment that clones have in common: it counts as nobody's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.model.machine import VmState
from ramet.vsphere import ids
from ramet.vsphere.inventory.shape import made, utc
from ramet.vsphere.machine.devices import layer_file, shown_disks
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.machine.view import MachineView

Layout = vim.vm.FileLayoutEx


def layout_ex(mo: MachineView) -> Any:
    files = [
        _file(0, mo.path, "config", 0),
        _file(1, f"{mo.folder}/qemu.log", "log", 0),
        _file(2, f"{mo.folder}/console.log", "log", 0),
    ]
    if mo.vm.state is VmState.SUSPENDED:
        files.append(_file(len(files), f"{mo.folder}/suspended.state", "suspend", 0))
    disks = []
    for disk in mo.vm.machine.disks:
        units = []
        for layer in reversed(mo.disks.chain(disk.layer)):
            kind = "nvram" if disk.is_efivars else "diskExtent"
            own = layer.bytes_on_disk if layer.id == disk.layer else 0
            files.append(_file(len(files), layer_file(layer.id), kind, layer.bytes_on_disk, own))
            units.append(made(Layout.DiskUnit, fileKey=[len(files) - 1]))
        if not disk.is_efivars:
            disks.append(made(Layout.DiskLayout, key=ids.disk_key(disk), chain=units))
    return made(Layout, file=files, disk=disks, snapshot=[], timestamp=utc(mo.disks.changed_at(mo.vm)))


def _file(key: int, name: str, kind: str, size: int, own: int | None = None) -> Any:
    return made(
        Layout.FileInfo,
        key=key,
        name=name,
        type=kind,
        size=size,
        uniqueSize=size if own is None else own,
        accessible=True,
    )


def layout(mo: MachineView) -> Any:
    """The older form of the same."""
    disks = []
    for disk in shown_disks(mo.vm):
        chain = [layer.id for layer in mo.disks.chain(disk.layer)] or [disk.layer]
        names = [layer_file(one) for one in chain]
        disks.append(made(vim.vm.FileLayout.DiskLayout, key=ids.disk_key(disk), diskFile=names))
    return made(
        vim.vm.FileLayout,
        configFile=[f"{mo.vm.name}.vmx"],
        logFile=["qemu.log", "console.log"],
        disk=disks,
        snapshot=[],
        swapFile=None,
    )


def usage_bytes(mo: MachineView) -> tuple[int, int, int]:
    """Committed: all layers of its disks; uncommitted: what they may still grow; unshared: its own."""
    committed = uncommitted = unshared = 0
    for disk in mo.vm.machine.disks:
        chain = mo.disks.chain(disk.layer)
        taken = sum(layer.bytes_on_disk for layer in chain)
        committed += taken
        unshared += chain[0].bytes_on_disk if chain else 0
        uncommitted += max(0, disk.size_bytes - taken)
    return committed, uncommitted, unshared


def storage_info(mo: MachineView) -> Any:
    committed, uncommitted, unshared = usage_bytes(mo)
    usage = made(
        vim.vm.StorageInfo.UsageOnDatastore,
        datastore=mo.datastore,
        committed=committed,
        uncommitted=uncommitted,
        unshared=unshared,
    )
    return made(vim.vm.StorageInfo, perDatastoreUsage=[usage], timestamp=utc(mo.disks.changed_at(mo.vm)))


def storage_summary(mo: MachineView) -> Any:
    committed, uncommitted, unshared = usage_bytes(mo)
    return made(
        vim.vm.Summary.StorageSummary,
        committed=committed,
        uncommitted=uncommitted,
        unshared=unshared,
        timestamp=utc(mo.disks.changed_at(mo.vm)),
    )
