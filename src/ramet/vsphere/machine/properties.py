"""The properties of VirtualMachine. What lists read has a path of its own: cheaper than the whole."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ramet.vsphere import ids
from ramet.vsphere.core.objects import prop
from ramet.vsphere.inventory.entity import Entity
from ramet.vsphere.inventory.shape import made
from ramet.vsphere.machine import config, devices, guest, layout, runtime
from ramet.vsphere.machine.guest_os import configured_id, full_name
from ramet.vsphere.machine.view import MachineView
from ramet.vsphere.types import vim

_OF_GUEST = frozenset({"guest", "summary", "guestHeartbeatStatus"})
_OF_DISKS = frozenset({"config", "layout", "layoutEx", "storage", "summary"})
_OF_USAGE = frozenset({"runtime", "summary"})


class MachineProperties(MachineView, Entity):
    """Everything that can be read of a VM."""

    wire = vim.VirtualMachine

    @property
    def name(self) -> str:
        return self.vm.name

    @property
    def parent_moid(self) -> str:
        return self.note.folder

    async def prepare(self, roots: Collection[str]) -> None:
        vm = self.vm
        if not _OF_USAGE.isdisjoint(roots):
            self.usage.sample(vm)
        if not _OF_DISKS.isdisjoint(roots):
            await self.disks.prepare(vm)
        if vm.is_on and not _OF_GUEST.isdisjoint(roots):
            await self.guests.prepare(vm)

    @prop("overallStatus")
    @prop("summary.overallStatus")
    def get_overall_status(self) -> str:
        return "yellow" if self.vm.pause_reason else "green"

    @prop("capability")
    def get_capability(self) -> Any:
        return config.capability()

    # -- config ----------------------------------------------------------------------------------------------------

    @prop("config", partial="what QEMU has: no vApp, encryption, storage profiles, NUMA or latency settings")
    def get_config(self) -> Any:
        return config.config_info(self)

    @prop("config.name")
    @prop("summary.config.name")
    def get_config_name(self) -> str:
        return self.vm.name

    @prop("config.uuid")
    @prop("summary.config.uuid")
    def get_uuid(self) -> str:
        return self.vm.machine.uuid

    @prop("config.instanceUuid")
    @prop("summary.config.instanceUuid")
    def get_instance_uuid(self) -> str:
        return self.instance_uuid

    @prop("config.template")
    @prop("summary.config.template")
    def get_template(self) -> bool:
        return self.note.template

    @prop("config.hardware")
    def get_hardware(self) -> Any:
        return devices.hardware(self)

    @prop("config.hardware.device")
    def get_devices(self) -> list[Any]:
        return devices.devices(self)

    @prop("config.hardware.memoryMB")
    @prop("summary.config.memorySizeMB")
    def get_memory(self) -> int:
        return self.vm.machine.memory_mib

    @prop("config.hardware.numCPU")
    @prop("summary.config.numCpu")
    def get_vcpus(self) -> int:
        return self.vm.machine.vcpus

    @prop("config.files.vmPathName")
    @prop("summary.config.vmPathName")
    def get_path(self) -> str:
        return self.path

    @prop("config.guestId")
    @prop("summary.config.guestId")
    def get_configured_guest(self) -> str:
        return configured_id(self.vm.machine, self.note.guest_id)

    @prop("config.guestFullName")
    @prop("summary.config.guestFullName")
    def get_configured_guest_name(self) -> str:
        return full_name(self.get_configured_guest())

    @prop("config.annotation")
    @prop("summary.config.annotation")
    def get_annotation(self) -> str:
        return self.note.annotation

    @prop("config.version")
    def get_version(self) -> str:
        return config.HARDWARE_VERSION

    @prop("config.changeVersion")
    def get_change_version(self) -> str:
        return config.change_version(self)

    @prop("config.cpuAllocation")
    def get_cpu_allocation(self) -> Any:
        return config.cpu_allocation(self)

    @prop("config.memoryAllocation")
    def get_memory_allocation(self) -> Any:
        return config.memory_allocation(self)

    @prop("resourceConfig", partial="limits alone: there are no reservations, and shares are the usual ones")
    def get_resource_config(self) -> Any:
        return config.resource_config(self)

    # -- runtime ---------------------------------------------------------------------------------------------------

    @prop("runtime")
    @prop("summary.runtime")
    def get_runtime(self) -> Any:
        return runtime.runtime_info(self)

    @prop("runtime.powerState")
    @prop("summary.runtime.powerState")
    def get_power_state(self) -> str:
        return self.power_state

    @prop("runtime.connectionState")
    @prop("summary.runtime.connectionState")
    def get_connection_state(self) -> str:
        return runtime.connection_state(self)

    @prop("runtime.host")
    @prop("summary.runtime.host")
    def get_host(self) -> Any:
        return runtime.host(self)

    @prop("runtime.bootTime")
    @prop("summary.runtime.bootTime")
    def get_boot_time(self) -> Any:
        return runtime.boot_time(self)

    @prop("runtime.question")
    @prop("summary.runtime.question")
    def get_question(self) -> Any:
        return runtime.question(self)

    @prop("runtime.instantCloneFrozen")
    @prop("summary.runtime.instantCloneFrozen")
    def get_frozen(self) -> bool:
        return self.vm.frozen

    # -- guest -----------------------------------------------------------------------------------------------------

    @prop(
        "guest",
        partial="from the guest agent and the leases of port groups; no file systems, no screen, no routes",
    )
    def get_guest(self) -> Any:
        return guest.guest_info(self)

    @prop("guest.ipAddress")
    @prop("summary.guest.ipAddress")
    def get_ip_address(self) -> str | None:
        return guest.ip_address(self)

    @prop("guest.hostName")
    @prop("summary.guest.hostName")
    def get_host_name(self) -> str | None:
        return guest.host_name(self)

    @prop("guest.toolsRunningStatus")
    @prop("summary.guest.toolsRunningStatus")
    def get_tools_running(self) -> str:
        return guest.running_status(self)

    @prop("guest.toolsStatus")
    @prop("summary.guest.toolsStatus")
    def get_tools_status(self) -> str:
        return guest.tools_status(self)

    @prop("guest.net")
    def get_guest_nics(self) -> list[Any]:
        return guest.nics(self)

    @prop("guest.guestState")
    def get_guest_state(self) -> str:
        return guest.guest_state(self)

    @prop("guest.guestOperationsReady")
    @prop("guest.guestStateChangeSupported")
    def get_guest_ready(self) -> bool:
        return guest.is_ready(self)

    @prop("summary.guest")
    def get_guest_summary(self) -> Any:
        return guest.guest_summary(self)

    @prop("guestHeartbeatStatus")
    def get_heartbeat(self) -> str:
        return runtime.heartbeat(self)

    # -- summary, files --------------------------------------------------------------------------------------------

    @prop("summary")
    def get_summary(self) -> Any:
        return made(
            vim.vm.Summary,
            vm=self.ref,
            runtime=self.get_runtime(),
            guest=self.get_guest_summary(),
            config=self.get_config_summary(),
            storage=self.get_storage_summary(),
            quickStats=self.get_quick_stats(),
            overallStatus=self.get_overall_status(),
            customValue=self.get_custom_values(),
        )

    @prop("summary.config")
    def get_config_summary(self) -> Any:
        machine = self.vm.machine
        return made(
            vim.vm.Summary.ConfigSummary,
            name=self.name,
            template=self.note.template,
            vmPathName=self.path,
            memorySizeMB=machine.memory_mib,
            cpuReservation=0,
            memoryReservation=0,
            numCpu=machine.vcpus,
            numEthernetCards=len(machine.nics),
            numVirtualDisks=len(devices.shown_disks(self.vm)),
            uuid=machine.uuid,
            instanceUuid=self.instance_uuid,
            guestId=self.get_configured_guest(),
            guestFullName=self.get_configured_guest_name(),
            annotation=self.note.annotation,
            installBootRequired=False,
            tpmPresent=False,
            numVmiopBackings=0,
            hwVersion=config.HARDWARE_VERSION,
        )

    @prop("summary.quickStats")
    def get_quick_stats(self) -> Any:
        return runtime.quick_stats(self)

    @prop("summary.storage")
    def get_storage_summary(self) -> Any:
        return layout.storage_summary(self)

    @prop("summary.vm")
    def get_self(self) -> Any:
        return self.ref

    @prop("storage")
    def get_storage(self) -> Any:
        return layout.storage_info(self)

    @prop("layoutEx")
    def get_layout_ex(self) -> Any:
        return layout.layout_ex(self)

    @prop("layout")
    def get_layout(self) -> Any:
        return layout.layout(self)

    # -- where it is -----------------------------------------------------------------------------------------------

    @prop("environmentBrowser")
    def get_environment(self) -> Any:
        return self.world.ref(ids.ENVIRONMENT_BROWSER)

    @prop("resourcePool")
    def get_pool(self) -> Any:
        return None if self.note.template else self.world.ref(ids.RESOURCE_POOL)

    @prop("datastore")
    def get_datastores(self) -> list[Any]:
        return [self.datastore]

    @prop("network")
    def get_networks(self) -> list[Any]:
        names = dict.fromkeys(nic.network for nic in self.vm.machine.nics if nic.network)
        found = (self.world.ref(ids.network_moid(name)) for name in names)
        return [one for one in found if one is not None]
