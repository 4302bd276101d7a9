"""Tools for guests without an agent: one is installed by ssh, with the guest's own package manager."""

from __future__ import annotations

import shutil
import subprocess

from ramet.cli.session import Session
from ramet.errors import DeadlineError, GuestError, UnsupportedError
from ramet.model.views import VmView

INSTALL_S = 600.0
AGENT_S = 60.0
_BECOME_ROOT = 'if [ "$(id -u)" = 0 ]; then exec sh -s; else exec sudo -n sh -s; fi'
_INSTALL = """
set -e
have() { command -v "$1" >/dev/null 2>&1; }
if have qemu-ga; then :
elif have apt-get; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -y install qemu-guest-agent || { apt-get -q update && apt-get -q -y install qemu-guest-agent; }
elif have dnf; then dnf -y install qemu-guest-agent
elif have yum; then yum -y install qemu-guest-agent
elif have zypper; then zypper --non-interactive install qemu-guest-agent
elif have apk; then apk add qemu-guest-agent
elif have pacman; then pacman -S --noconfirm qemu-guest-agent
else echo 'no package manager that is known here' >&2; exit 1
fi >&2
if have systemctl; then systemctl start qemu-guest-agent.service
elif have rc-service; then rc-update -q add qemu-guest-agent default && rc-service qemu-guest-agent start
else qemu-ga -d
fi >&2
"""


def install_agent(session: Session, view: VmView, user: str, identity: str | None) -> None:
    """Have the guest's package manager install the agent and start it; returns when it answers.

    As root, or as a user whose sudo asks for no password. Raises GuestError when the guest refuses, DeadlineError.
    """
    from ramet.cli.agent import wait_for_agent
    from ramet.cli.guest import ssh_argv

    ssh = shutil.which("ssh")
    if ssh is None:
        raise UnsupportedError("There is no ssh on this host.", hint="Install it: apt install openssh-client.")
    session.client.address_of(view.id)
    argv = ssh_argv(ssh, session.state_dir, view, user, identity, [_BECOME_ROOT])
    try:
        # What a guest's shell says at its start is neither data nor for this terminal.
        done = subprocess.run(
            argv, input=_INSTALL.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=INSTALL_S
        )
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"The guest agent was not installed within {INSTALL_S:.0f} s.") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()[-300:] or f"exit status {done.returncode}"
        raise GuestError(
            f"The guest agent could not be installed in {view.name!r}: {why}",
            hint=f"It needs root, or sudo without a password: try ramet ssh {user}@{view.name}.",
        )
    wait_for_agent(session.client, view.id, AGENT_S)
