"""A CustomizationSpec, as values of the project's own identities.

    values_of(machine, spec) -> (Customization, time zone or None)
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Any

from pydantic import ValidationError

from ramet.model.base import explain
from ramet.model.identity import DHCP, Customization, NicAddress, hostname_from
from ramet.model.machine import Machine
from ramet.vsphere.types import vim, vmodl

_REFUSED = ("scriptText", "password", "resetPassword")


def values_of(machine: Machine, spec: Any) -> tuple[Customization, str | None]:
    """InvalidArgument names what is wrong; NicSettingMismatch, CustomizationFault what cannot be done."""
    prep = spec.identity
    if not isinstance(prep, vim.vm.customization.LinuxPrep):
        raise vim.fault.UncustomizableGuest(
            uncustomizableGuestOS=type(prep)._wsdlName,
            msg=f"{type(prep)._wsdlName} is not supported: guests are customized by a CustomizationLinuxPrep.",
        )
    for name in _REFUSED:
        if getattr(prep, name, None):
            raise vmodl.fault.NotSupported(
                msg=f"spec.identity.{name} is not supported; scripts of the guest's own lie in /etc/ramet/clone.d."
            )
    settings = spec.globalIPSettings
    try:
        values = Customization(
            hostname=_hostname(machine, prep.hostName),
            domain=prep.domain or None,
            dns=_dns(settings, spec.nicSettingMap),
            nics=_addresses(machine, spec.nicSettingMap or ()),
        )
    except ValidationError as exc:
        raise vmodl.fault.InvalidArgument(invalidProperty="spec", msg=explain(exc)) from exc
    except ValueError as exc:
        raise vmodl.fault.InvalidArgument(invalidProperty="spec.nicSettingMap", msg=f"{exc}.") from exc
    return values, prep.timeZone or None


def _hostname(machine: Machine, name: Any) -> str | None:
    kinds = vim.vm.customization
    if isinstance(name, kinds.FixedName):
        return str(name.name)
    if isinstance(name, kinds.PrefixNameGenerator):
        return f"{hostname_from(str(name.base))[:50]}-{machine.uuid[:8]}"
    if name is None or isinstance(name, kinds.VirtualMachineNameGenerator):
        return None  # the VM's name, as far as a host can be called that
    raise vmodl.fault.NotSupported(msg=f"spec.identity.hostName: {type(name)._wsdlName} is not supported.")


def _dns(settings: Any, mappings: Any) -> tuple[str, ...]:
    """The guest has one list for all of its cards."""
    found = list(settings.dnsServerList or ()) if settings is not None else []
    for mapping in mappings or ():
        found += mapping.adapter.dnsServerList or ()
    return tuple(dict.fromkeys(str(server) for server in found if server))[:4]


def _addresses(machine: Machine, mappings: Any) -> dict[str, NicAddress]:
    """By MAC address where one is given, else in the order of the cards."""
    if len(mappings) > len(machine.nics):
        raise vim.fault.NicSettingMismatch(
            numberOfNicsInSpec=len(mappings),
            numberOfNicsInVM=len(machine.nics),
            msg=f"{machine.name!r} has {len(machine.nics)} network cards, and the spec has {len(mappings)}.",
        )
    by_mac = {nic.mac: nic.id for nic in machine.nics}
    found: dict[str, NicAddress] = {}
    for number, mapping in enumerate(mappings):
        mac = (mapping.macAddress or "").lower().replace("-", ":")
        nic_id = by_mac.get(mac) if mac else machine.nics[number].id
        if nic_id is None:
            raise vmodl.fault.InvalidArgument(
                invalidProperty=f"spec.nicSettingMap[{number}].macAddress",
                msg=f"{machine.name!r} has no network card with the address {mac}.",
            )
        found[nic_id] = _address(mapping.adapter)
    return found


def _address(adapter: Any) -> NicAddress:
    kinds = vim.vm.customization
    if isinstance(adapter.ip, kinds.DhcpIpGenerator):
        return NicAddress(address=DHCP)
    if not isinstance(adapter.ip, kinds.FixedIp):
        raise vmodl.fault.NotSupported(msg=f"{type(adapter.ip)._wsdlName} is not supported: give an address, or DHCP.")
    interface = IPv4Interface(f"{adapter.ip.ipAddress}/{adapter.subnetMask or 24}")
    gateway = next((str(one) for one in adapter.gateway or () if one), None)
    return NicAddress(address=str(interface), gateway=gateway)
