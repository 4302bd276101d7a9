"""How a VM is configured: ConfigInfo, and what is said of its resources."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from ramet.model.machine import Firmware
from ramet.vsphere import ids
from ramet.vsphere.inventory.shape import filled, made, option, utc
from ramet.vsphere.machine.devices import hardware
from ramet.vsphere.machine.guest_os import configured_id, full_name
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.machine.view import MachineView

HARDWARE_VERSION = "vmx-21"
_SHARES_A_VCPU, _SHARES_A_MIB = 1000, 10
_UNMANAGED_TOOLS = 2147483647
"""The original's number for tools that the guest's own distribution looks after."""


def config_info(mo: MachineView) -> Any:
    vm, note, machine = mo.vm, mo.note, mo.vm.machine
    guest_id = configured_id(machine, note.guest_id)
    return made(
        vim.vm.ConfigInfo,
        changeVersion=change_version(mo),
        modified=utc(vm.created_at),
        createDate=utc(vm.created_at),
        name=vm.name,
        guestFullName=full_name(guest_id),
        guestId=guest_id,
        alternateGuestName="",
        version=HARDWARE_VERSION,
        uuid=machine.uuid,
        instanceUuid=mo.instance_uuid,
        template=note.template,
        annotation=note.annotation,
        files=made(
            vim.vm.FileInfo,
            vmPathName=mo.path,
            snapshotDirectory=mo.folder,
            suspendDirectory=mo.folder,
            logDirectory=mo.folder,
        ),
        tools=_tools(),
        flags=_flags(),
        defaultPowerOps=_power_operations(),
        rebootPowerOff=False,
        hardware=hardware(mo),
        cpuAllocation=cpu_allocation(mo),
        memoryAllocation=memory_allocation(mo),
        latencySensitivity=made(vim.LatencySensitivity, level="normal"),
        memoryHotAddEnabled=False,
        cpuHotAddEnabled=False,
        cpuHotRemoveEnabled=False,
        extraConfig=[option(key, value) for key, value in sorted(machine.extra_config.items())],
        datastoreUrl=[made(vim.vm.ConfigInfo.DatastoreUrlPair, name=ids.DATASTORE_NAME, url=_url(mo))],
        swapPlacement="inherit",
        bootOptions=_boot(machine.firmware),
        firmware="efi" if machine.firmware is Firmware.UEFI else "bios",
        maxMksConnections=1,
        guestAutoLockEnabled=False,
        memoryReservationLockedToMax=False,
        nestedHVEnabled=False,
        vPMCEnabled=False,
        vAssertsEnabled=False,
        changeTrackingEnabled=False,
        messageBusTunnelEnabled=False,
        migrateEncryption="disabled",
    )


def change_version(mo: MachineView) -> str:
    """Another one after each change of the configuration."""
    return f"{zlib.crc32(repr((mo.vm.machine, mo.note)).encode()):08x}"


def _url(mo: MachineView) -> str:
    return f"ds://{mo.world.host.settings.state_dir}/"


def _tools() -> Any:
    return made(
        vim.vm.ToolsConfigInfo,
        toolsVersion=_UNMANAGED_TOOLS,
        toolsInstallType="guestToolsTypeOpenVMTools",
        afterPowerOn=False,
        afterResume=False,
        beforeGuestStandby=False,
        beforeGuestShutdown=False,
        beforeGuestReboot=False,
        toolsUpgradePolicy="manual",
        syncTimeWithHost=False,
    )


def _flags() -> Any:
    return made(
        vim.vm.FlagInfo,
        disableAcceleration=False,
        enableLogging=True,
        useToe=False,
        runWithDebugInfo=False,
        monitorType="release",
        htSharing="any",
        snapshotDisabled=True,
        snapshotLocked=False,
        diskUuidEnabled=False,
        virtualMmuUsage="automatic",
        virtualExecUsage="hvAuto",
        snapshotPowerOffBehavior="powerOff",
        recordReplayEnabled=False,
    )


def _power_operations() -> Any:
    return made(
        vim.vm.DefaultPowerOpInfo,
        powerOffType="soft",
        suspendType="hard",
        resetType="soft",
        defaultPowerOffType="soft",
        defaultSuspendType="hard",
        defaultResetType="soft",
        standbyAction="checkpoint",
    )


def _boot(firmware: Firmware) -> Any:
    return made(
        vim.vm.BootOptions,
        bootDelay=0,
        enterBIOSSetup=False,
        efiSecureBootEnabled=False,
        bootRetryEnabled=False,
        bootRetryDelay=10000,
        networkBootProtocol="ipv4",
    )


# -- resources ---------------------------------------------------------------------------------------------------------


def cpu_allocation(mo: MachineView) -> Any:
    """Its limit is in MHz here, and in parts of a processor in the record."""
    machine = mo.vm.machine
    percent = machine.cpu_limit_percent
    return made(
        vim.ResourceAllocationInfo,
        reservation=0,
        expandableReservation=False,
        limit=-1 if percent is None else percent * mo.facts.cpu_mhz // 100,
        shares=made(vim.SharesInfo, shares=_SHARES_A_VCPU * machine.vcpus, level="normal"),
    )


def memory_allocation(mo: MachineView) -> Any:
    """The balloon's target stands as the limit."""
    machine = mo.vm.machine
    return made(
        vim.ResourceAllocationInfo,
        reservation=0,
        expandableReservation=False,
        limit=-1 if machine.memory_target_mib is None else machine.memory_target_mib,
        shares=made(vim.SharesInfo, shares=_SHARES_A_MIB * machine.memory_mib, level="normal"),
    )


def resource_config(mo: MachineView) -> Any:
    return made(
        vim.ResourceConfigSpec,
        entity=mo.ref,
        changeVersion=change_version(mo),
        lastModified=utc(mo.vm.created_at),
        cpuAllocation=cpu_allocation(mo),
        memoryAllocation=memory_allocation(mo),
    )


def capability() -> Any:
    """Of every VM here. There are no snapshots: a clone is how a moment is kept."""
    return filled(
        vim.vm.Capability,
        bootOptionsSupported=True,
        multipleCoresPerSocketSupported=True,
        s1AcpiManagementSupported=True,
        toolsAutoUpdateSupported=False,
        nestedHVSupported=False,
    )
