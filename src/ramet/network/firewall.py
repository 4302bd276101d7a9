"""The nftables rules of the namespace: nothing is forwarded, and nothing answers, unless a port group says so.

Two tables. ``inet ramet`` is rendered whole from the port groups and replaced in one transaction.
``bridge ramet`` holds the port guards, and the flows that came in from a host's interface, in sets, which stay when
the daemon starts anew; its chains are rendered anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ramet.model.host import Network
from ramet.network import egress
from ramet.network.addresses import LINK_LOCAL, gateway_of

UPLINK = "uplink"
"""The interface that pasta makes in the namespace."""

FENCE_PREFIX = "rv-"
"""The namespace's end of the cable to a fence: a port of its port group's bridge."""

PORT_PREFIX = "ru-"
"""The port of a bridge that leads to a host's interface."""

# Before the bridge learns: a frame dropped here does not move a MAC address to the wrong port either.
GUARD_TABLE = """
add table bridge ramet
add set bridge ramet guard_mac { type ifname . ether_addr; }
add set bridge ramet guard_ip { type ifname . ipv4_addr; }
add chain bridge ramet guard { type filter hook prerouting priority -300; policy accept; }
flush chain bridge ramet guard
add rule bridge ramet guard iifname . ether saddr @guard_mac drop
add rule bridge ramet guard iifname . arp saddr ether @guard_mac drop
add rule bridge ramet guard iifname . arp saddr ip @guard_ip drop
add rule bridge ramet guard iifname . ip saddr @guard_ip drop
"""


@dataclass(frozen=True)
class Guard:
    """What a tap's frames must not carry as their sender."""

    macs: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()


def table_head(inputs: Iterable[str]) -> list[str]:
    """The table of a namespace, made anew in the transaction, up to the end of its input chain: nothing comes in but
    by `inputs`, and what belongs to that."""
    return [
        "add table inet ramet",
        "delete table inet ramet",
        "table inet ramet {",
        "  chain input {",
        "    type filter hook input priority filter; policy drop;",
        "    ct state established,related accept",
        '    iifname "lo" accept',
        *(f"    {rule}" for rule in inputs),
        "  }",
    ]


def render(groups: Iterable[Network]) -> str:
    """The ruleset for these port groups, as one transaction for `nft -f`."""
    groups = sorted(groups, key=lambda group: group.bridge)
    nat = [group for group in groups if group.nat and group.cidr]
    inputs = [rule for group in groups for rule in _input_rules(group)]
    forwards = [rule for group in nat for rule in _forward_rules(group)]
    lines = [
        *table_head(inputs),
        "  chain forward {",
        "    type filter hook forward priority filter; policy drop;",
        *(f"    {rule}" for rule in forwards),
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        f'    oifname "{UPLINK}" masquerade',
        "  }",
        "}",
        *_bridge_lines(groups),
    ]
    return "\n".join(lines) + "\n"


def _bridge_lines(groups: list[Network]) -> list[str]:
    """Frames that cross a bridge: fences never meet one another, and the rules of ports to a host's interface."""
    flow = "ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto"
    rules = [f'iifname "{FENCE_PREFIX}*" oifname "{FENCE_PREFIX}*" drop']
    for group in groups:
        if group.uplink:
            rules += egress.bridged(group, port_name(group))
    return [
        "add table bridge ramet",
        f"add set bridge ramet {egress.SEEN} {{ type {flow}; flags dynamic, timeout; timeout 3m; size 65536; }}",
        "add chain bridge ramet egress { type filter hook forward priority 0; policy accept; }",
        "flush chain bridge ramet egress",
        *(f"add rule bridge ramet egress {rule}" for rule in rules),
    ]


def port_name(group: Network) -> str:
    """The interface by which a port group reaches a host's."""
    return PORT_PREFIX + group.bridge.removeprefix("rb-")


def _input_rules(group: Network) -> list[str]:
    """What a guest may ask of its gateway: an address and names where there is DHCP; an echo where it is not isolated.

    The gateway's own address stands in the rules: a guest must not reach the one of another port group.
    """
    if not group.cidr:
        return []
    to_gateway = f'iifname "{group.bridge}" ip daddr {gateway_of(group.cidr)}'
    rules = []
    if group.dhcp and not group.fenced:
        rules.append(f'iifname "{group.bridge}" udp sport 68 udp dport 67 accept')
    if serves_names(group):
        rules += [f"{to_gateway} {protocol} dport 53 accept" for protocol in ("udp", "tcp")]
    if not group.isolated:
        rules.append(f"{to_gateway} icmp type echo-request accept")
    return rules


def serves_names(group: Network) -> bool:
    """Whether dnsmasq listens on the port group's gateway: for fences, when they may ask others by it."""
    return group.nat and group.dhcp if group.fenced else group.dhcp


def _forward_rules(group: Network) -> list[str]:
    """Out by the uplink, and back what belongs to that. Link-local addresses, where clouds keep their
    credentials (169.254.169.254), are nobody's business beyond the link. Every packet on its way out meets the rules,
    not the first of a connection alone: what is denied now ends now."""
    out = f'iifname "{group.bridge}" oifname "{UPLINK}" ip saddr {group.cidr}'
    return [
        f"{out} ip daddr {LINK_LOCAL} drop",
        *egress.routed(group, out),
        f'iifname "{UPLINK}" oifname "{group.bridge}" ct state established,related accept',
    ]


def render_guard(tap: str, old: Guard, new: Guard) -> str:
    """The transaction that turns one tap's guard from `old` into `new`; empty when nothing changes."""
    lines = []
    for name, before, after in (
        ("guard_mac", old.macs, new.macs),
        ("guard_ip", old.addresses, new.addresses),
    ):
        lines += [f'delete element bridge ramet {name} {{ "{tap}" . {item} }}' for item in sorted(before - after)]
        lines += [f'add element bridge ramet {name} {{ "{tap}" . {item} }}' for item in sorted(after - before)]
    return "\n".join(lines)


def parse_guards(ruleset: object) -> dict[str, Guard]:
    """Tap -> guard, from the JSON of `nft -j list table bridge ramet`; what is not understood is passed over."""
    macs: dict[str, set[str]] = {}
    addresses: dict[str, set[str]] = {}
    for item in _items(ruleset, "nftables"):
        found = _member(item, "set")
        into = {"guard_mac": macs, "guard_ip": addresses}.get(str(_member(found, "name")))
        for element in _items(found, "elem") if into is not None else ():
            pair = _items(element, "concat")
            if into is not None and len(pair) == 2:
                into.setdefault(str(pair[0]), set()).add(str(pair[1]))
    return {
        tap: Guard(frozenset(macs.get(tap, ())), frozenset(addresses.get(tap, ())))
        for tap in macs.keys() | addresses.keys()
    }


def _member(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _items(value: object, key: str) -> list[object]:
    found = _member(value, key)
    return found if isinstance(found, list) else []
