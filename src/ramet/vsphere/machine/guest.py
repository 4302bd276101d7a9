"""What is known of the guest inside: GuestInfo, from its agent and from the leases of its networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.vsphere import ids
from ramet.vsphere.inventory.shape import made
from ramet.vsphere.machine.guest_os import family, full_name, running_id
from ramet.vsphere.types import vim

if TYPE_CHECKING:
    from ramet.vsphere.machine.view import MachineView

_UNMANAGED = "2147483647"


def ip_address(mo: MachineView) -> str | None:
    """The first card's that has one, as others reach it; else what the guest says."""
    known = mo.guests.addresses(mo.vm)
    for nic in mo.vm.machine.nics:
        if nic.id in known:
            return known[nic.id]
    macs = {nic.mac for nic in mo.vm.machine.nics}
    seen = mo.seen
    for interface in seen.interfaces if seen is not None else ():
        for address in interface.addresses if interface.mac in macs else ():
            if address.kind == "ipv4" and not address.address.startswith(("127.", "169.254.")):
                return str(address.address)
    return None


def running_status(mo: MachineView) -> str:
    seen = mo.seen
    return "guestToolsRunning" if seen is not None and seen.answers else "guestToolsNotRunning"


def tools_status(mo: MachineView) -> str:
    """Whether an agent is installed shows only while it runs: where none was ever seen it is as good as not there."""
    return "toolsOk" if running_status(mo) == "guestToolsRunning" else "toolsNotRunning"


def host_name(mo: MachineView) -> str | None:
    seen = mo.seen
    return seen.host_name if seen is not None else None


def guest_id(mo: MachineView) -> str | None:
    seen = mo.seen
    return running_id(seen.os) if seen is not None and seen.os is not None else None


def guest_name(mo: MachineView) -> str | None:
    seen = mo.seen
    if seen is None or seen.os is None:
        return None
    return str(seen.os.pretty_name or full_name(running_id(seen.os)))


def guest_state(mo: MachineView) -> str:
    return "running" if running_status(mo) == "guestToolsRunning" else "notRunning"


def is_ready(mo: MachineView) -> bool:
    return running_status(mo) == "guestToolsRunning"


def guest_info(mo: MachineView) -> Any:
    seen_id = guest_id(mo)
    return made(
        vim.vm.GuestInfo,
        toolsStatus=tools_status(mo),
        toolsVersionStatus="guestToolsUnmanaged",
        toolsVersionStatus2="guestToolsUnmanaged",
        toolsRunningStatus=running_status(mo),
        toolsVersion=_UNMANAGED,
        toolsInstallType="guestToolsTypeOpenVMTools",
        guestId=seen_id,
        guestFamily=family(seen_id) if seen_id else None,
        guestFullName=guest_name(mo),
        hostName=host_name(mo),
        ipAddress=ip_address(mo),
        net=nics(mo),
        ipStack=_stack(mo),
        guestState=guest_state(mo),
        appHeartbeatStatus="appStatusGray",
        guestKernelCrashed=mo.vm.pause_reason == "guest panicked",
        appState="none",
        guestOperationsReady=is_ready(mo),
        interactiveGuestOperationsReady=False,
        guestStateChangeSupported=is_ready(mo),
        hwVersion="vmx-21",
    )


def guest_summary(mo: MachineView) -> Any:
    return made(
        vim.vm.Summary.GuestSummary,
        guestId=guest_id(mo),
        guestFullName=guest_name(mo),
        toolsStatus=tools_status(mo),
        toolsVersionStatus="guestToolsUnmanaged",
        toolsVersionStatus2="guestToolsUnmanaged",
        toolsRunningStatus=running_status(mo),
        hostName=host_name(mo),
        ipAddress=ip_address(mo),
        hwVersion="vmx-21",
    )


def nics(mo: MachineView) -> list[Any]:
    """Of cards that have an address, or of which the guest has said something."""
    seen, known = mo.seen, mo.guests.addresses(mo.vm)
    told = {one.mac: one for one in seen.interfaces} if seen is not None else {}
    return [
        _nic(mo, nic, known.get(nic.id), told.get(nic.mac))
        for nic in mo.vm.machine.nics
        if nic.id in known or nic.mac in told
    ]


def _nic(mo: MachineView, nic: Any, outer: str | None, told: Any) -> Any:
    inner = {one.address: one.prefix for one in told.addresses} if told is not None else {}
    lengths = {**({outer: inner.get(outer, 24)} if outer else {}), **inner}
    return made(
        vim.vm.GuestInfo.NicInfo,
        network=nic.network,
        ipAddress=list(lengths),
        macAddress=nic.mac,
        connected=nic.connected and mo.vm.is_on,
        deviceConfigId=ids.nic_key(nic),
        ipConfig=made(
            vim.net.IpConfigInfo,
            ipAddress=[
                made(vim.net.IpConfigInfo.IpAddress, ipAddress=address, prefixLength=length, state="preferred")
                for address, length in lengths.items()
            ],
        ),
    )


def _stack(mo: MachineView) -> list[Any]:
    name = host_name(mo)
    if name is None:
        return []
    host, _, domain = name.partition(".")
    return [
        made(
            vim.vm.GuestInfo.StackInfo,
            dnsConfig=made(
                vim.net.DnsConfigInfo, dhcp=False, hostName=host, domainName=domain, ipAddress=[], searchDomain=[]
            ),
        )
    ]
