"""Structures of the places in which virtual machines are: hosts, folders, networks and their kin."""

from __future__ import annotations

from ramet.vsphere.rest.structs import Struct

_VCENTER = "com.vmware.vcenter"


class Filter(Struct):
    """Every list can be filtered by these; `types` of places have words of their own."""

    names: list[str] | None = None
    folders: list[str] | None = None
    datacenters: list[str] | None = None


class HostFilter(Filter):
    vapi = f"{_VCENTER}.host.filter_spec"
    hosts: list[str] | None = None
    standalone: bool | None = None
    clusters: list[str] | None = None
    connection_states: list[str] | None = None
    host_uuids: list[str] | None = None


class HostSummary(Struct):
    vapi = f"{_VCENTER}.host.summary"
    host: str
    name: str
    connection_state: str
    power_state: str | None = None
    host_uuid: str | None = None


class DatacenterFilter(Struct):
    vapi = f"{_VCENTER}.datacenter.filter_spec"
    datacenters: list[str] | None = None
    names: list[str] | None = None
    folders: list[str] | None = None


class DatacenterSummary(Struct):
    vapi = f"{_VCENTER}.datacenter.summary"
    datacenter: str
    name: str


class DatacenterInfo(Struct):
    vapi = f"{_VCENTER}.datacenter.info"
    name: str
    datastore_folder: str
    host_folder: str
    network_folder: str
    vm_folder: str


class FolderFilter(Struct):
    vapi = f"{_VCENTER}.folder.filter_spec"
    folders: list[str] | None = None
    names: list[str] | None = None
    type: str | None = None
    parent_folders: list[str] | None = None
    datacenters: list[str] | None = None


class FolderSummary(Struct):
    vapi = f"{_VCENTER}.folder.summary"
    folder: str
    name: str
    type: str


class ClusterFilter(Filter):
    vapi = f"{_VCENTER}.cluster.filter_spec"
    clusters: list[str] | None = None


class ClusterSummary(Struct):
    vapi = f"{_VCENTER}.cluster.summary"
    cluster: str
    name: str
    ha_enabled: bool
    drs_enabled: bool


class ClusterInfo(Struct):
    vapi = f"{_VCENTER}.cluster.info"
    name: str
    resource_pool: str


class DatastoreFilter(Filter):
    vapi = f"{_VCENTER}.datastore.filter_spec"
    datastores: list[str] | None = None
    types: list[str] | None = None


class DatastoreSummary(Struct):
    vapi = f"{_VCENTER}.datastore.summary"
    datastore: str
    name: str
    type: str
    free_space: int | None = None
    capacity: int | None = None


class DatastoreInfo(Struct):
    vapi = f"{_VCENTER}.datastore.info"
    name: str
    type: str
    accessible: bool
    free_space: int | None = None
    multiple_host_access: bool
    thin_provisioning_supported: bool


class NetworkFilter(Filter):
    vapi = f"{_VCENTER}.network.filter_spec"
    networks: list[str] | None = None
    types: list[str] | None = None


class NetworkSummary(Struct):
    vapi = f"{_VCENTER}.network.summary"
    network: str
    name: str
    type: str


class PoolFilter(Struct):
    vapi = f"{_VCENTER}.resource_pool.filter_spec"
    resource_pools: list[str] | None = None
    names: list[str] | None = None
    parent_resource_pools: list[str] | None = None
    datacenters: list[str] | None = None
    hosts: list[str] | None = None
    clusters: list[str] | None = None


class PoolSummary(Struct):
    vapi = f"{_VCENTER}.resource_pool.summary"
    resource_pool: str
    name: str


class PoolInfo(Struct):
    vapi = f"{_VCENTER}.resource_pool.info"
    name: str
    resource_pools: list[str]
