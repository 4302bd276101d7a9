"""What may leave a port group, as nftables statements. Pure: rules in, lines out.

Denials are asked first, then permissions, then the port group's default. Two places enforce them: the forward
chain of the namespace, for what is routed to the uplink of NAT, and the bridge's, for frames to a host's interface.
"""

from __future__ import annotations

from collections.abc import Iterable

from ramet.model.host import EgressRule, Network

ROUTED_REFUSAL = "reject with icmpx admin-prohibited"
"""The guest's program is told at once. A bridge can only drop: it has no address to answer from."""

FLOW = "ip saddr . th sport . ip daddr . th dport . meta l4proto"
FLOW_BACK = "ip daddr . th dport . ip saddr . th sport . meta l4proto"
SEEN = "seen"
"""The set of flows that began beyond the uplink, as the guest's answers look."""


def matches(rule: EgressRule) -> list[str]:
    """The conditions of a rule; each stands for one nftables rule (ports of a protocol are one)."""
    where = f"ip daddr {rule.cidr}"
    if rule.protocol is None:
        return [where]
    if rule.ports is None:
        return [f"{where} ip protocol {rule.protocol}"]
    first, last = rule.ports
    return [f"{where} {rule.protocol} dport {first if first == last else f'{first}-{last}'}"]


def ordered(rules: Iterable[EgressRule]) -> list[EgressRule]:
    """Denials first: a permission never opens what was denied."""
    return sorted(rules, key=lambda rule: rule.action != "deny")


def routed(group: Network, prefix: str) -> list[str]:
    """Rules of the forward chain for what begins in the port group; `prefix`: its conditions."""
    lines = []
    for rule in ordered(group.egress):
        verdict = "accept" if rule.action == "allow" else ROUTED_REFUSAL
        lines += [f"{prefix} {match} {verdict}" for match in matches(rule)]
    return [*lines, f"{prefix} {'accept' if group.egress_default == 'allow' else ROUTED_REFUSAL}"]


def bridged(group: Network, port: str) -> list[str]:
    """Rules of the bridge's forward chain for frames that leave by `port`.

    A bridge has connection tracking only where the kernel has a module for it: what answers a flow that began
    beyond the uplink is known by a set instead, which those flows fill. A TCP flow begins with a SYN alone.
    IPv6 has no rules of its own: with a default of 'deny' it does not leave at all.
    """
    out = f'oifname "{port}"'
    lines = [f"{out} ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop"]  # spanning tree and its like
    if not group.has_egress_rules:
        return lines
    came = f'iifname "{port}"'
    lines += [
        f"{came} tcp flags & (syn | ack) == syn update @{SEEN} {{ {FLOW_BACK} }}",
        f"{came} {FLOW_BACK} @{SEEN} update @{SEEN} {{ {FLOW_BACK} }}",
        f"{came} meta l4proto udp update @{SEEN} {{ {FLOW_BACK} }}",
        f"{out} ether type arp accept",
        f"{out} udp sport 68 udp dport 67 accept",
        f"{out} {FLOW} @{SEEN} accept",
        f"{out} icmp type {{ echo-reply, destination-unreachable, time-exceeded }} accept",
    ]
    for rule in ordered(group.egress):
        lines += [f"{out} {match} {'accept' if rule.action == 'allow' else 'drop'}" for match in matches(rule)]
    return lines if group.egress_default == "allow" else [*lines, f"{out} drop"]
