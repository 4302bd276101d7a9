"""Completion of names through the daemon: quick, and silent about everything that goes wrong."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

PATIENCE_S = 1.0
"""A shell that waits for completion is a shell that hangs."""


def vms(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, lambda client: client.list_vms(), incomplete)


def images(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, lambda client: client.list_images(), incomplete)


def networks(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, lambda client: client.list_networks(), incomplete)


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """VMs that have one."""
    return _names(ctx, lambda client: client.list_pools(), incomplete, "vm")


def users(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, lambda client: client.list_users(), incomplete)


def guest_files(ctx: typer.Context, incomplete: str) -> list[str]:
    """'we' to 'web:'; paths are left to the shell."""
    return [] if ":" in incomplete or "/" in incomplete else [f"{name}:" for name in vms(ctx, incomplete)]


def _names(ctx: typer.Context, ask: Callable[[Any], Any], incomplete: str, field: str = "name") -> list[str]:
    """Names of what `ask` lists, if a daemon runs already and answers at once."""
    from ramet.cli.session import Setup, resolve_state

    root = ctx.find_root()
    setup = root.obj if isinstance(root.obj, Setup) else Setup()
    state = ctx.params.get("state") or root.params.get("state")
    try:
        with _deadline(PATIENCE_S):
            client = setup.connect(resolve_state(state), False)
            try:
                names = [str(getattr(item, field)) for item in ask(client)]
                return sorted(name for name in names if name.startswith(incomplete))
            finally:
                client.close()
    except Exception:
        return []


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """TimeoutError in the main thread after `seconds`."""

    def expire(signum: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
