"""Port groups whose frames reach an interface of the host: a bridge's port in the namespace that leads there.

    IFACE        a macvlan in passthru mode: the interface stays where it is, and every frame passes
    IFACE.VLAN   a VLAN interface on it: what the host does with its own frames goes on
    host bridge  a cable: one more port of that bridge

Whichever it is, it goes with the namespace, and nothing of the host's own is renamed, moved or readdressed. An
interface that carries addresses of the host would lose them to the port group: it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from ramet.errors import ConflictError, NotFoundError, ToolError, UnsupportedError, UsageError
from ramet.model.host import Network
from ramet.network.firewall import PORT_PREFIX, port_name
from ramet.network.links import Link, Links
from ramet.network.namespace import Namespace

MAX_VLAN = 4094


@dataclass(frozen=True)
class Uplink:
    """An interface of the host, and the VLAN on it."""

    interface: str
    vlan: int | None = None


def parse(text: str) -> Uplink:
    """'eth1' or 'eth1.100'. Raises UsageError."""
    interface, dot, vlan = text.partition(".")
    if not dot:
        return Uplink(interface)
    if not vlan.isdecimal() or not 1 <= int(vlan) <= MAX_VLAN:
        raise UsageError(f"{vlan!r} is not a VLAN's number.", hint=f"Write it like eth1.100; 1 to {MAX_VLAN}.")
    return Uplink(interface, int(vlan))


def check_others(network: Network, others: dict[str, str]) -> None:
    """`others`: port group -> its uplink. Raises ConflictError: two port groups on one would be one."""
    for other, uplink in others.items():
        if other != network.name and uplink == network.uplink:
            raise ConflictError(
                f"{uplink} is the uplink of port group {other!r} already.", hint="Plug the guests in there."
            )


def check_host(links: Links, uplink: Uplink) -> Link:
    """The host's interface, if it can be had. Runs on the host. Raises NotFoundError, ConflictError, UsageError."""
    found = {link.name: link for link in links.all()}
    link = found.get(uplink.interface)
    if link is None:
        raise NotFoundError(f"The host has no interface {uplink.interface!r}.", hint="See 'ip link'.")
    if link.name == "lo":
        raise UsageError("The loopback interface leads nowhere.", hint="Name a network card or a bridge.")
    if link.kind == "bridge" or uplink.vlan is not None:
        return link
    if link.master:
        owner = next((other.name for other in found.values() if other.index == link.master), "another interface")
        raise ConflictError(
            f"{link.name} is a port of {owner}, which has all its frames.", hint=f"Use that: --uplink {owner}."
        )
    addresses = links.addresses(link.name)
    if addresses or links.has_global_ipv6(link.name):
        raise ConflictError(
            f"{link.name} carries {addresses[0] if addresses else 'addresses'} of the host, which would lose it.",
            hint=f"Use a VLAN on it (--uplink {link.name}.100), an interface without an address, or make a bridge "
            f"of {link.name}, give it the address, and use that.",
        )
    return link


def connect(links: Links, network: Network, target: Namespace) -> None:
    """Make the port in the namespace. Runs on the host; checks first, and raises what `check_host` does.

    UnsupportedError when the kernel has no VLANs or no macvlan.
    """
    assert network.uplink is not None
    uplink = parse(network.uplink)
    lower = check_host(links, uplink)
    links.up(lower.name)
    fd = os.open(target.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _make(links, uplink, lower, port_name(network), fd)
    except OSError as exc:
        raise _explained(exc, network.uplink, uplink) from exc
    finally:
        os.close(fd)


def _make(links: Links, uplink: Uplink, lower: Link, port: str, target_fd: int) -> None:
    if uplink.vlan is not None:
        links.add_over(lower.name, port, target_fd, kind="vlan", vlan_id=uplink.vlan)
    elif lower.kind == "bridge":
        cable = _cable_name(port)
        links.add_cable(cable, port, target_fd)
        links.set_master(cable, lower.name)
    else:
        links.add_over(lower.name, port, target_fd, kind="macvlan", macvlan_mode="passthru")


def _explained(error: OSError, text: str, uplink: Uplink) -> Exception:
    if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOTSUP):
        module = "8021q" if uplink.vlan is not None else "macvlan"
        return UnsupportedError(f"{text} needs the kernel module {module}.", hint=f"Try modprobe {module}.")
    if error.errno in (errno.EEXIST, errno.EBUSY, errno.EINVAL):
        return ConflictError(f"{text} is in use by something else.", hint="See 'ip -d link' on the host.")
    return ToolError(f"No port could be made on {text}: {error.strerror}")


def mend(links: Links, network: Network) -> None:
    """Plug the cable of a port that is there into the host's bridge, which may have been made anew. Runs on the host.

    A crash between the making of the cable and its plugging in leaves it so, too.
    """
    assert network.uplink is not None
    uplink, cable = parse(network.uplink), _cable_name(port_name(network))
    if uplink.vlan is None and links.exists(cable):
        links.set_master(cable, check_host(links, uplink).name)


def _cable_name(port: str) -> str:
    """The end that is a port of the host's bridge."""
    return "rh-" + port.removeprefix(PORT_PREFIX)


def is_connected(links: Links, network: Network) -> bool:
    """Whether the port is there, and leads somewhere. Runs in the namespace."""
    return links.exists(port_name(network))


def plug(links: Links, network: Network) -> None:
    """The port to the port group's bridge, up. Runs in the namespace."""
    links.set_master(port_name(network), network.bridge)


def disconnect(links: Links, bridge: str) -> None:
    """The port, and what belongs to it on the host, go; idempotent. Runs in the namespace."""
    with contextlib.suppress(OSError):
        links.delete(PORT_PREFIX + bridge.removeprefix("rb-"))
