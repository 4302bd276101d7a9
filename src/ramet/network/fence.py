"""One fence: a namespace in which guests find the network that their source is in, with its gateway and addresses.

    guest - tap - bridge of the source's network | fence | outside - cable - bridge of the fenced port group

Inside, MAC and IP addresses are those of the source, as often as there are fences. At `outside` each guest has an
address of the fenced port group's own, and the fence translates one to the other. What comes in seems to come from
the gateway inside: a guest without a default route can answer it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from ramet.errors import BusyError, ConflictError, InternalError, NotFoundError
from ramet.model.host import Network
from ramet.model.machine import Inside
from ramet.network import portgroups
from ramet.network.addresses import gateway_of, host_range
from ramet.network.dhcp import DOMAIN, LEASE_S
from ramet.network.firewall import FENCE_PREFIX, serves_names, table_head
from ramet.network.ledger import Claim
from ramet.network.links import Links
from ramet.network.namespace import NAMES, Namespace, run_tool

OUTSIDE = "outside"
_CARRIER_S = 2.0
_CARRIER_POLL_S = 0.002


@dataclass(frozen=True)
class Fence:
    """A fence as it is to be. `group` is complete; `claims` are those of its members."""

    base: str
    """The name of the daemon's namespace."""
    group: Network
    name: str
    claims: tuple[Claim, ...] = ()

    @property
    def token(self) -> str:
        return fence_token(self.group.name, self.name)

    @property
    def namespace(self) -> Namespace:
        return Namespace(f"{self.base}-{self.token}")

    @property
    def cable(self) -> str:
        """The end in the daemon's namespace."""
        return FENCE_PREFIX + self.token

    @property
    def stem(self) -> str:
        """Of the names of its DHCP server's files."""
        return f"fence-{self.token}"

    @property
    def cidr(self) -> str:
        if self.group.cidr is None:
            raise InternalError(f"The fenced port group {self.group.name!r} has no network.")
        return self.group.cidr

    @property
    def insides(self) -> tuple[Inside, ...]:
        """The networks that are played in it."""
        found = {claim.inside.network: claim.inside for claim in self.claims if claim.inside is not None}
        return tuple(found[name] for name in sorted(found))

    @property
    def translated(self) -> dict[str, str]:
        """Outer address -> inner address, as far as these are known."""
        return {claim.address: claim.inner for claim in self.claims if claim.inner is not None}


def fence_token(group: str, name: str) -> str:
    return hashlib.sha256(f"{group}/{name}".encode()).hexdigest()[:12]


def namespaces_of(base: str, names: Path = NAMES) -> list[Namespace]:
    """The namespaces of all fences that there are, known or not."""
    return [Namespace(path.name, names) for path in names.glob(f"{base}-*")]


def check_member(claim: Claim, fence: Fence) -> None:
    """Raises ConflictError when the fence has no place for this one."""
    assert claim.inside is not None
    for other in fence.claims:
        if other.holder != claim.holder and other.mac == claim.mac and other.inside == claim.inside:
            raise ConflictError(
                f"A machine with the MAC address {claim.mac} is in this fence already.",
                hint="Give this one another fence, or none: then it has one of its own.",
            )
    _check_networks(claim.inside, fence)


def _check_networks(inside: Inside, fence: Fence) -> None:
    others = {f"port group {other.network!r}": other.cidr for other in fence.insides if other != inside}
    others[f"the fenced port group {fence.group.name!r}"] = fence.cidr
    same = f"port group {inside.network!r}" in others
    for whose, cidr in others.items():
        overlap = inside.cidr and cidr and IPv4Network(inside.cidr).overlaps(IPv4Network(cidr))
        if overlap or (same and whose == f"port group {inside.network!r}"):
            raise ConflictError(
                f"{inside.cidr} of port group {inside.network!r} and {cidr} of {whose} cannot be in one fence.",
                hint="Make a fenced port group with another --cidr, or use another fence.",
            )


def render_rules(fence: Fence) -> str:
    """The ruleset of the fence's namespace, as one transaction for `nft -f`."""
    translated = fence.translated
    into = ", ".join(f"{outer} : {inner}" for outer, inner in translated.items())
    out = ", ".join(f"{inner} : {outer}" for outer, inner in translated.items())
    lines = [
        *table_head(rule for inside in fence.insides for rule in _input_rules(fence, inside)),
        "  chain forward {",
        "    type filter hook forward priority filter; policy drop;",
        "    ct state established,related accept",
        f'    iifname "{OUTSIDE}" ct status dnat accept',
    ]
    if fence.group.nat and translated:
        members = ", ".join(translated.values())
        lines.append(f'    iifname != "{OUTSIDE}" oifname "{OUTSIDE}" ip saddr {{ {members} }} accept')
    lines += ["  }", "  chain prerouting {", "    type nat hook prerouting priority dstnat; policy accept;"]
    if translated:
        lines.append(f'    iifname "{OUTSIDE}" dnat ip to ip daddr map {{ {into} }}')
    lines += ["  }", "  chain postrouting {", "    type nat hook postrouting priority srcnat; policy accept;"]
    if translated:
        lines.append(f'    oifname "{OUTSIDE}" snat ip to ip saddr map {{ {out} }}')
    lines += [f'    oifname != {{ "{OUTSIDE}", "lo" }} masquerade', "  }", "}"]
    return "\n".join(lines) + "\n"


def _input_rules(fence: Fence, inside: Inside) -> list[str]:
    if not inside.cidr:
        return []
    own = f'iifname "{portgroups.bridge_name(inside.network)}"'
    to_gateway = f"{own} ip daddr {gateway_of(inside.cidr)}"
    rules = [f"{to_gateway} icmp type echo-request accept"]
    if fence.group.dhcp:
        rules += [
            f"{own} udp sport 68 udp dport 67 accept",
            *(f"{to_gateway} {protocol} dport 53 accept" for protocol in ("udp", "tcp")),
        ]
    return rules


def render_dhcp(fence: Fence, files: Path, user: str) -> str:
    """dnsmasq's configuration: every member gets the address that its source has, for as long as it asks.

    ``dhcp-authoritative``: a renewal of a lease that the source was given, which this server never saw, is granted.
    """
    lines = [
        "except-interface=lo",
        "bind-dynamic",
        f"user={user}",
        f"pid-file={files}.pid",
        f"dhcp-leasefile={files}.leases",
        *("no-hosts", "no-resolv", "domain-needed", "bogus-priv", f"domain={DOMAIN}", f"local=/{DOMAIN}/"),
        *("dhcp-authoritative", "dhcp-ignore-clid", "no-ping", "quiet-dhcp"),
    ]
    if serves_names(fence.group):
        lines.append(f"server={gateway_of(fence.cidr)}")
    for number, inside in enumerate(fence.insides):
        if inside.cidr:
            first, last = host_range(inside.cidr)
            gateway = f",{gateway_of(inside.cidr)}" if fence.group.nat else ""
            lines += [
                f"interface={portgroups.bridge_name(inside.network)}",
                f"dhcp-range=set:n{number},{first},{last},{IPv4Network(inside.cidr).netmask},{LEASE_S}",
                f"dhcp-option=tag:n{number},option:router{gateway}",
            ]
    lines += sorted(f"dhcp-host={claim.mac},{claim.inner}" for claim in fence.claims if claim.inner)
    return "\n".join(lines) + "\n"


# In the kernel. All of it blocks for some milliseconds.


@contextlib.contextmanager
def namespace_fd(namespace: Namespace) -> Iterator[int]:
    fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def connect(links: Links, fence: Fence) -> None:
    """The cable from the port group's bridge. Runs in the daemon's namespace; idempotent."""
    if not links.exists(fence.cable):
        # The same MAC address after every rebuilding: the gateway need not ask again.
        digest = hashlib.sha256(b"fence:" + fence.token.encode()).hexdigest()
        mac = "02:" + ":".join(digest[n : n + 2] for n in range(0, 10, 2))
        with namespace_fd(fence.namespace) as fd:
            links.add_cable(fence.cable, OUTSIDE, fd, mac)
    links.set_master(fence.cable, fence.group.bridge)


def furnish(links: Links, fence: Fence) -> None:
    """Bridges, addresses, routes and rules. Runs in the fence's namespace; idempotent."""
    portgroups.apply_settings(links)
    prefix = IPv4Network(fence.cidr).prefixlen
    portgroups.set_addresses(links, OUTSIDE, {f"{claim.address}/{prefix}" for claim in fence.claims})
    links.up(OUTSIDE)
    links.set_default_route(str(gateway_of(fence.cidr)) if fence.group.nat and fence.claims else None)
    for inside in fence.insides:
        portgroups.make_bridge(links, inside.network, inside.cidr)
    wanted = {portgroups.bridge_name(inside.network) for inside in fence.insides}
    for bridge in portgroups.bridges(links).keys() - wanted:
        links.delete(bridge)
    run_tool(["nft", "-f", "-"], render_rules(fence), timeout_s=10)


def plug(links: Links, tap: str, inside: Inside) -> None:
    """A tap that is in the fence to its bridge, and wait until that carries. Runs in the fence's namespace."""
    bridge = portgroups.bridge_name(inside.network)
    links.set_master(tap, bridge)
    deadline = time.monotonic() + _CARRIER_S
    while not links.is_up(bridge) and time.monotonic() < deadline:
        time.sleep(_CARRIER_POLL_S)


def hand_over(links: Links, tap: str, target: Namespace) -> bool:
    """Move a tap from this namespace to another; False when it is not here."""
    if not links.exists(tap):
        return False
    with namespace_fd(target) as fd:
        try:
            links.move(tap, fd)
        except FileExistsError as exc:
            raise BusyError(f"Network tap {tap} is still in use by another process.") from exc
        except FileNotFoundError as exc:
            raise NotFoundError(f"There is no network tap {tap}: its VM is off.") from exc
    return True


def members(links: Links) -> list[str]:
    """What is plugged in. Runs in the fence's namespace."""
    bridges = {link.index for link in links.all() if link.kind == "bridge"}
    return [link.name for link in links.all() if link.master in bridges]


def evict(links: Links, target: Namespace) -> None:
    """Everything that is plugged in goes to another namespace, on no bridge. Runs in the fence's namespace."""
    for name in members(links):
        hand_over(links, name, target)


def learned(claims: Iterable[Claim], known: dict[str, str]) -> dict[str, str]:
    """Holder -> inner address, where `known` (MAC -> address) says something new that fits, and nobody else has."""
    claims = list(claims)
    taken = {claim.inner for claim in claims}
    found: dict[str, str] = {}
    for claim in claims:
        address = known.get(claim.mac)
        if address is None or address == claim.inner or address in taken or claim.inside is None:
            continue
        if claim.inside.cidr and _is_hosts(address, claim.inside.cidr):
            found[claim.holder] = address
            taken.add(address)
    return found


def _is_hosts(address: str, cidr: str) -> bool:
    first, last = host_range(cidr)
    return int(first) <= int(IPv4Address(address)) <= int(last)
