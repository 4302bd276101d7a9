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
_NO_MAC = (None, "", "00:00:00:00:00:00")
_NO_CARD = -1
"""What the schema has as the key of the card of an interface that belongs to none."""


def ip_address(mo: MachineView) -> str | None:
    """The first card's that has one, as others reach it; else what the guest says, of its cards before the rest."""
    known = mo.guests.addresses(mo.vm)
    for nic in mo.vm.machine.nics:
        if nic.id in known:
            return known[nic.id]
    macs = {nic.mac for nic in mo.vm.machine.nics}
    for interface in sorted(_told(mo), key=lambda one: one.mac not in macs):
        for address in interface.addresses:
            if address.kind == "ipv4" and not address.address.startswith(("127.", "169.254.")):
                return str(address.address)
    return None


def _told(mo: MachineView) -> list[Any]:
    """Interfaces that the guest tells of, but for its loopback."""
    seen = mo.seen
    return [one for one in seen.interfaces if one.mac not in _NO_MAC] if seen is not None else []


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
    """Of cards that have an address, or of which the guest has said something; then its other interfaces.

    Those of a bridge in the guest, for one, and those of a clone that was left as it is: its guest still has the MAC
    addresses of its source.
    """
    known, cards = mo.guests.addresses(mo.vm), mo.vm.machine.nics
    told = {one.mac: one for one in _told(mo)}
    own = [
        _nic(nic.network, nic.mac, _addresses(told.get(nic.mac), known.get(nic.id)),
             connected=nic.connected and mo.vm.is_on, key=ids.nic_key(nic))
        for nic in cards
        if nic.id in known or nic.mac in told
    ]  # fmt: skip
    others = (one for mac, one in told.items() if one.addresses and mac not in {nic.mac for nic in cards})
    return own + [_nic(None, one.mac, _addresses(one), connected=mo.vm.is_on, key=_NO_CARD) for one in others]


def _addresses(told: Any, outer: str | None = None) -> dict[str, int]:
    """Address -> length of its prefix: the one that others reach first."""
    inner = {one.address: one.prefix for one in told.addresses} if told is not None else {}
    return {**({outer: inner.get(outer, 24)} if outer else {}), **inner}


def _nic(network: str | None, mac: str, lengths: dict[str, int], *, connected: bool, key: int) -> Any:
    return made(
        vim.vm.GuestInfo.NicInfo,
        network=network,
        ipAddress=list(lengths),
        macAddress=mac,
        connected=connected,
        deviceConfigId=key,
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
