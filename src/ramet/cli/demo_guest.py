"""What the demo runs inside its guests, and how it reads what they say. POSIX sh; works in busybox too."""

from __future__ import annotations

from dataclasses import dataclass

NAME_KEY = "guestinfo.demo.name"
TOKEN_FILE = "/dev/shm/demo-token"
"""In RAM: a tmpfs."""

SCRIPT_FILE = "/dev/shm/demo-script"
SETTLE = "systemctl is-system-running --wait"
FREEZE_FILE = "/root/freeze.sh"
FREEZE_LOG = "/dev/shm/demo-freeze.log"
FREEZE_COMMAND = f"sh {FREEZE_FILE} < /dev/null > {FREEZE_LOG} 2>&1 &"
"""By sh: the file system it lies on may forbid to run it."""

FREEZE_SCRIPT = f"""#!/bin/sh
PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
sleep 1
vmware-rpctool "instantclone.freeze" || exit 1
# The source stops above. In every clone the call returns, and the script goes on here:
vmware-rpctool "info-get {NAME_KEY}" > {SCRIPT_FILE}
"""

PROVE = (
    "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; "
    f"cat {TOKEN_FILE}; cut -d' ' -f1 /proc/uptime; "
    f'vmware-rpctool "info-get {NAME_KEY}"; cat {SCRIPT_FILE} 2>/dev/null; :'
)


@dataclass(frozen=True)
class Proof:
    """What a clone said about itself."""

    token: str | None
    uptime_s: float
    name: str | None
    script: str | None
    """What the script wrote after its freeze; None when it has not come that far."""


def read_proof(text: str) -> Proof:
    """The lines that `PROVE` prints, in their order; what is missing at the end is None."""
    lines = [line.strip() for line in text.splitlines()]
    lines += [""] * (4 - len(lines))
    token, uptime, name, script = lines[:4]
    try:
        uptime_s = float(uptime)
    except ValueError:
        uptime_s = 0.0
    return Proof(token or None, uptime_s, name or None, script or None)
