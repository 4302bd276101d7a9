"""What the soak does inside guests: a program that checks their memory all the time, and a number on their disks."""

from __future__ import annotations

import base64
import time

from ramet.errors import DeadlineError, GuestError, RametError
from ramet.model.requests import CreateVm, DiskRequest, Exec, NicRequest
from ramet.soak.stage import Stage
from ramet.soak.world import Guest

MEMORY_MIB = 128
DISK_MIB = 64
CHECKED_MIB = 24
_EXEC_S = 120.0

_MOUNT = """
mounted() { grep -q " /d " /proc/mounts; }
mkdir -p /d
until mkdir /run/mounting 2>/dev/null; do sleep 0.2; done  # asked again, another may be at it still
trap 'rmdir /run/mounting' EXIT
mounted || mount /dev/vda /d 2>/dev/null && exit 0
[ "$1" = new ] && mke2fs -q /dev/vda >/dev/null 2>&1 && mount /dev/vda /d && echo 0 > /d/n && sync
"""
_WATCH = f"""
chmod 755 /d/memcheck; sync
mkdir /run/watching 2>/dev/null && (/d/memcheck {CHECKED_MIB} > /run/memcheck 2>&1 &)
until grep -q tick /run/memcheck; do sleep 0.1; done
"""
_CHECK = """
[ -s /run/memcheck ] || echo "its guest has booted anew"
count() { wc -l < /run/memcheck; }
n=$(count); i=0
while [ $(count) -le $n ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i + 1)); done
[ $i -lt 600 ] || echo "its checker stands still"
! grep -q BAD /run/memcheck || echo "its memory is wrong: $(grep -m 1 BAD /run/memcheck)"
echo 3 > /proc/sys/vm/drop_caches
found=$(cat /d/n)
[ "$found" = "$1" ] || [ -e /run/wrote-$2 ] || echo "its disk says '$found', not $1"
rm -f /run/wrote-*; touch /run/wrote-$2; echo $2 > /d/n && sync
"""


def request(name: str, *, privileged: bool) -> CreateVm:
    """A VM of the soak."""
    nic = NicRequest(network="lab" if privileged else None)
    disks = (DiskRequest(size_mib=DISK_MIB),)
    return CreateVm(name=name, image="micro", memory_mib=MEMORY_MIB, nics=(nic,), disks=disks, start=True)


def furnish(stage: Stage, guest: Guest) -> None:
    """Into a guest that has booted: its disk mounted, its memory checked from now on. Raises RametError."""
    is_new = guest.number is None
    _sh(stage, guest.name, _MOUNT, "new" if is_new else "old")
    if is_new:
        stage.client.write_file(guest.name, "/d/memcheck", stage.checker.read_bytes(), 0o755)
        guest.number = 0
    _sh(stage, guest.name, _WATCH)
    guest.fresh = False


def check(stage: Stage, guest: Guest) -> list[str]:
    """What is wrong with a running guest; it writes its next number."""
    number = guest.number or 0
    try:
        said = _sh(stage, guest.name, _CHECK, str(number), str(number + 1))
    except RametError as exc:
        return [f"{guest.name} could not be checked: {exc}"]
    guest.number = number + 1
    return [f"{guest.name}: {line}" for line in said.splitlines()]


def _sh(stage: Stage, name: str, script: str, *words: str) -> str:
    """A script's output. A guest that boots, or has little of a busy host, is asked again for a while."""
    deadline = time.monotonic() + _EXEC_S
    while True:
        try:
            return _sh_once(stage, name, script, *words)
        except DeadlineError:
            if time.monotonic() > deadline:
                raise


def _sh_once(stage: Stage, name: str, script: str, *words: str) -> str:
    request = Exec(argv=("/bin/sh", "-c", script, "sh", *words), timeout_s=_EXEC_S)
    result = stage.client.exec_in_vm(name, request)
    said = base64.b64decode(result.stdout_base64).decode(errors="replace").strip()
    if result.exit_code:
        errors = base64.b64decode(result.stderr_base64).decode(errors="replace").strip()
        raise GuestError(f"A script in {name} ended with {result.exit_code}: {said} {errors}")
    return said
