"""The state folder, as the datastore that all VMs are on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import operation, prop
from ramet.vsphere.inventory.entity import Entity
from ramet.vsphere.inventory.shape import filled, utc
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.core.world import World

FRESH_S = 2.0
_ENOUGH = 1 << 62


class Datastore(Entity):
    wire = vim.Datastore

    def __init__(self, world: World) -> None:
        super().__init__(world, ids.DATASTORE)
        self._read_at = 0.0
        self._capacity = self._free = 0

    @property
    def name(self) -> str:
        return ids.DATASTORE_NAME

    @property
    def parent_moid(self) -> str:
        return ids.DATASTORE_FOLDER

    @property
    def path(self) -> str:
        return str(self.world.host.settings.state_dir)

    @property
    def url(self) -> str:
        return f"ds://{self.path}/"

    async def prepare(self, roots: Collection[str]) -> None:
        if not {"summary", "info"}.isdisjoint(roots) and time.monotonic() - self._read_at > FRESH_S:
            await self.refresh()

    async def refresh(self) -> None:
        """Ask the file system how much room there is; in a thread, for one over the network may take its time."""
        try:
            status = await asyncio.to_thread(os.statvfs, self.path)
        except OSError:
            return
        self._capacity, self._free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
        self._read_at = time.monotonic()

    @prop("summary")
    def get_summary(self) -> Any:
        return vim.Datastore.Summary(
            datastore=self.ref,
            name=self.name,
            url=self.url,
            capacity=self._capacity,
            freeSpace=self._free,
            accessible=True,
            multipleHostAccess=False,
            type="OTHER",
            maintenanceMode="normal",
        )

    @prop("info")
    def get_info(self) -> Any:
        return vim.host.LocalDatastoreInfo(
            name=self.name,
            url=self.url,
            path=self.path,
            freeSpace=self._free,
            maxFileSize=_ENOUGH,
            maxVirtualDiskCapacity=_ENOUGH,
            maxMemoryFileSize=_ENOUGH,
            timestamp=utc(time.time()),
        )

    @prop("capability")
    def get_capability(self) -> Any:
        return filled(vim.Datastore.Capability, directoryHierarchySupported=True, perFileThinProvisioningSupported=True)

    @prop("host")
    def get_hosts(self) -> list[Any]:
        mount = vim.host.MountInfo(path=self.path, accessMode="readWrite", mounted=True, accessible=True)
        return [vim.Datastore.HostMount(key=host, mountInfo=mount) for host in self.refs(vim.HostSystem)]

    @prop("vm")
    def get_vms(self) -> list[Any]:
        return self.refs(vim.VirtualMachine)

    @operation("RefreshDatastore")
    async def refresh_now(self, call: Call) -> None:
        await self.refresh()

    @operation("RefreshDatastoreStorageInfo")
    async def refresh_storage(self, call: Call) -> None:
        await self.refresh()

    @prop("browser")
    def get_browser(self) -> Any:
        return self.world.ref(ids.DATASTORE_BROWSER)
