"""Taps: the host's end of a VM's network card.

A tap is not persistent: it lives as long as somebody, QEMU in the end, holds its descriptor, and goes with the
process however that ends. The daemon closes its own copy once the descriptor is handed over.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import BusyError, InternalError, NotFoundError
from ramet.network import firewall, kernel
from ramet.network.firewall import Guard
from ramet.network.links import Link, Links
from ramet.network.namespace import run_tool

TAP_PREFIX = "rt-"
_VM_ID_CHARACTERS = 9


@dataclass(frozen=True)
class OpenTap:
    """A tap and its descriptor. Resource handling: whoever receives it closes it."""

    fd: int
    name: str

    def close(self) -> None:
        os.close(self.fd)


def tap_name(vm_id: str, nic_index: int) -> str:
    """``rt-`` + the beginning of the VM's id + ``-`` + the NIC's number: at most 15 characters."""
    part = re.sub(r"[^0-9A-Za-z]", "", vm_id)[:_VM_ID_CHARACTERS]
    if not part or not 0 <= nic_index <= 99:
        raise InternalError(f"No tap can be named after VM {vm_id!r} and NIC {nic_index}.")
    return f"{TAP_PREFIX}{part}-{nic_index}"


def open_tap(links: Links, name: str, owner_uid: int | None = None) -> OpenTap:
    """Make the tap, up and on no bridge: what its guest sends goes nowhere. Runs in the namespace.

    Raises BusyError when another process still holds a tap of this name.
    """
    try:
        tap = OpenTap(kernel.create_tap(name, owner_uid), name)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise BusyError(f"Network tap {name} is still in use by another process.") from exc
        raise
    try:
        links.up(name)
    except BaseException:
        tap.close()
        raise
    return tap


def attach(links: Links, name: str, bridge: str | None) -> None:
    """Move the tap to a bridge, or off any, while its VM runs. Raises NotFoundError when the tap is gone."""
    try:
        links.set_master(name, bridge)
    except OSError as exc:
        if exc.errno == errno.ENODEV:
            raise NotFoundError(f"There is no network tap {name}: its VM is off.") from exc
        raise


def list_taps(links: Links) -> list[Link]:
    return [link for link in links.all() if link.name.startswith(TAP_PREFIX) and link.kind == "tun"]


def collect(links: Links, keep: Collection[str]) -> list[str]:
    """Delete the taps that are not in `keep` and the guards without a tap; the names of those deleted."""
    gone = [link.name for link in list_taps(links) if link.name not in keep and links.delete(link.name)]
    alive = {link.name for link in list_taps(links)}
    set_port_guards(dict.fromkeys(read_guards().keys() - alive, Guard()))
    return gone


def read_guards() -> dict[str, Guard]:
    """The guards as the kernel has them. Runs in the namespace."""
    text = run_tool(["nft", "-j", "list", "table", "bridge", "ramet"], "", timeout_s=10)
    return firewall.parse_guards(json.loads(text))


def set_port_guards(wanted: Mapping[str, Guard]) -> None:
    """Drop, from now on, every frame from these taps that names one of its guard's MACs or addresses as its sender.

    All in one transaction; an empty guard lifts one. The taps need not exist yet. Runs in the namespace.
    """
    present = read_guards()
    changes = [firewall.render_guard(name, present.get(name, Guard()), guard) for name, guard in wanted.items()]
    if any(changes):
        run_tool(["nft", "-f", "-"], "\n".join(changes), timeout_s=10)


def read_traffic() -> dict[str, tuple[int, int]]:
    """Of the thread's namespace: a tap's name -> bytes to its guest, bytes from it. The tap sends what a guest gets."""
    found = {}
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        words = numbers.split()
        if len(words) >= 9:
            found[name.strip()] = (int(words[8]), int(words[0]))
    return found
