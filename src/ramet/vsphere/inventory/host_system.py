"""This host, as a HostSystem."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import ramet
from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation, prop
from ramet.vsphere.inventory.datastore import Datastore
from ramet.vsphere.inventory.entity import Entity
from ramet.vsphere.inventory.host_facts import HostFacts, HostMeter
from ramet.vsphere.inventory.host_hardware import hardware_info, hardware_summary, network_info
from ramet.vsphere.inventory.shape import filled, option, utc
from ramet.vsphere.types import vim, vmodl

VERSION = "8.0.3"
_PORT = 443


class HostSystem(Entity):
    wire = vim.HostSystem

    @property
    def facts(self) -> HostFacts:
        return self.world.part(HostFacts)

    @property
    def meter(self) -> HostMeter:
        return self.world.part(HostMeter)

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def parent_moid(self) -> str:
        return ids.COMPUTE_RESOURCE

    async def prepare(self, roots: Collection[str]) -> None:
        if "summary" in roots:
            self.meter.sample()
        store = self.world.get(ids.DATASTORE)
        if "config" in roots and store is not None:
            await store.prepare({"summary"})

    @prop("runtime.connectionState")
    def get_connection_state(self) -> str:
        return "connected"

    @prop("runtime")
    def get_runtime(self) -> Any:
        return vim.host.RuntimeInfo(
            connectionState="connected",
            powerState="poweredOn",
            standbyMode="none",
            inMaintenanceMode=False,
            inQuarantineMode=False,
            bootTime=utc(self.facts.booted_at),
            healthSystemRuntime=None,
        )

    @prop("hardware")
    def get_hardware(self) -> Any:
        return hardware_info(self.facts)

    @prop("summary")
    def get_summary(self) -> Any:
        load = self.meter.load
        return vim.host.Summary(
            host=self.ref,
            hardware=hardware_summary(self.facts),
            runtime=self.get_runtime(),
            config=vim.host.Summary.ConfigSummary(
                name=self.name,
                port=_PORT,
                product=self.get_product(),
                vmotionEnabled=False,
                faultToleranceEnabled=False,
            ),
            quickStats=vim.host.Summary.QuickStats(
                overallCpuUsage=load.cpu_mhz,
                overallMemoryUsage=load.memory_mb,
                uptime=int(time.time() - self.facts.booted_at),
            ),
            overallStatus="green",
            rebootRequired=False,
            customValue=self.get_custom_values(),
        )

    @prop("config.product")
    def get_product(self) -> Any:
        return vim.AboutInfo(
            name="Ramet",
            fullName=f"Ramet {ramet.__version__} on QEMU {self.world.host.floor.rooms.qemu.version_text}",
            vendor="Ramet",
            version=VERSION,
            build=ramet.__version__,
            localeVersion="INTL",
            localeBuild="000",
            osType="linux-x64",
            productLineId="embeddedEsx",
            apiType="HostAgent",
            apiVersion="8.0.3.0",
        )

    @prop("config.network")
    def get_network_config(self) -> Any:
        return network_info(self.facts, [one.name for one in self.world.host.floor.inventory.networks.all()])

    @prop("config")
    def get_config(self) -> Any:
        return vim.host.ConfigInfo(
            host=self.ref,
            product=self.get_product(),
            network=self.get_network_config(),
            fileSystemVolume=self._volumes(),
            option=[option("Ramet.StateFolder", str(self.world.host.settings.state_dir))],
            adminDisabled=False,
            lockdownMode="lockdownDisabled",
            wakeOnLanCapable=False,
        )

    def _volumes(self) -> Any:
        store = self.world.get(ids.DATASTORE)
        if not isinstance(store, Datastore):
            return None
        summary = store.get_summary()
        volume = vim.host.FileSystemVolume(type=summary.type, name=summary.name, capacity=summary.capacity)
        mount = vim.host.MountInfo(path=store.path, accessMode="readWrite", mounted=True, accessible=True)
        return vim.host.FileSystemVolumeInfo(
            volumeTypeList=[summary.type], mountInfo=[vim.host.FileSystemMountInfo(mountInfo=mount, volume=volume)]
        )

    @prop("capability")
    def get_capability(self) -> Any:
        return filled(
            vim.host.Capability,
            cpuMemoryResourceConfigurationSupported=True,
            deltaDiskBackingsSupported=True,
            screenshotSupported=True,
            vStorageCapable=True,
            nestedHVSupported=True,
            maxSupportedVcpus=64,
        )

    @prop("vm")
    def get_vms(self) -> list[Any]:
        return self.refs(vim.VirtualMachine)

    @prop("datastore")
    def get_datastores(self) -> list[Any]:
        return self.refs(vim.Datastore)

    @prop("network")
    def get_networks(self) -> list[Any]:
        return self.refs(vim.Network)

    @prop("datastoreBrowser")
    def get_browser(self) -> Any:
        return self.world.ref(ids.DATASTORE_BROWSER)

    @prop("licensableResource")
    def get_licensable(self) -> Any:
        packages = vmodl.KeyAnyValue(key="numCpuPackages", value=self.facts.packages)
        return vim.LicenseManager.LicensableResourceInfo(resource=[packages])

    @prop("configManager")
    def get_managers(self) -> Any:
        return vim.host.ConfigManager(advancedOption=self.world.ref(ids.HOST_OPTIONS))

    @operation("RetrieveHardwareUptime")
    async def uptime(self, call: Call) -> int:
        return int(time.time() - self.facts.booted_at)
