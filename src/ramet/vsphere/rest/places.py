"""com.vmware.vcenter: host, datacenter, folder, cluster, datastore, network and resource_pool."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.rest.asking import Ask
from ramet.vsphere.rest.place_structs import (
    ClusterFilter,
    ClusterInfo,
    ClusterSummary,
    DatacenterFilter,
    DatacenterInfo,
    DatacenterSummary,
    DatastoreFilter,
    DatastoreInfo,
    DatastoreSummary,
    FolderFilter,
    FolderSummary,
    HostFilter,
    HostSummary,
    NetworkFilter,
    NetworkSummary,
    PoolFilter,
    PoolInfo,
    PoolSummary,
)
from ramet.vsphere.rest.table import Operation
from ramet.vsphere.types import is_a, vim

_CONNECTIONS = {"connected": "CONNECTED", "disconnected": "DISCONNECTED", "notResponding": "NOT_RESPONDING"}
_POWERS = {"poweredOn": "POWERED_ON", "poweredOff": "POWERED_OFF", "standBy": "STANDBY"}
_STORES = {"NFS", "NFS41", "CIFS", "VSAN", "VFFS", "VVOL"}
_FOLDERS = (
    ("VirtualMachine", "VIRTUAL_MACHINE"),
    ("Datacenter", "DATACENTER"),
    ("ComputeResource", "HOST"),
    ("Datastore", "DATASTORE"),
    ("Network", "NETWORK"),
)


async def _listed(
    ask: Ask, kind: Any, *paths: str, ids: Collection[str] | None, names: Collection[str] | None,
    above: tuple[Collection[str] | None, ...] = (),
) -> list[tuple[Mo, dict[str, Any]]]:  # fmt: skip
    """Objects of a kind that match, with their name and further properties, in the order of their names."""
    found = []
    async for mo in ask.each(kind):
        if ids is not None and mo.moid not in ids:
            continue
        if any(one is not None and not ask.is_under(mo, one) for one in above):
            continue
        values = await ask.read(mo, "name", *paths)
        if names is None or values.get("name") in names:
            found.append((mo, values))
    return sorted(found, key=lambda one: one[1].get("name", ""))


async def list_hosts(ask: Ask, filter: HostFilter | None = None) -> list[HostSummary]:
    wanted = filter or HostFilter()
    paths = ("runtime.connectionState", "runtime.powerState", "hardware.systemInfo.uuid")
    above = (wanted.folders, wanted.datacenters, wanted.clusters)
    listed = await _listed(ask, vim.HostSystem, *paths, ids=wanted.hosts, names=wanted.names, above=above)
    found = [_host(mo, values) for mo, values in listed]
    return [
        one
        for one in found
        if (wanted.connection_states is None or one.connection_state in wanted.connection_states)
        and (wanted.host_uuids is None or one.host_uuid in wanted.host_uuids)
        and (wanted.standalone is None or wanted.standalone == _is_alone(ask, one.host))
    ]


def _host(mo: Mo, values: dict[str, Any]) -> HostSummary:
    return HostSummary(
        host=mo.moid,
        name=values["name"],
        connection_state=_CONNECTIONS.get(str(values.get("runtime.connectionState")), "CONNECTED"),
        power_state=_POWERS.get(str(values.get("runtime.powerState"))),
        host_uuid=values.get("hardware.systemInfo.uuid"),
    )


def _is_alone(ask: Ask, host: str) -> bool:
    return not ask.is_under(ask.find(host, vim.HostSystem), _ids(ask, vim.ClusterComputeResource))


def _ids(ask: Ask, kind: Any) -> set[str]:
    return {mo.moid for mo in ask.all_of(kind)}


async def list_datacenters(ask: Ask, filter: DatacenterFilter | None = None) -> list[DatacenterSummary]:
    wanted = filter or DatacenterFilter()
    above = (wanted.folders,)
    listed = await _listed(ask, vim.Datacenter, ids=wanted.datacenters, names=wanted.names, above=above)
    return [DatacenterSummary(datacenter=mo.moid, name=values["name"]) for mo, values in listed]


async def get_datacenter(ask: Ask, datacenter: str) -> DatacenterInfo:
    folders = ("datastoreFolder", "hostFolder", "networkFolder", "vmFolder")
    found = await ask.read(ask.find(datacenter, vim.Datacenter), "name", *folders)
    return DatacenterInfo(
        name=found["name"],
        datastore_folder=found["datastoreFolder"]._moId,
        host_folder=found["hostFolder"]._moId,
        network_folder=found["networkFolder"]._moId,
        vm_folder=found["vmFolder"]._moId,
    )


async def list_folders(ask: Ask, filter: FolderFilter | None = None) -> list[FolderSummary]:
    wanted = filter or FolderFilter()
    above = (wanted.parent_folders, wanted.datacenters)
    listed = await _listed(ask, vim.Folder, "childType", ids=wanted.folders, names=wanted.names, above=above)
    found = [FolderSummary(folder=mo.moid, name=values["name"], type=_holds(values)) for mo, values in listed]
    return [one for one in found if wanted.type is None or one.type == wanted.type]


def _holds(values: dict[str, Any]) -> str:
    kinds = values.get("childType") or ()
    words = {str(getattr(one, "_wsdlName", one)).rpartition(".")[2] for one in kinds}
    return next((name for kind, name in _FOLDERS if kind in words), "VIRTUAL_MACHINE")


async def list_clusters(ask: Ask, filter: ClusterFilter | None = None) -> list[ClusterSummary]:
    wanted = filter or ClusterFilter()
    above = (wanted.folders, wanted.datacenters)
    listed = await _listed(ask, vim.ClusterComputeResource, ids=wanted.clusters, names=wanted.names, above=above)
    return [
        ClusterSummary(cluster=mo.moid, name=values["name"], ha_enabled=False, drs_enabled=False)
        for mo, values in listed
    ]


async def get_cluster(ask: Ask, cluster: str) -> ClusterInfo:
    found = await ask.read(ask.find(cluster, vim.ClusterComputeResource), "name", "resourcePool")
    return ClusterInfo(name=found["name"], resource_pool=found["resourcePool"]._moId)


async def list_datastores(ask: Ask, filter: DatastoreFilter | None = None) -> list[DatastoreSummary]:
    wanted = filter or DatastoreFilter()
    paths = ("summary.type", "summary.freeSpace", "summary.capacity")
    above = (wanted.folders, wanted.datacenters)
    listed = await _listed(ask, vim.Datastore, *paths, ids=wanted.datastores, names=wanted.names, above=above)
    found = [
        DatastoreSummary(
            datastore=mo.moid,
            name=values["name"],
            type=_store(values),
            free_space=values.get("summary.freeSpace"),
            capacity=values.get("summary.capacity"),
        )
        for mo, values in listed
    ]
    return [one for one in found if wanted.types is None or one.type in wanted.types]


def _store(values: dict[str, Any]) -> str:
    said = str(values.get("summary.type") or "VMFS").upper()
    return said if said in _STORES else "VMFS"


async def get_datastore(ask: Ask, datastore: str) -> DatastoreInfo:
    paths = ("summary.type", "summary.accessible", "summary.freeSpace", "summary.multipleHostAccess")
    found = await ask.read(ask.find(datastore, vim.Datastore), "name", *paths)
    return DatastoreInfo(
        name=found["name"],
        type=_store(found),
        accessible=found.get("summary.accessible", True),
        free_space=found.get("summary.freeSpace"),
        multiple_host_access=bool(found.get("summary.multipleHostAccess")),
        thin_provisioning_supported=True,
    )


async def list_networks(ask: Ask, filter: NetworkFilter | None = None) -> list[NetworkSummary]:
    wanted = filter or NetworkFilter()
    above = (wanted.folders, wanted.datacenters)
    listed = await _listed(ask, vim.Network, ids=wanted.networks, names=wanted.names, above=above)
    found = [NetworkSummary(network=mo.moid, name=values["name"], type=_network(mo)) for mo, values in listed]
    return [one for one in found if wanted.types is None or one.type in wanted.types]


def _network(mo: Mo) -> str:
    distributed = vim.dvs.DistributedVirtualPortgroup
    return "DISTRIBUTED_PORTGROUP" if is_a(mo.wire, distributed) else "STANDARD_PORTGROUP"


async def list_pools(ask: Ask, filter: PoolFilter | None = None) -> list[PoolSummary]:
    wanted = filter or PoolFilter()
    above = (wanted.parent_resource_pools, wanted.datacenters, wanted.clusters)
    listed = await _listed(
        ask, vim.ResourcePool, "owner", ids=wanted.resource_pools, names=wanted.names, above=above
    )
    return [
        PoolSummary(resource_pool=mo.moid, name=values["name"])
        for mo, values in listed
        if wanted.hosts is None or await _has_host(ask, values.get("owner"), wanted.hosts)
    ]


async def _has_host(ask: Ask, owner: Any, hosts: Collection[str]) -> bool:
    if owner is None:
        return False
    found = (await ask.read(ask.same(owner), "host")).get("host", ())
    return any(one._moId in hosts for one in found)


async def get_pool(ask: Ask, resource_pool: str) -> PoolInfo:
    found = await ask.read(ask.find(resource_pool, vim.ResourcePool), "name", "resourcePool")
    return PoolInfo(name=found["name"], resource_pools=[one._moId for one in found.get("resourcePool", ())])


_VCENTER = "com.vmware.vcenter"
OPERATIONS = (
    Operation.of(f"{_VCENTER}.host", "list", "GET", "/vcenter/host", list_hosts),
    Operation.of(f"{_VCENTER}.datacenter", "list", "GET", "/vcenter/datacenter", list_datacenters),
    Operation.of(f"{_VCENTER}.datacenter", "get", "GET", "/vcenter/datacenter/{datacenter}", get_datacenter),
    Operation.of(f"{_VCENTER}.folder", "list", "GET", "/vcenter/folder", list_folders),
    Operation.of(f"{_VCENTER}.cluster", "list", "GET", "/vcenter/cluster", list_clusters),
    Operation.of(f"{_VCENTER}.cluster", "get", "GET", "/vcenter/cluster/{cluster}", get_cluster),
    Operation.of(f"{_VCENTER}.datastore", "list", "GET", "/vcenter/datastore", list_datastores),
    Operation.of(f"{_VCENTER}.datastore", "get", "GET", "/vcenter/datastore/{datastore}", get_datastore),
    Operation.of(f"{_VCENTER}.network", "list", "GET", "/vcenter/network", list_networks),
    Operation.of(f"{_VCENTER}.resource_pool", "list", "GET", "/vcenter/resource-pool", list_pools),
    Operation.of(f"{_VCENTER}.resource_pool", "get", "GET", "/vcenter/resource-pool/{resource_pool}", get_pool),
)
