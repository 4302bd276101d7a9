"""VirtualMachineGuestCustomizationManager: an instant clone that runs becomes a machine of its own.

What the specification says goes into the project's own identity: random generator, clock, network card, address, host
name, machine id, host keys. The VM is off its networks meanwhile, and comes back with its new address.

    values_of(machine, name, spec) -> (Customization, time zone or None)
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import Any

from pydantic import ValidationError

from ramet.errors import DeadlineError, from_dict
from ramet.model.base import explain
from ramet.model.host import Task
from ramet.model.identity import DHCP, Customization, NicAddress, hostname_from
from ramet.model.machine import Machine
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation
from ramet.vsphere.guest import scripts
from ramet.vsphere.guest.login import Guest, guest_of
from ramet.vsphere.machine.long_work import run, show
from ramet.vsphere.machine.refusals import refusing
from ramet.vsphere.types import vim, vmodl

PRIVILEGE = "VirtualMachine.Provisioning.Customize"
KINDS = ("vm.customize", "vm.identify")
TIMEOUT_S = 600.0
_REFUSED = ("scriptText", "password", "resetPassword")

TIME_ZONE = r"""
[ -e "/usr/share/zoneinfo/$1" ] || { echo "$1: No such file or directory" >&2; exit 1; }
ln -sf "/usr/share/zoneinfo/$1" /etc/localtime && printf '%s\n' "$1" >/etc/timezone
"""


class GuestCustomizationManager(Mo):
    wire = vim.vm.GuestCustomizationManager

    @operation(
        "CustomizeGuest_Task", privilege=PRIVILEGE,
        partial="Linux specs: host name (fixed, or the VM's), domain, name servers, fixed addresses and DHCP of IPv4; "
        "others are refused with NotSupported",
    )
    async def customize(self, call: Call, vm: Any, auth: Any, spec: Any, configParams: Any = ()) -> Any:
        """The task ends when the guest has acknowledged, and has its address where one is to be had."""
        guest = guest_of(self.world, vm, auth)
        machine = self.world.host.floor.find(guest.vm_id).vm.machine
        values, time_zone = values_of(machine, spec)
        with refusing(guest.mo, "poweredOn"):
            await guest.run(scripts.CHECK_ROOT)
            if time_zone is not None:
                await guest.run(TIME_ZONE, time_zone, path=time_zone)
            task = await self.world.host.customize_vm(guest.vm_id, values)
        return await show(guest.mo, call, "CustomizeGuest_Task", task, requested="poweredOn")

    @operation(
        "StartGuestNetwork_Task", privilege=PRIVILEGE,
        partial="the network is up when CustomizeGuest_Task ends; one that did not acknowledge is asked again",
    )
    async def start_network(self, call: Call, vm: Any, auth: Any) -> Any:
        """Customized guests have their network already. One that did not acknowledge is asked once more."""
        guest = guest_of(self.world, vm, auth)
        await guest.check()

        async def work(_: Any) -> None:
            identity = self.world.host.floor.find(guest.vm_id).vm.identity
            if identity.holds_links_down and identity.plan is not None:
                await self._ended(await self.world.host.identify_vm(guest.vm_id))

        return await run(guest.mo, call, "StartGuestNetwork_Task", work, vm_id=guest.vm_id)

    @operation("AbortCustomization_Task", privilege=PRIVILEGE)
    async def abort(self, call: Call, vm: Any, auth: Any) -> Any:
        """What runs is cancelled; where nothing does, nothing happens, however often it is asked."""
        guest = guest_of(self.world, vm, auth)

        async def work(_: Any) -> None:
            await self._cancel(guest)

        return await run(guest.mo, call, "AbortCustomization_Task", work, vm_id=guest.vm_id)

    async def _cancel(self, guest: Guest) -> None:
        tasks = self.world.host.tasks
        for task in tasks.list():
            if task.vm_id == guest.vm_id and task.kind in KINDS and not task.state.is_final and task.cancellable:
                await tasks.cancel(task.id)
                await tasks.wait(task.id, TIMEOUT_S)

    async def _ended(self, task: Task) -> None:
        final = await self.world.host.tasks.wait(task.id, TIMEOUT_S)
        if not final.state.is_final:
            raise DeadlineError(f"The guest did not acknowledge within {TIMEOUT_S:g} s.")
        if final.error is not None:
            raise from_dict(final.error)


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
