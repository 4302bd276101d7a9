"""The compute resource, its pool, and what can be made on it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ramet.model.units import MIB
from ramet.vsphere import ids
from ramet.vsphere.core.objects import prop
from ramet.vsphere.inventory.entity import Entity
from ramet.vsphere.inventory.host_facts import HostFacts, HostMeter
from ramet.vsphere.inventory.operations import PoolOperations
from ramet.vsphere.inventory.shape import utc
from ramet.vsphere.types import vim


class ComputeResource(Entity):
    """Of one host."""

    wire = vim.ComputeResource

    @property
    def facts(self) -> HostFacts:
        return self.world.part(HostFacts)

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def parent_moid(self) -> str:
        return ids.HOST_FOLDER

    @prop("resourcePool")
    def get_pool(self) -> Any:
        return self.world.ref(ids.RESOURCE_POOL)

    @prop("host")
    def get_hosts(self) -> list[Any]:
        return self.refs(vim.HostSystem)

    @prop("datastore")
    def get_datastores(self) -> list[Any]:
        return self.refs(vim.Datastore)

    @prop("network")
    def get_networks(self) -> list[Any]:
        return self.refs(vim.Network)

    @prop("environmentBrowser")
    def get_environment(self) -> Any:
        return self.world.ref(ids.ENVIRONMENT_BROWSER)

    @prop("summary")
    def get_summary(self) -> Any:
        facts = self.facts
        return vim.ComputeResource.Summary(
            totalCpu=facts.capacity_mhz,
            totalMemory=facts.memory_bytes,
            numCpuCores=facts.cores,
            numCpuThreads=facts.threads,
            effectiveCpu=facts.capacity_mhz,
            effectiveMemory=facts.memory_bytes // MIB,
            numHosts=1,
            numEffectiveHosts=1,
            overallStatus="green",
        )

    @prop("configurationEx")
    def get_configuration(self) -> Any:
        return vim.ComputeResource.ConfigInfo(
            vmSwapPlacement="vmDirectory", spbmEnabled=False, defaultHardwareVersionKey="vmx-21"
        )


class ResourcePool(PoolOperations, Entity):
    """All VMs are in the one pool: limits of processors are each VM's own."""

    wire = vim.ResourcePool

    @property
    def facts(self) -> HostFacts:
        return self.world.part(HostFacts)

    @property
    def meter(self) -> HostMeter:
        return self.world.part(HostMeter)

    @property
    def name(self) -> str:
        return "Resources"

    @property
    def parent_moid(self) -> str:
        return ids.COMPUTE_RESOURCE

    async def prepare(self, roots: Collection[str]) -> None:
        if not {"runtime", "summary"}.isdisjoint(roots):
            self.meter.sample()

    @prop("owner")
    def get_owner(self) -> Any:
        return self.world.ref(ids.COMPUTE_RESOURCE)

    @prop("vm")
    def get_vms(self) -> list[Any]:
        return self.refs(vim.VirtualMachine)

    @prop("config")
    def get_config(self) -> Any:
        return vim.ResourceConfigSpec(
            entity=self.ref,
            changeVersion="1",
            lastModified=utc(self.facts.booted_at),
            cpuAllocation=_whole(self.facts.capacity_mhz),
            memoryAllocation=_whole(self.facts.memory_bytes // MIB),
        )

    @prop("runtime")
    def get_runtime(self) -> Any:
        load, facts = self.meter.load, self.facts
        return vim.ResourcePool.RuntimeInfo(
            memory=_usage(load.memory_mb * MIB, facts.memory_bytes),
            cpu=_usage(load.cpu_mhz, facts.capacity_mhz),
            overallStatus="green",
        )

    @prop("summary")
    def get_summary(self) -> Any:
        vms = [vm for vm in self.world.host.floor.inventory.users_vms() if vm.is_on]
        return vim.ResourcePool.Summary(
            name=self.name,
            config=self.get_config(),
            runtime=self.get_runtime(),
            configuredMemoryMB=sum(vm.machine.memory_mib for vm in vms),
        )


def _whole(limit: int) -> Any:
    return vim.ResourceAllocationInfo(
        reservation=limit,
        expandableReservation=False,
        limit=limit,
        shares=vim.SharesInfo(shares=4000, level="normal"),
    )


def _usage(used: int, whole: int) -> Any:
    return vim.ResourcePool.ResourceUsage(
        reservationUsed=0,
        reservationUsedForVm=0,
        unreservedForPool=whole,
        unreservedForVm=whole,
        overallUsage=used,
        maxUsage=whole,
    )
