"""SearchIndex: inventory objects by what people and programs know of them.

Everything is looked up in what is in memory at the moment; where a search goes through all VMs it lets others run
between them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from ramet.vsphere.collector.reading import prepare_all
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation
from ramet.vsphere.core.pacing import Pace
from ramet.vsphere.core.properties import value_at
from ramet.vsphere.core.world import World
from ramet.vsphere.types import vim
from ramet.vsphere.views import tree
from ramet.vsphere.views.views import ROOT_FOLDER

__all__ = ["SearchIndex", "objects"]

Test = Callable[[Mo], bool]


class SearchIndex(Mo):
    wire = vim.SearchIndex

    # -- by what identifies it -----------------------------------------------------------------------------------------

    @operation("FindByUuid")
    async def find_by_uuid(
        self, call: Call, uuid: str, vmSearch: bool, datacenter: Any = None, instanceUuid: bool | None = None
    ) -> Any:
        return _first(await self._by_uuid(call, uuid, vmSearch, datacenter, instanceUuid))

    @operation("FindAllByUuid")
    async def find_all_by_uuid(
        self, call: Call, uuid: str, vmSearch: bool, datacenter: Any = None, instanceUuid: bool | None = None
    ) -> Any:
        return vim.ManagedEntity.Array(await self._by_uuid(call, uuid, vmSearch, datacenter, instanceUuid))

    async def _by_uuid(
        self, call: Call, uuid: str, of_vms: bool, datacenter: Any, of_instance: bool | None
    ) -> list[Any]:
        wanted = _plain_uuid(uuid)
        path = ("config.instanceUuid" if of_instance else "config.uuid") if of_vms else "hardware.systemInfo.uuid"
        return await self._matching(
            call, of_vms, datacenter, (path,), lambda mo: _plain_uuid(str(value_at(mo, path) or "")) == wanted
        )

    @operation("FindByDatastorePath")
    async def find_by_datastore_path(self, call: Call, datacenter: Any, path: str) -> Any:
        where = "config.files.vmPathName"
        return _first(
            await self._matching(call, True, datacenter, (where,), lambda mo: value_at(mo, where) == path.strip())
        )

    # -- by what the guest says ----------------------------------------------------------------------------------------

    @operation("FindByDnsName")
    async def find_by_dns_name(self, call: Call, dnsName: str, vmSearch: bool, datacenter: Any = None) -> Any:
        return _first(await self._by_dns_name(call, dnsName, vmSearch, datacenter))

    @operation("FindAllByDnsName")
    async def find_all_by_dns_name(self, call: Call, dnsName: str, vmSearch: bool, datacenter: Any = None) -> Any:
        return vim.ManagedEntity.Array(await self._by_dns_name(call, dnsName, vmSearch, datacenter))

    async def _by_dns_name(self, call: Call, name: str, of_vms: bool, datacenter: Any) -> list[Any]:
        wanted, path = name.strip().rstrip(".").lower(), "guest.hostName" if of_vms else "name"
        return await self._matching(
            call, of_vms, datacenter, (path,), lambda mo: str(value_at(mo, path) or "").lower() == wanted != ""
        )

    @operation("FindByIp")
    async def find_by_ip(self, call: Call, ip: str, vmSearch: bool, datacenter: Any = None) -> Any:
        return _first(await self._by_ip(call, ip, vmSearch, datacenter))

    @operation("FindAllByIp")
    async def find_all_by_ip(self, call: Call, ip: str, vmSearch: bool, datacenter: Any = None) -> Any:
        return vim.ManagedEntity.Array(await self._by_ip(call, ip, vmSearch, datacenter))

    async def _by_ip(self, call: Call, ip: str, of_vms: bool, datacenter: Any) -> list[Any]:
        wanted = _plain_address(ip)
        paths = ("guest.ipAddress", "guest.net") if of_vms else ("name", "config.network.vnic")
        return await self._matching(call, of_vms, datacenter, paths, lambda mo: wanted in _addresses(mo, of_vms))

    # -- by where it stands --------------------------------------------------------------------------------------------

    @operation("FindByInventoryPath")
    async def find_by_inventory_path(self, call: Call, inventoryPath: str) -> Any:
        mo = self.world.get(ROOT_FOLDER)
        for name in inventoryPath.strip("/").split("/") if inventoryPath.strip("/") else ():
            mo = self._child(mo, name) if mo is not None else None
        return mo.ref if mo is not None else None

    @operation("FindChild")
    async def find_child(self, call: Call, entity: Any, name: str) -> Any:
        found = self._child(self.world.find(entity._moId, call, entity), name)
        return found.ref if found is not None else None

    def _child(self, mo: Mo, name: str) -> Mo | None:
        wanted = tree.unescape(name)
        there = (self.world.get(reference._moId) for reference in tree.children(mo))
        return next((child for child in there if child is not None and tree.name_of(child) == wanted), None)

    # -- all of them ---------------------------------------------------------------------------------------------------

    async def _matching(
        self, call: Call, of_vms: bool, datacenter: Any, paths: tuple[str, ...], test: Test
    ) -> list[Any]:
        if datacenter is not None:
            self.world.find(datacenter._moId, call, datacenter)
        candidates = self.world.of_kind(vim.VirtualMachine if of_vms else vim.HostSystem)
        await prepare_all((mo, paths) for mo in candidates)
        found = []
        pace = Pace()
        for mo in candidates:
            if test(mo) and (datacenter is None or tree.is_below(self.world, mo, datacenter._moId)):
                found.append(mo.ref)
            if pace.is_due():
                await pace.rest()
        return found


def _first(found: list[Any]) -> Any:
    return found[0] if found else None


def _plain_uuid(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _plain_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text.strip().lower()


def _addresses(mo: Mo, of_vm: bool) -> set[str]:
    if not of_vm:
        vnics = value_at(mo, "config.network.vnic") or ()
        own = [vnic.spec.ip.ipAddress for vnic in vnics if vnic.spec and vnic.spec.ip]
        return {_plain_address(str(one)) for one in [value_at(mo, "name"), *own] if one}
    found = [value_at(mo, "guest.ipAddress")]
    for nic in value_at(mo, "guest.net") or ():
        found += nic.ipAddress
    return {_plain_address(str(one)) for one in found if one}


def objects(world: World) -> list[Mo]:
    return [SearchIndex(world, "SearchIndex")]


