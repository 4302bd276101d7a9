"""The inventory as a tree, read through properties: what is under what.

    children(mo) -> references of what stands right under it
    below(world, mo) -> references of everything under it, each once, and ids of the objects that were gone through
    is_below(world, mo, ancestor_moid) -> bool
    name_of(mo) -> its name, as people write it

VMs stand in folders, and are listed by their host and pool too: they are looked for there only when the walk begins
below the folders.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any
from urllib.parse import unquote

from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import value_at
from ramet.vsphere.core.world import World
from ramet.vsphere.types import Support, is_a, vim

__all__ = ["below", "children", "is_below", "name_of", "unescape"]

_BRANCHES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (vim.Folder, ("childEntity",)),
    (vim.Datacenter, ("vmFolder", "hostFolder", "datastoreFolder", "networkFolder")),
    (vim.ComputeResource, ("host", "resourcePool")),
    (vim.ResourcePool, ("resourcePool", "vm")),
    (vim.HostSystem, ("vm",)),
)
_DEEPEST = 200
_ESCAPED = re.compile(r"%(?:2f|5c|25)", re.IGNORECASE)


def children(mo: Mo, *, with_vms: bool = True) -> list[Any]:
    paths = next((paths for kind, paths in _BRANCHES if is_a(mo.wire, kind)), ())
    found: list[Any] = []
    for path in paths:
        if path == "vm" and not with_vms:
            continue
        value = value_at(mo, path)
        found += value if isinstance(value, list) else [value] if value is not None else []
    return found


def below(world: World, top: Mo) -> tuple[list[Any], set[str]]:
    with_vms = not (is_a(top.wire, vim.Folder) or is_a(top.wire, vim.Datacenter))
    found: dict[str, Any] = {}
    sources: set[str] = set()
    queue = deque([top])
    while queue:
        mo = queue.popleft()
        sources.add(mo.moid)
        for reference in children(mo, with_vms=with_vms):
            moid = reference._moId
            if moid not in found:
                found[moid] = reference
                if not isinstance(reference, vim.VirtualMachine):
                    inner = world.get(moid)
                    if inner is not None:
                        queue.append(inner)
    return list(found.values()), sources


def is_below(world: World, mo: Mo, ancestor_moid: str) -> bool:
    for _ in range(_DEEPEST):
        parent: Any = value_at(mo, "parent")
        if not isinstance(parent, Support.ManagedObject):
            return False
        if parent._moId == ancestor_moid:
            return True
        found = world.get(parent._moId)
        if found is None:
            return False
        mo = found
    return False


def name_of(mo: Mo) -> str:
    return unescape(str(value_at(mo, "name") or ""))


def unescape(name: str) -> str:
    """Slashes, backslashes and per cent signs are escaped in names on the wire, and may be in paths."""
    return _ESCAPED.sub(lambda match: unquote(match[0]), name)
