"""Addresses and names for the guests of a port group: one dnsmasq for each that has DHCP.

dnsmasq runs in the namespace, bound to its bridge, as its own unprivileged user. It answers DHCP, and DNS for
the names of its own leases; it asks others only where the port group has NAT.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import pwd
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import InternalError
from ramet.model.host import Network
from ramet.model.units import check_mac
from ramet.network.addresses import gateway_of, host_range
from ramet.network.namespace import NamespaceThread
from ramet.network.services import Service, ServiceSpec, end_all, find_program, serve, spawn_detached

DOMAIN = "ramet.internal"
LEASE_S = 3600

_LEASES_BYTES = 1 << 20
_MAX_LEASES = 4096


@dataclass(frozen=True)
class Lease:
    """One address handed out. `expires_at` is Unix time, 0 for never."""

    mac: str
    address: str
    hostname: str | None
    expires_at: float
    client_id: bytes | None = None


def render_config(
    network: Network, files: Path, reservations: Mapping[str, str], upstream: tuple[str, ...], user: str
) -> str:
    """dnsmasq's configuration for a port group. `files`: path without suffix of its leases and pid files.

    ``dhcp-ignore-clid``: a clone's client id is its source's until it has an identity of its own; going by the
    MAC address alone, it never gets its source's lease. ``no-ping``: the check for a foreign user of an address
    would hold every first lease back by seconds.
    """
    if network.cidr is None:
        raise InternalError(f"Port group {network.name!r} has DHCP and no network.")
    gateway = gateway_of(network.cidr)
    first, last = host_range(network.cidr)
    netmask = ipaddress.IPv4Network(network.cidr).netmask
    lines = [
        f"interface={network.bridge}",
        "except-interface=lo",
        "bind-dynamic",
        f"user={user}",
        f"pid-file={files}.pid",
        f"dhcp-leasefile={files}.leases",
        "no-hosts",
        "no-resolv",
        "domain-needed",
        "bogus-priv",
        f"domain={DOMAIN}",
        f"local=/{DOMAIN}/",
        "dhcp-authoritative",
        "dhcp-ignore-clid",
        "no-ping",
        "quiet-dhcp",
        f"dhcp-lease-max={_MAX_LEASES}",
    ]
    if not network.fenced:  # fences have translated addresses, which nobody asks for
        lines += [
            f"dhcp-range={first},{last},{netmask},{LEASE_S}",
            f"dhcp-option=option:router,{gateway}" if network.nat else "dhcp-option=option:router",
        ]
    lines += [f"server={address}" for address in upstream if network.nat]
    lines += [f"dhcp-host={mac},{address}" for mac, address in sorted(reservations.items())]
    return "\n".join(lines) + "\n"


def parse_leases(text: str) -> dict[str, Lease]:
    """MAC -> lease, from dnsmasq's lease file: `expiry mac address name client-id` a line.

    Names come from guests; lines that are not as they should be are passed over. At most 4,096 are read.
    """
    leases = {}
    for line in text.splitlines()[:_MAX_LEASES]:
        fields = line.split(" ")
        with contextlib.suppress(ValueError, OverflowError):  # a time of 400 digits is no float
            expiry, mac, address, name, client = fields
            lease = Lease(
                mac=check_mac(mac),
                address=str(ipaddress.IPv4Address(address)),
                hostname=None if name == "*" else name[:253],
                expires_at=float(int(expiry)),
                client_id=None if client == "*" else bytes.fromhex(client.replace(":", "")),
            )
            leases[lease.mac] = lease
    return leases


def parse_resolvers(text: str) -> list[str]:
    """IPv4 name servers of a resolv.conf that can be asked from the namespace: not those on loopback."""
    found = []
    for line in text.splitlines()[:256]:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                address = ipaddress.IPv4Address(words[1])
                if not address.is_loopback and not address.is_unspecified:
                    found.append(str(address))
    return found[:3]


def host_resolvers() -> tuple[str, ...]:
    """What the host asks: /etc/resolv.conf, or what systemd-resolved asks when that names only its stub."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        with contextlib.suppress(OSError):
            found = parse_resolvers(path.read_text(errors="replace"))
            if found:
                return tuple(found)
    return ()


def release_packet(lease: Lease, server: str) -> bytes:
    """A DHCPRELEASE as the guest itself would send it (RFC 2131)."""
    mac = bytes.fromhex(lease.mac.replace(":", ""))
    address = ipaddress.IPv4Address(lease.address).packed
    header = bytes([1, 1, 6, 0]) + secrets.token_bytes(4) + bytes(4) + address + bytes(12)
    options = b"\x63\x82\x53\x63" + bytes([53, 1, 7, 54, 4]) + ipaddress.IPv4Address(server).packed
    if lease.client_id:
        options += bytes([61, len(lease.client_id)]) + lease.client_id
    return (header + mac + bytes(10 + 64 + 128) + options + b"\xff").ljust(300, b"\0")


def _send_release(bridge: str, packet: bytes, server: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # dnsmasq takes the packet for one of its bridge's, though it never left the machine.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", 68))
        sock.sendto(packet, (server, 67))


class Dhcp:
    """The dnsmasq of every port group. `directory`, which exists, holds configurations and leases."""

    def __init__(self, thread: NamespaceThread, directory: Path) -> None:
        self._thread = thread
        self._directory = directory
        self._services: dict[str, Service] = {}
        self._reservations: dict[str, dict[str, str]] = {}

    @property
    def problems(self) -> list[str]:
        return [service.problem for service in self._services.values() if service.problem]

    async def ensure(self, network: Network, *, insist: bool = False) -> None:
        """Have dnsmasq serve this port group as described; one that runs with the same configuration stays.

        Raises UnsupportedError when dnsmasq is not installed; ToolError when it does not start, or tries on (`insist`).
        """

        async def make() -> Service:
            spec = await asyncio.to_thread(self._prepare, network)
            return Service(spec, self._spawn, lambda: self._is_ready(network.bridge))

        await serve(self._services, network.name, make, insist=insist)

    def set_reservations(self, network: str, reservations: Mapping[str, str]) -> None:
        """Give these MACs these addresses always (MAC -> address) and no others reserved ones, from `ensure` on.

        dnsmasq starts anew for it, which takes some hundredths of a second and loses no lease.
        """
        self._reservations[network] = {check_mac(mac): address for mac, address in reservations.items()}

    async def remove(self, network: Network) -> None:
        """End the server and forget its leases; idempotent, and also for one that an earlier daemon started."""
        await self.stop(network)
        self._reservations.pop(network.name, None)
        await asyncio.to_thread(self._forget, network.bridge)

    async def stop(self, network: Network) -> None:
        """End the server; its leases stay."""
        service = self._services.pop(network.name, None)
        if service is not None:
            await service.stop()
        await end_all("dnsmasq", self._mark(network.bridge))

    async def leases(self, network: Network) -> dict[str, Lease]:
        """MAC -> lease. Empty when nothing was handed out yet."""
        return await asyncio.to_thread(read_leases, self._directory / network.bridge)

    async def release(self, network: Network, mac: str) -> bool:
        """Take the lease of a MAC back, as if its guest had released it; False when it has none."""
        lease = (await self.leases(network)).get(mac)
        if lease is None or network.cidr is None:
            return False
        server = str(gateway_of(network.cidr))
        await self._thread.run(_send_release, network.bridge, release_packet(lease, server), server)
        return True

    async def close(self, *, end: bool) -> None:
        """Let the servers go on for the guests, or `end` them all, strays of earlier daemons included."""
        for service in self._services.values():
            await (service.stop() if end else service.release())
        self._services.clear()
        if end:
            await end_all("dnsmasq", self._mark(""))

    def _mark(self, bridge: str) -> str:
        return f"--conf-file={self._directory}/{bridge}"

    def _prepare(self, network: Network) -> ServiceSpec:
        find_program("dnsmasq", "dnsmasq-base")
        files = self._directory / network.bridge
        reservations = self._reservations.get(network.name, {})
        upstream = host_resolvers() if network.nat else ()
        text = render_config(network, files, reservations, upstream, service_user())
        return dnsmasq_spec(f"dnsmasq of port group {network.name}", files, text)

    async def _spawn(self, spec: ServiceSpec) -> int:
        pid_file = spec.log.with_suffix(".pid")
        await asyncio.to_thread(pid_file.unlink, missing_ok=True)
        return await self._thread.run(spawn_detached, spec)

    async def _is_ready(self, bridge: str) -> bool:
        # Written once the sockets are bound: what arrives from now on waits in them.
        return await asyncio.to_thread((self._directory / f"{bridge}.pid").exists)

    def _forget(self, bridge: str) -> None:
        for path in self._directory.glob(f"{bridge}*"):
            path.unlink(missing_ok=True)


def service_user() -> str:
    """dnsmasq's own user; Debian's dnsmasq-base makes it."""
    try:
        return pwd.getpwnam("dnsmasq").pw_name
    except KeyError:
        return "nobody"


def dnsmasq_spec(name: str, files: Path, text: str) -> ServiceSpec:
    """Write a configuration, and how to run dnsmasq with it. `files`: path without suffix of all its files.

    The configuration's name carries its own hash: a running dnsmasq tells by it what it runs with.
    """
    config = Path(f"{files}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.conf")
    for old in files.parent.glob(f"{files.name}-*.conf"):
        if old != config:
            old.unlink()
    config.write_text(text)
    exact = f"--conf-file={config}"
    return ServiceSpec(
        name=name,
        program="dnsmasq",
        argv=(find_program("dnsmasq", "dnsmasq-base"), "--keep-in-foreground", "--log-facility=-", exact),
        mark=f"--conf-file={files}",
        exact=exact,
        log=Path(f"{files}.log"),
    )


def read_leases(files: Path) -> dict[str, Lease]:
    """MAC -> lease, from the file of a dnsmasq; empty when it handed out nothing yet."""
    try:
        with Path(f"{files}.leases").open("rb") as file:
            return parse_leases(file.read(_LEASES_BYTES).decode(errors="replace"))
    except FileNotFoundError:
        return {}
