"""What VMs can be made of here: EnvironmentBrowser."""

from __future__ import annotations

from typing import Any

from ramet.model.units import MIB
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.inventory.datastore import Datastore
from ramet.vsphere.inventory.host_facts import HostFacts
from ramet.vsphere.inventory.host_system import HostSystem
from ramet.vsphere.inventory.shape import filled
from ramet.vsphere.machine.config import HARDWARE_VERSION, capability
from ramet.vsphere.machine.guest_os import NAMES, family
from ramet.vsphere.types import vim, vmodl

dev = vim.vm.device
MOST_VCPUS, MOST_MIB, LEAST_MIB = 64, 1 << 20, 32
MOST_DISKS, MOST_CARDS = 16, 8
_CARDS = [dev.VirtualVmxnet3, dev.VirtualE1000e]


class EnvironmentBrowser(Mo):
    wire = vim.EnvironmentBrowser

    @prop("datastoreBrowser")
    def get_browser(self) -> Any:
        return self.world.ref(ids.DATASTORE_BROWSER)

    @operation("QueryConfigOptionDescriptor")
    async def descriptors(self, call: Call) -> list[Any]:
        return [
            vim.vm.ConfigOptionDescriptor(
                key=HARDWARE_VERSION,
                description="QEMU's Q35",
                host=[self.world.ref(ids.HOST)],
                createSupported=True,
                defaultConfigOption=True,
                runSupported=True,
                upgradeSupported=False,
            )
        ]

    @operation("QueryConfigOption")
    async def config_option(self, call: Call, key: str | None = None, host: Any = None) -> Any:
        return _config_option(key, ())

    @operation("QueryConfigOptionEx")
    async def config_option_of(self, call: Call, spec: Any = None) -> Any:
        return _config_option(spec.key, spec.guestId) if spec is not None else _config_option(None, ())

    @operation("QueryTargetCapabilities")
    async def target_capabilities(self, call: Call, host: Any = None) -> Any:
        found = self.world.find(ids.HOST)
        return found.get_capability() if isinstance(found, HostSystem) else None

    @operation("QueryConfigTarget")
    async def config_target(self, call: Call, host: Any = None) -> Any:
        facts, store = self.world.part(HostFacts), self.world.find(ids.DATASTORE)
        await store.prepare({"summary"})
        return filled(
            vim.vm.ConfigTarget,
            numCpus=facts.threads,
            numCpuCores=facts.cores,
            numNumaNodes=facts.numa_nodes,
            maxCpusPerHost=facts.threads,
            maxMemMBOptimalPerf=facts.memory_bytes // MIB,
            supportedMaxMemMB=MOST_MIB,
            datastore=[_datastore_info(store)] if isinstance(store, Datastore) else [],
            network=[
                vim.vm.NetworkInfo(name=mo.getters["name"](mo), network=mo.getters["summary"](mo))
                for mo in self.world.of_kind(vim.Network)
            ],
            autoVmotion=False,
        )


def _datastore_info(store: Datastore) -> Any:
    info = store.get_info()
    return vim.vm.DatastoreInfo(
        name=store.name,
        datastore=store.get_summary(),
        capability=store.get_capability(),
        maxFileSize=info.maxFileSize,
        maxVirtualDiskCapacity=info.maxVirtualDiskCapacity,
        mode="readWrite",
    )


# -- what can be chosen ------------------------------------------------------------------------------------------------


def _config_option(key: str | None, guests: Any) -> Any:
    if key not in (None, "", HARDWARE_VERSION):
        raise vmodl.fault.InvalidArgument(
            invalidProperty="key", msg=f"There is one version of hardware here, {HARDWARE_VERSION}."
        )
    wanted = [one for one in NAMES if not guests or one in guests]
    return vim.vm.ConfigOption(
        version=HARDWARE_VERSION,
        description="QEMU's Q35",
        guestOSDescriptor=[_guest(one) for one in wanted],
        guestOSDefaultIndex=0,
        hardwareOptions=_hardware(),
        capabilities=capability(),
        datastore=vim.vm.DatastoreOption(),
        defaultDevice=[],
        supportedMonitorType=["release"],
    )


def _number(least: int, most: int, usual: int, kind: Any = vim.option.IntOption) -> Any:
    return kind(min=least, max=most, defaultValue=usual)


def _hardware() -> Any:
    return vim.vm.VirtualHardwareOption(
        hwVersion=int(HARDWARE_VERSION.removeprefix("vmx-")),
        virtualDeviceOption=[_device(kind) for kind in (*_CARDS, dev.VirtualSerialPort, dev.VirtualVideoCard)],
        deviceListReadonly=False,
        numCPU=list(range(1, MOST_VCPUS + 1)),
        numCoresPerSocket=_number(1, MOST_VCPUS, 1),
        numCpuReadonly=False,
        memoryMB=_number(LEAST_MIB, MOST_MIB, 512, vim.option.LongOption),
        numPCIControllers=_number(1, 1, 1),
        numIDEControllers=_number(2, 2, 2),
        numUSBControllers=_number(0, 0, 0),
        numUSBXHCIControllers=_number(0, 0, 0),
        numSIOControllers=_number(1, 1, 1),
        numPS2Controllers=_number(1, 1, 1),
        resourceConfigOption=vim.ResourceConfigOption(
            cpuAllocationOption=_allocation(MOST_VCPUS * 1000), memoryAllocationOption=_allocation(MOST_MIB * 10)
        ),
    )


def _allocation(most: int) -> Any:
    shares = vim.SharesOption(sharesOption=_number(0, most, 1000), defaultLevel="normal")
    return vim.ResourceAllocationOption(sharesOption=shares)


def _device(kind: Any) -> Any:
    is_card = kind in _CARDS
    return vim.vm.device.VirtualDeviceOption(
        type=kind,
        deprecated=False,
        plugAndPlay=is_card,
        hotRemoveSupported=is_card,
        controllerType=dev.VirtualPCIController,
    )


def _guest(guest_id: str) -> Any:
    return filled(
        vim.vm.GuestOsDescriptor,
        id=guest_id,
        family=family(guest_id),
        fullName=NAMES[guest_id],
        supportedMaxCPUs=MOST_VCPUS,
        numSupportedPhysicalSockets=1,
        numSupportedCoresPerSocket=MOST_VCPUS,
        supportedMinMemMB=LEAST_MIB,
        supportedMaxMemMB=MOST_MIB,
        recommendedMemMB=1024,
        recommendedColorDepth=32,
        supportedDiskControllerList=[dev.ParaVirtualSCSIController],
        recommendedSCSIController=dev.ParaVirtualSCSIController,
        recommendedDiskController=dev.ParaVirtualSCSIController,
        supportedNumDisks=MOST_DISKS,
        recommendedDiskSizeMB=8192,
        recommendedCdromController=dev.VirtualIDEController,
        supportedEthernetCard=_CARDS,
        recommendedEthernetCard=dev.VirtualVmxnet3,
        supportedFirmware=["bios", "efi"],
        recommendedFirmware="bios",
        supportLevel="supported",
        supportedForCreate=True,
        vRAMSizeInKB=_number(16384, 16384, 16384),
        supportsPvscsiControllerForBoot=True,
        supportsHotPlugPCI=True,
    )
