"""A QEMU that is only described, and machines, chains and plans over files in a temporary directory."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ramet.hypervisor.blocknodes import DiskChain, LayerFile
from ramet.hypervisor.fork import NativePaths
from ramet.hypervisor.plan import LaunchPlan, NicBackend, RunDir, build_plan
from ramet.hypervisor.version import Qemu
from ramet.model.machine import Accelerator, Disk, Machine

NATIVE = NativePaths(Path("/lib/vmfork.so"), Path("/lib/holder"))

QEMU = Qemu(
    binary=Path("/usr/bin/qemu-system-x86_64"),
    version=(7, 2, 22),
    build_id="0123abcd",
    machine_types=("pc-q35-7.2", "pc-q35-7.1"),
    devices=frozenset({"virtio-net-pci", "e1000e", "vmxnet3", "VGA", "virtio-vga", "vmgenid"}),
    is_dynamic=True,
    netdevs=frozenset({"user", "tap"}),
    migration_properties=frozenset({"announce-rounds", "x-max-bandwidth", "x-events"}),
    firmware_code=Path("/dev/null"),
    firmware_vars=Path("/dev/null"),
)


def open_fds() -> dict[int, str]:
    """The descriptors of this process, and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def chain(directory: Path, disk: Disk, *layer_ids: str) -> DiskChain:
    """A chain of empty files; the topmost layer, which is the disk's, is writable."""
    layers = []
    for layer_id in (disk.layer, *layer_ids):
        path = directory / f"{layer_id}.qcow2"
        path.touch()
        layers.append(LayerFile(layer_id, path, writable=layer_id == disk.layer))
    return DiskChain(disk, tuple(layers))


def chains_for(directory: Path, machine: Machine) -> list[DiskChain]:
    """Every disk over a base of its own."""
    return [chain(directory, disk, f"{disk.layer}-base") for disk in machine.disks]


def make_plan(
    directory: Path,
    machine: Machine,
    *,
    forked: bool = False,
    chains: Sequence[DiskChain] | None = None,
    taps: bool = True,
    **options: Any,
) -> LaunchPlan:
    """A plan whose taps are mere sockets. The caller closes it."""
    run_dir = RunDir(directory / ("f" if forked else "r"))
    run_dir.create()
    backends = [
        NicBackend(nic.id, socket.socket().detach() if taps and not nic.is_user_mode else None) for nic in machine.nics
    ]
    return build_plan(
        machine,
        options.pop("qemu", QEMU),
        options.pop("accelerator", Accelerator.TCG),
        run_dir,
        directory,
        chains_for(directory, machine) if chains is None else chains,
        backends,
        options.pop("native", NATIVE),
        forked=forked,
        **options,
    )


def options_of(plan: LaunchPlan, name: str) -> list[str]:
    """The values of every occurrence of one option."""
    return [value for option, value in zip(plan.argv, plan.argv[1:], strict=False) if option == name]


def option_of(plan: LaunchPlan, name: str) -> str:
    (value,) = options_of(plan, name)
    return value


def json_options(plan: LaunchPlan, name: str) -> list[dict[str, Any]]:
    return [json.loads(value) for value in options_of(plan, name)]


def with_version(*version: int) -> Qemu:
    major, minor, micro = version
    return dataclasses.replace(QEMU, version=(major, minor, micro))
