"""What port groups need of the host, and one sentence about what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ramet.network import kernel
from ramet.network.namespace import TOOL_PATH

CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21

TUN = Path("/dev/net/tun")
OPEN_TUN = f"Open it to all users, as udev does at boot: chmod 0666 {TUN}."

REMEDY = "Run the daemon as root (sudo ramet serve), or use the port group 'user', which needs no privilege."


def has_tool(name: str) -> bool:
    return shutil.which(name, path=TOOL_PATH) is not None


def is_open_to_all(tun: Path = TUN) -> bool:
    """Whether pasta, which runs as `nobody`, can open it too: where there is no udev it stays root's own."""
    try:
        return tun.stat().st_mode & 0o006 == 0o006
    except OSError:
        return False


def find_problem(
    capabilities: int | None = None,
    tun: Path = TUN,
    tool: Callable[[str], bool] = has_tool,
) -> str | None:
    """Why this process cannot have port groups, as one sentence; None when it can. Changes nothing."""
    mask = kernel.effective_capabilities() if capabilities is None else capabilities
    missing = [
        name
        for name, bit in (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_SYS_ADMIN", CAP_SYS_ADMIN))
        if not mask & (1 << bit)
    ]
    if missing:
        return f"The daemon lacks {' and '.join(missing)}, which network namespaces and bridges need."
    if not os.access(tun, os.R_OK | os.W_OK):
        return f"{tun} is missing or closed to the daemon (the kernel module 'tun')."
    if not tool("nft"):
        return "nft is not installed (apt-get install nftables)."
    return None
