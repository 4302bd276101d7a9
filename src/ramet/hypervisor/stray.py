"""Processes over a VM's memory that nobody recorded: forked for somebody who did not hear of it, or is gone.

A VM that is killed right after its fork takes the answer with it, and a daemon its notes; but whoever was forked
serves forks at its socket, and the library in it says who it is.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

from ramet.errors import RametError
from ramet.hypervisor.fork import ForkClient
from ramet.hypervisor.native import NativePaths
from ramet.hypervisor.rundir import RunDir

PROBE_TIMEOUT_S = 5.0


def end_behind(run_dir: RunDir, native: NativePaths) -> int | None:
    """End who serves forks at `run_dir`; its pid, None when nobody does. Blocks until it is gone, or some seconds.

    Descriptors of the socket that the caller has are closed before, else it waits for an answer that nobody gives.
    """
    pid = _pid_behind(run_dir.fork)
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            if not _is_ours(pid, native):  # a number is only what a process says of itself
                return None
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [], PROBE_TIMEOUT_S)
            with contextlib.suppress(ChildProcessError):  # it is our child only if this daemon started its source
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
        finally:
            os.close(fd)
    return pid


def _pid_behind(socket_path: Path) -> int | None:
    if not socket_path.exists():
        return None
    try:
        with ForkClient.connect(socket_path, timeout_s=PROBE_TIMEOUT_S) as client:
            return client.query().pid
    except (RametError, OSError):
        return None


def _is_ours(pid: int, native: NativePaths) -> bool:
    with contextlib.suppress(OSError):
        return f"{native.library.parent}/" in Path(f"/proc/{pid}/maps").read_text()
    return False
