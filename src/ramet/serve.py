"""The daemon as a program: composes the host with the surfaces that serve it. ``ramet serve`` and the client start it.

python -m ramet.serve [--state DIR] [--SETTING VALUE …] [--stop-vms] [--detach] [--ready-fd N]
run(state_dir, stop_vms=False) -> int               # exit code; blocks
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ramet.errors import RametError
from ramet.host import daemon
from ramet.host.daemon import OpenHost
from ramet.host.settings import Settings, flag, load


def run(
    state_dir: Path | None = None,
    *,
    stop_vms: bool = False,
    ready_fd: int | None = None,
    flags: dict[str, Any] | None = None,
    open_host: OpenHost[Any] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT. `flags`: settings by name; they win over variables and file.

    `open_host` puts another host in the place of the real one, for tests of what stands around it.
    """
    try:
        settings = load({**(flags or {}), "state_dir": state_dir})
    except RametError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        return exc.exit_code
    # Late: a wrong setting is told without loading the rest of the house.
    from ramet.api.server import serve

    surfaces = serve if open_host else _surfaces
    return daemon.run(settings, open_host or _real_host(), surfaces, ready_fd=ready_fd, stop_vms=stop_vms)


def _real_host() -> OpenHost[Any]:
    from ramet.host.service import Host

    return Host.open


@asynccontextmanager
async def _surfaces(host: Any, settings: Settings, on_death: Callable[[], None]) -> AsyncIterator[None]:
    """Everything that serves the host: the native API, and vSphere clients when that is asked for."""
    from ramet.api.server import serve
    from ramet.vsphere.switch import served

    async with served(host), serve(host, settings, on_death):
        yield


def main(argv: Sequence[str] | None = None, open_host: OpenHost[Any] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = vars(_parser().parse_args(argv))
    stop_vms, detach, ready_fd = (arguments.pop(name) for name in ("stop_vms", "detach", "ready_fd"))
    if detach:
        _detach()
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
    return run(arguments.pop("state_dir"), stop_vms=stop_vms, ready_fd=ready_fd, flags=arguments, open_host=open_host)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ramet.serve", description="Run the daemon.", allow_abbrev=False)
    for name, field in Settings.model_fields.items():
        parser.add_argument(flag(name), dest=name, help=(field.description or "").replace("%", "%%"))
    parser.add_argument("--stop-vms", action="store_true", help="Power off all VMs when the daemon ends.")
    parser.add_argument("--detach", action="store_true", help="Go to the background, in a session of its own.")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="Write a byte there when the daemon answers.")
    return parser


def _detach() -> None:
    """Leave the caller's process tree, session and signals. Before anything is opened, and before any thread."""
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")


if __name__ == "__main__":
    sys.exit(main())
