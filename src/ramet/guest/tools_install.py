"""Bring the guest tools into a running guest, through its agent."""

from __future__ import annotations

from ramet.errors import GuestError
from ramet.guest.agent import Agent
from ramet.guest.guestfiles import HELPER_FOLDER, guest_file, identity_files

_TOOLS = ("vmware-rpctool", "vmtoolsd")
_FILES = ("install-tools", "tmpfiles.conf", *_TOOLS)
_PUT_IDENTITY = """
set -e
umask 077
(umask 022 && mkdir -p "$2")
for file in "$1"/identity-* "$1"/helper-*; do
    [ -e "$file" ] || continue
    new=$2/.${file##*/}.new
    cp "$file" "$new"
    chmod 700 "$new"
    mv "$new" "$2/${file##*/}"
done
sync
"""
"""From $1, which root alone may enter, to $2. The agent makes files that anybody may write, whatever the umask, and
root runs these: where others can see them they are whole, and root's."""
_WAIT_S = 30.0
_PROBE_S = 10.0


async def install_tools(agent: Agent) -> list[str]:
    """Write the tools, put them before others of the same name, and try one; returns the paths in the guest.

    The guest also gets the folders for hooks, and the file that tells programs of a clone.

    For any Linux guest whose agent may write files and run programs. Raises `GuestError` when a step fails, or when
    the tools are there but the guest has no guest RPC channel. `DeadlineError` if nobody answers guest RPC.
    """
    folder = (await agent.shell("mktemp -d", timeout_s=_WAIT_S)).decode().strip()
    if not folder.startswith("/"):
        raise GuestError("The guest has no usable mktemp.")
    try:
        for name in _FILES:
            await agent.write_file(f"{folder}/{name}", guest_file(name))
        await agent.shell('sh "$1/install-tools" "$1" now', folder, timeout_s=_WAIT_S)
        for path, content in identity_files():
            await agent.write_file(f"{folder}/{path.rpartition('/')[2]}", content)
        await agent.shell(_PUT_IDENTITY, folder, HELPER_FOLDER, timeout_s=_WAIT_S)
    finally:
        await agent.shell('rm -rf "$1"', folder, timeout_s=_WAIT_S)
    await _probe(agent)
    return [f"/usr/local/bin/{name}" for name in _TOOLS]


async def _probe(agent: Agent) -> None:
    """Any answer of the host's will do, also that there is no such key."""
    outcome = await agent.exec(["/usr/local/bin/vmware-rpctool", "info-get guestinfo.ramet.probe"], timeout_s=_PROBE_S)
    answered = outcome.ok or (outcome.exit_code == 1 and outcome.stderr == b"No value found\n")
    if not answered:
        why = outcome.stderr.decode(errors="replace").strip()[-300:]
        raise GuestError(f"The tools are installed, but cannot reach the host: {why}")
