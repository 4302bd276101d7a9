"""Network interfaces by netlink: the one place that speaks to pyroute2.

A `Links` acts in the namespace of the thread that made it and is used in that thread only. pyroute2's own
error is not an OSError; here it becomes one, so that callers need to know errno alone.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

_NUD_REACHABLE: Final = 0x02  # linux/neighbour.h


@dataclass(frozen=True)
class Link:
    """One interface as the kernel shows it. `master` is the index of its bridge, 0 for none."""

    index: int
    name: str
    kind: str
    mac: str
    master: int
    up: bool
    alias: str


class Links:
    """Resource handling: owns a netlink socket; `close` it in the thread that made it."""

    def __init__(self) -> None:
        self._ip: Any = IPRoute()

    def close(self) -> None:
        self._ip.close()

    def all(self) -> list[Link]:
        with _os_errors():
            return [_link(message) for message in self._ip.get_links()]

    def is_up(self, name: str) -> bool:
        """Whether the interface sends what it is given (RFC 2863 state UP, or UNKNOWN with the flag up).

        False also when there is no such interface.
        """
        try:
            with _os_errors():
                [message] = self._ip.get_links(self.index(name))
        except OSError:
            return False
        state = str(message.get_attr("IFLA_OPERSTATE"))
        return state == "UP" or (state == "UNKNOWN" and bool(message["flags"] & 1))

    def exists(self, name: str) -> bool:
        try:
            self.index(name)
        except OSError:
            return False
        return True

    def index(self, name: str) -> int:
        """Raises OSError ENODEV. An ioctl: netlink, by way of Python, is a hundred times slower."""
        try:
            return socket.if_nametoindex(name)
        except OSError as exc:  # without an errno before Python 3.13
            raise OSError(errno.ENODEV, f"no interface {name}") from exc

    def add_bridge(self, name: str, mac: str, alias: str) -> None:
        """A bridge that learns and forwards from its first packet on, and sends nothing of its own.

        Spanning tree would hold a new port back for 15 s; multicast snooping without a querier loses
        IPv6 neighbour discovery after a while. The MAC is set, else it would follow the ports' as they
        come and go, and guests would lose their gateway.
        """
        with _os_errors():
            self._ip.link(
                "add", ifname=name, kind="bridge", address=mac, br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0
            )
            self._ip.link("set", index=self.index(name), ifalias=alias, state="up")

    def up(self, name: str) -> None:
        with _os_errors():
            self._ip.link("set", index=self.index(name), state="up")

    def set_master(self, name: str, bridge: str | None) -> None:
        """Make `name` a port of `bridge`, or of none. One netlink message: no moment on two bridges."""
        with _os_errors():
            master = self.index(bridge) if bridge else 0
            self._ip.link("set", index=self.index(name), master=master, state="up")

    def move(self, name: str, namespace_fd: int) -> None:
        """Into another namespace, where it is down and on no bridge. Raises OSError (EEXIST: the name is taken)."""
        with _os_errors():
            self._ip.link("set", index=self.index(name), net_ns_fd=namespace_fd)

    def add_cable(self, name: str, far: str, namespace_fd: int, far_mac: str | None = None) -> None:
        """A pair of interfaces: `name` here, up, and `far` in another namespace, down."""
        peer: dict[str, Any] = {"ifname": far, "net_ns_fd": namespace_fd}
        if far_mac is not None:
            peer["address"] = far_mac
        with _os_errors():
            self._ip.link("add", ifname=name, kind="veth", peer=peer)
        self.up(name)

    def add_over(self, lower: str, name: str, namespace_fd: int, **kind: Any) -> None:
        """An interface in another namespace on top of `lower` here (a VLAN, a macvlan); `kind` as pyroute2 has it."""
        with _os_errors():
            self._ip.link("add", ifname=name, link=self.index(lower), net_ns_fd=namespace_fd, **kind)

    def set_mac(self, name: str, mac: str) -> None:
        with _os_errors():
            self._ip.link("set", index=self.index(name), address=mac)

    def set_default_route(self, gateway: str | None) -> None:
        """Everything else goes to this gateway; None: there is no way out."""
        with _os_errors():
            if gateway is not None:
                self._ip.route("replace", dst="default", gateway=gateway)
                return
            for route in self._ip.get_default_routes(family=socket.AF_INET):
                self._ip.route("del", family=socket.AF_INET, dst="default", gateway=route.get_attr("RTA_GATEWAY"))

    def delete(self, name: str) -> bool:
        """False when there is no such interface."""
        try:
            with _os_errors():
                self._ip.link("del", index=self.index(name))
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise
            return False
        return True

    def addresses(self, name: str) -> list[str]:
        """IPv4 addresses with prefix length, like 10.0.0.1/24."""
        with _os_errors():
            found = self._ip.get_addr(family=2, index=self.index(name))
            return [f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}" for message in found]

    def has_global_ipv6(self, name: str) -> bool:
        """Whether the interface has an IPv6 address that leads beyond its own link."""
        with _os_errors():
            return any(m["scope"] == 0 for m in self._ip.get_addr(family=socket.AF_INET6, index=self.index(name)))

    def add_address(self, name: str, address: str) -> None:
        """`address` with prefix length; one that is there already stays."""
        host, _, prefix = address.partition("/")
        with _os_errors():
            self._ip.addr("replace", index=self.index(name), address=host, prefixlen=int(prefix))

    def delete_address(self, name: str, address: str) -> None:
        host, _, prefix = address.partition("/")
        with _os_errors():
            self._ip.addr("del", index=self.index(name), address=host, prefixlen=int(prefix))

    def neighbours(self) -> dict[str, str]:
        """MAC -> IPv4 address, of everybody the namespace has spoken with lately: of several the one that answers."""
        with _os_errors():
            entries = sorted(self._ip.get_neighbours(family=2), key=lambda m: bool(m["state"] & _NUD_REACHABLE))
        found = [(m.get_attr("NDA_LLADDR"), m.get_attr("NDA_DST")) for m in entries]
        return {str(mac): str(address) for mac, address in found if mac and address}


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=int(message["index"]),
        name=str(message.get_attr("IFLA_IFNAME")),
        kind=str(info.get_attr("IFLA_INFO_KIND")) if info else "",
        mac=str(message.get_attr("IFLA_ADDRESS") or ""),
        master=int(message.get_attr("IFLA_MASTER") or 0),
        up=bool(message["flags"] & 1),
        alias=str(message.get_attr("IFLA_IFALIAS") or ""),
    )


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except NetlinkError as exc:
        raise OSError(exc.code, str(exc)) from exc
