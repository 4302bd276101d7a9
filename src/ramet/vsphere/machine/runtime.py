"""What a VM is doing: RuntimeInfo, and the question that it may have."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ramet.model.machine import Vm, VmState
from ramet.model.units import MIB
from ramet.vsphere import ids
from ramet.vsphere.inventory.shape import made, utc
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.machine.view import MachineView

RETRY, POWER_OFF = "0", "1"
"""Answers to the question of a VM that QEMU has stopped."""


def runtime_info(mo: MachineView) -> Any:
    vm = mo.vm
    row = mo.usage.memory(vm.id)
    return made(
        vim.vm.RuntimeInfo,
        host=host(mo),
        connectionState=connection_state(mo),
        powerState=mo.power_state,
        faultToleranceState="notConfigured",
        toolsInstallerMounted=False,
        bootTime=boot_time(mo),
        suspendInterval=0,
        question=question(mo),
        memoryOverhead=row.overhead_bytes if row is not None else None,
        maxCpuUsage=vm.machine.vcpus * mo.facts.cpu_mhz,
        maxMemoryUsage=vm.machine.memory_mib,
        numMksConnections=0,
        recordReplayState="inactive",
        cleanPowerOff=vm.state is VmState.OFF,
        onlineStandby=False,
        consolidationNeeded=False,
        paused=vm.state is VmState.PAUSED,
        snapshotInBackground=False,
        quiescedForkParent=vm.frozen,
        instantCloneFrozen=vm.frozen,
    )


def host(mo: MachineView) -> Any:
    return mo.world.ref(ids.HOST)


def connection_state(mo: MachineView) -> str:
    return "connected" if mo.is_reachable else "disconnected"


def boot_time(mo: MachineView) -> Any:
    at = mo.vm.started_at
    return utc(at) if at is not None and mo.power_state == "poweredOn" else None


def question(mo: MachineView) -> Any:
    """QEMU has stopped the guest by itself: its owner says how it goes on."""
    vm = mo.vm
    if vm.state is not VmState.PAUSED:
        return None
    return made(
        vim.vm.QuestionInfo,
        id=question_id(vm),
        text=f"The virtual machine was stopped: {vm.pause_reason or 'unknown reason'}. Retry when it is settled.",
        choice=made(
            vim.option.ChoiceOption,
            choiceInfo=[
                made(vim.ElementDescription, key=RETRY, label="Retry", summary="Let the guest go on."),
                made(vim.ElementDescription, key=POWER_OFF, label="Power Off", summary="Cut its power."),
            ],
            defaultIndex=0,
        ),
    )


def question_id(vm: Vm) -> str:
    return f"paused-{vm.id}"


def quick_stats(mo: MachineView) -> Any:
    vm = mo.vm
    row = mo.usage.memory(vm.id) if vm.is_on else None
    stats = made(
        vim.vm.Summary.QuickStats,
        guestHeartbeatStatus=heartbeat(mo),
        overallCpuUsage=mo.usage.cpu_mhz(vm.id) if vm.is_on else 0,
        overallCpuDemand=mo.usage.cpu_mhz(vm.id) if vm.is_on else 0,
        guestMemoryUsage=0,
        hostMemoryUsage=0,
        uptimeSeconds=_uptime_s(mo),
        balloonedMemory=_ballooned_mib(mo),
        compressedMemory=0,
        grantedMemory=vm.machine.memory_mib if vm.is_on else 0,
    )
    if row is not None:
        stats.guestMemoryUsage = row.resident_bytes // MIB
        stats.hostMemoryUsage = row.spent_bytes // MIB
        stats.privateMemory = row.unique_bytes // MIB
        stats.sharedMemory = row.shared_bytes // MIB
        stats.swappedMemory = row.swapped_bytes // MIB
        stats.consumedOverheadMemory = row.overhead_bytes // MIB
    return stats


def heartbeat(mo: MachineView) -> str:
    """The guest's agent is its heart."""
    seen = mo.seen
    return "gray" if not mo.vm.is_on or seen is None or not seen.answers else "green"


def _uptime_s(mo: MachineView) -> int:
    at = mo.vm.started_at
    return max(0, int(time.time() - at)) if at is not None and mo.vm.is_on else 0


def _ballooned_mib(mo: MachineView) -> int:
    """What its owner or the host's guard has the guest do without."""
    live = mo.world.host.floor.machines.get(mo.vm.id)
    machine = mo.vm.machine
    if live is None or not mo.vm.is_on:
        return 0
    target = min(
        machine.memory_target_mib or machine.memory_mib,
        live.squeezed_to // MIB if live.squeezed_to is not None else machine.memory_mib,
    )
    return max(0, machine.memory_mib - target)
