"""com.vmware.vcenter.vm.hardware: version, CPU, memory, network cards and disks."""

from __future__ import annotations

import copy
from typing import Any

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.errors import ApiError
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.rest.vm import vm_of
from ramet.vsphere.rest.vm_facts import cpu_of, devices, disks_of, hardware_of, memory_of, nics_of
from ramet.vsphere.rest.vm_specs import Change, link_of, new_card, with_changes
from ramet.vsphere.rest.vm_structs import (
    Cpu,
    CpuUpdate,
    DiskInfo,
    DiskSummary,
    EthernetCreate,
    EthernetInfo,
    EthernetSummary,
    EthernetUpdate,
    Hardware,
    Memory,
    MemoryUpdate,
)
from ramet.vsphere.types import vim


async def _config(ask: Ask, vm: str) -> tuple[Mo, Any]:
    mo = vm_of(ask, vm)
    return mo, (await ask.read(mo, "config"))["config"]


async def _reconfigure(ask: Ask, mo: Mo, **fields: Any) -> None:
    await ask.do(mo, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(**fields))


async def get_hardware(ask: Ask, vm: str) -> Hardware:
    return hardware_of((await _config(ask, vm))[1])


async def get_cpu(ask: Ask, vm: str) -> Cpu:
    return cpu_of((await _config(ask, vm))[1])


async def update_cpu(ask: Ask, vm: str, spec: CpuUpdate) -> None:
    await _reconfigure(
        ask, vm_of(ask, vm), numCPUs=spec.count, numCoresPerSocket=spec.cores_per_socket,
        cpuHotAddEnabled=spec.hot_add_enabled, cpuHotRemoveEnabled=spec.hot_remove_enabled,
    )  # fmt: skip


async def get_memory(ask: Ask, vm: str) -> Memory:
    return memory_of((await _config(ask, vm))[1])


async def update_memory(ask: Ask, vm: str, spec: MemoryUpdate) -> None:
    await _reconfigure(ask, vm_of(ask, vm), memoryMB=spec.size_MiB, memoryHotAddEnabled=spec.hot_add_enabled)


async def list_disks(ask: Ask, vm: str) -> list[DiskSummary]:
    return [DiskSummary(disk=key) for key in disks_of((await _config(ask, vm))[1])]


async def get_disk(ask: Ask, vm: str, disk: str) -> DiskInfo:
    found = disks_of((await _config(ask, vm))[1]).get(disk)
    if found is None:
        raise ApiError("not_found", f"The virtual machine has no disk {disk!r}.")
    return found


async def list_nics(ask: Ask, vm: str) -> list[EthernetSummary]:
    return [EthernetSummary(nic=key) for key in nics_of((await _config(ask, vm))[1])]


async def get_nic(ask: Ask, vm: str, nic: str) -> EthernetInfo:
    found = nics_of((await _config(ask, vm))[1]).get(nic)
    if found is None:
        raise _no_card(nic)
    return found


async def create_nic(ask: Ask, vm: str, spec: EthernetCreate) -> str:
    mo, before = await _config(ask, vm)
    await _reconfigure(ask, mo, deviceChange=[new_card(ask, spec, -1)])
    after = nics_of((await _config(ask, vm))[1])
    made = [key for key in after if key not in nics_of(before)]
    if not made:
        raise ApiError("error", "The card was added, and is not there.")
    return made[-1]


async def update_nic(ask: Ask, vm: str, nic: str, spec: EthernetUpdate) -> None:
    mo, card = await _card(ask, vm, nic)
    await _edit(ask, mo, with_changes(ask, card, spec))


async def delete_nic(ask: Ask, vm: str, nic: str) -> None:
    mo, card = await _card(ask, vm, nic)
    await _reconfigure(ask, mo, deviceChange=[Change(operation="remove", device=card)])


async def connect_nic(ask: Ask, vm: str, nic: str) -> None:
    await _link(ask, vm, nic, True)


async def disconnect_nic(ask: Ask, vm: str, nic: str) -> None:
    await _link(ask, vm, nic, False)


async def _link(ask: Ask, vm: str, nic: str, connected: bool) -> None:
    mo, card = await _card(ask, vm, nic)
    if card.connectable is not None and card.connectable.connected == connected:
        said = "connected" if connected else "disconnected"
        raise ApiError("already_in_desired_state", f"The network card {nic} is already {said}.")
    changed = copy.copy(card)
    changed.connectable = copy.copy(card.connectable) or link_of(True, True)
    changed.connectable.connected = connected
    await _edit(ask, mo, changed)


async def _edit(ask: Ask, mo: Mo, card: Any) -> None:
    await _reconfigure(ask, mo, deviceChange=[Change(operation="edit", device=card)])


async def _card(ask: Ask, vm: str, nic: str) -> tuple[Mo, Any]:
    mo, config = await _config(ask, vm)
    card = devices(config, vim.vm.device.VirtualEthernetCard).get(nic)
    if card is None:
        raise _no_card(nic)
    return mo, card


def _no_card(nic: str) -> ApiError:
    return ApiError("not_found", f"The virtual machine has no network card {nic!r}.")


_HARDWARE = "com.vmware.vcenter.vm.hardware"
_AT, _NIC = "/vcenter/vm/{vm}/hardware", "/vcenter/vm/{vm}/hardware/ethernet"
OPERATIONS = (
    Operation.of(_HARDWARE, "get", "GET", _AT, get_hardware),
    Operation.of(f"{_HARDWARE}.cpu", "get", "GET", f"{_AT}/cpu", get_cpu),
    Operation.of(f"{_HARDWARE}.cpu", "update", "PATCH", f"{_AT}/cpu", update_cpu),
    Operation.of(f"{_HARDWARE}.memory", "get", "GET", f"{_AT}/memory", get_memory),
    Operation.of(f"{_HARDWARE}.memory", "update", "PATCH", f"{_AT}/memory", update_memory),
    Operation.of(f"{_HARDWARE}.disk", "list", "GET", f"{_AT}/disk", list_disks),
    Operation.of(f"{_HARDWARE}.disk", "get", "GET", f"{_AT}/disk/{{disk}}", get_disk),
    Operation.of(f"{_HARDWARE}.ethernet", "list", "GET", _NIC, list_nics),
    Operation.of(f"{_HARDWARE}.ethernet", "get", "GET", f"{_NIC}/{{nic}}", get_nic),
    Operation.of(f"{_HARDWARE}.ethernet", "create", "POST", _NIC, create_nic),
    Operation.of(f"{_HARDWARE}.ethernet", "update", "PATCH", f"{_NIC}/{{nic}}", update_nic),
    Operation.of(f"{_HARDWARE}.ethernet", "delete", "DELETE", f"{_NIC}/{{nic}}", delete_nic),
    Operation.of(f"{_HARDWARE}.ethernet", "connect", "POST", f"{_NIC}/{{nic}}?action=connect", connect_nic),
    Operation.of(f"{_HARDWARE}.ethernet", "disconnect", "POST", f"{_NIC}/{{nic}}?action=disconnect", disconnect_nic),
)
