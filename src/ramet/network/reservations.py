"""Addresses of a port group that belong to certain MACs: kept in the ledger, told to dnsmasq, nobody's twice.

One change at a time: the caller holds its lock around every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from ramet.errors import ConflictError, UsageError
from ramet.model.cancellation import uncut
from ramet.model.host import Network
from ramet.model.units import check_mac
from ramet.network.dhcp import Dhcp
from ramet.network.firewall import serves_names
from ramet.network.ledger import Ledger


class Reservations:
    """Of all port groups; what is durable is the ledger's."""

    def __init__(self, ledger: Ledger, dhcp: Dhcp) -> None:
        self._ledger = ledger
        self._dhcp = dhcp

    async def leased(self, group: Network) -> dict[str, str]:
        """MAC -> address, as dnsmasq says."""
        return {mac: lease.address for mac, lease in (await self._dhcp.leases(group)).items()}

    async def replace(self, group: Network, reservations: Mapping[str, str]) -> None:
        """MAC -> address, exactly these from now on. UsageError for an address that no guest can have, ConflictError
        for one that somebody has: nothing has changed then. To its end, so that dnsmasq and the ledger say the same."""
        await uncut(self._replace(group, reservations))

    async def _replace(self, group: Network, reservations: Mapping[str, str]) -> None:
        if group.cidr is None or group.fenced:
            raise UsageError(f"Port group {group.name!r} has no addresses to reserve.")
        wanted = {check_mac(mac): address for mac, address in reservations.items()}
        before = self._ledger.reservations(group.name)
        self._ledger.reserve(group.name, group.cidr, wanted, await self.leased(group))
        await self._tell(group)
        leased = {address: mac for mac, address in (await self.leased(group)).items()}
        lost = [address for mac, address in wanted.items() if leased.get(address, mac) != mac]
        if lost:  # handed out while dnsmasq was being told
            self._ledger.reserve(group.name, group.cidr, before, {})
            await self._tell(group)
            raise ConflictError(f"{lost[0]} was just given to somebody else.", hint="Choose another address.")

    async def claim(self, group: Network, claims: Mapping[str, str]) -> None:
        """Some more, in one go: dnsmasq is told once. Nothing to do where no addresses are handed out, or for one
        outside of the group's network."""
        if group.cidr is None or group.fenced:
            return
        network, present = IPv4Network(group.cidr), self._ledger.reservations(group.name)
        inside = {mac: address for mac, address in claims.items() if IPv4Address(address) in network}
        if not inside.items() <= present.items():
            await self.replace(group, {**present, **inside})

    async def settle(self, group: Network, mac: str) -> None:
        """A guest has set what is reserved for it: what it had leased before is given back."""
        reserved = self._ledger.reservations(group.name).get(mac)
        if reserved is not None and (await self.leased(group)).get(mac, reserved) != reserved:
            await self._dhcp.release(group, mac)

    async def release(self, group: Network, mac: str) -> None:
        """Give back what the group has for this MAC, its lease too; idempotent."""
        await self._dhcp.release(group, mac)
        present = self._ledger.reservations(group.name)
        if present.pop(mac, None):
            await self.replace(group, present)

    async def _tell(self, group: Network) -> None:
        self._dhcp.set_reservations(group.name, self._ledger.reservations(group.name))
        if serves_names(group):
            await self._dhcp.ensure(group)
