"""Port groups: bridges in the daemon's namespace, each with its own addresses, kept apart by the firewall."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path

from ramet.errors import UsageError
from ramet.model.host import Network
from ramet.network import addresses, firewall, kernel
from ramet.network.links import Links
from ramet.network.namespace import run_tool

BRIDGE_PREFIX = "rb-"
_ALIAS_PREFIX = "ramet:"

# In this order: forwarding resets other settings. A thread reads and writes its own namespace's values.
_SETTINGS = (
    ("ipv4/ip_forward", "1"),
    # A guest that uses an address of another port group as its sender is dropped.
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    # The gateway of one port group does not answer for that of another.
    ("ipv4/conf/all/arp_ignore", "1"),
    # Taps and bridges send nothing of their own into guests: no router solicitation, no duplicate detection.
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    # Frames between guests of one bridge are not routed packets: the forward chain must not see them.
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
)


def bridge_name(name: str) -> str:
    """Interface names have 15 characters, port groups 63: 48 bits of hash."""
    return BRIDGE_PREFIX + hashlib.sha256(name.encode()).hexdigest()[:12]


def bridge_mac(name: str) -> str:
    """The gateway's MAC address: locally administered, the same after every restart."""
    digest = hashlib.sha256(b"mac:" + name.encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def complete(network: Network, taken: Iterable[IPv4Network], others: dict[str, str]) -> Network:
    """The description with bridge, and network where it needs one. Pure.

    `taken`: networks to keep away from when choosing; `others`: name -> CIDR of the other port groups.
    Raises UsageError for a contradiction, ConflictError for an overlap.
    """
    _check_contradictions(network)
    cidr = network.cidr
    if cidr is None and (network.dhcp or network.nat or network.fenced):
        cidr = addresses.choose_cidr([*taken, *(IPv4Network(other) for other in others.values())])
    if cidr is not None:
        addresses.check_free(network.name, cidr, others)
    return network.changed(cidr=cidr, bridge=bridge_name(network.name))


def _check_contradictions(network: Network) -> None:
    if network.isolated and network.nat:
        raise UsageError(
            f"Port group {network.name!r} cannot be isolated and have NAT.", hint="Leave out --isolated or --nat."
        )
    if network.isolated and network.fenced:
        raise UsageError(
            f"Port group {network.name!r} cannot be isolated and fenced.",
            hint="Leave out --isolated: fences never reach one another, and without --nat nothing else.",
        )
    others = [flag for flag in ("dhcp", "nat", "isolated", "fenced", "cidr") if getattr(network, flag)]
    if network.uplink and others:
        raise UsageError(
            f"Port group {network.name!r} is uplinked: its addresses and its way out are those of {network.uplink}.",
            hint=f"Leave out --{others[0]}, or --uplink.",
        )


def prepare_namespace(links: Links) -> None:
    """Set the namespace up, or find it set up. Runs inside it."""
    apply_settings(links)
    run_tool(["nft", "-f", "-"], firewall.GUARD_TABLE, timeout_s=10)


def apply_settings(links: Links) -> None:
    """The sysctl values of the thread's own namespace, and its loopback interface."""
    for path, value in _SETTINGS:
        # A kernel without IPv6, or without br_netfilter, lacks the setting and the trouble.
        with contextlib.suppress(FileNotFoundError):
            (Path("/proc/sys/net") / path).write_text(value)
    links.up("lo")


def ensure_bridge(links: Links, network: Network) -> None:
    """Make the bridge of a completed description, or correct the one that is there. Runs in the namespace."""
    make_bridge(links, network.name, network.cidr)


def make_bridge(links: Links, name: str, cidr: str | None) -> None:
    """The bridge of a port group, with its gateway's addresses; the same in a fence as in the namespace itself."""
    bridge = bridge_name(name)
    if not links.exists(bridge):
        links.add_bridge(bridge, bridge_mac(name), _ALIAS_PREFIX + name)
        # Not every kernel's bridge lets its offload be switched; then virtio guests alone are sure to get DHCP.
        with contextlib.suppress(OSError):
            kernel.compute_checksums(bridge)
    ask_soon(bridge)
    set_addresses(links, bridge, {f"{addresses.gateway_of(cidr)}/{IPv4Network(cidr).prefixlen}"} if cidr else set())


def ask_soon(bridge: str) -> None:
    """Ask for a guest's MAC address ten times a second, rather than once, and for as long (3 s) as the kernel does.

    A clone's address is known before its guest has put it on its NIC: who connected at once lost a whole second.
    """
    for name, value in (("retrans_time_ms", "100"), ("mcast_solicit", "30")):
        (Path("/proc/sys/net/ipv4/neigh") / bridge / name).write_text(value)


def set_addresses(links: Links, interface: str, wanted: set[str]) -> None:
    """These addresses (with prefix length), and no others."""
    present = set(links.addresses(interface))
    for address in sorted(present - wanted):
        links.delete_address(interface, address)
    for address in sorted(wanted):  # again those that are there: the first of a network takes the others with it
        links.add_address(interface, address)


def apply_rules(groups: Iterable[Network]) -> None:
    """Replace the namespace's rules in one transaction. Runs in the namespace; raises ToolError."""
    run_tool(["nft", "-f", "-"], firewall.render(groups), timeout_s=10)


def bridges(links: Links) -> dict[str, str]:
    """Bridge -> port group's name, of all port groups in the namespace."""
    return {
        link.name: link.alias.removeprefix(_ALIAS_PREFIX)
        for link in links.all()
        if link.kind == "bridge" and link.name.startswith(BRIDGE_PREFIX)
    }
