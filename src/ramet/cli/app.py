"""The application: all commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

from ramet.cli import (
    bench,
    clone,
    devices,
    guest,
    host,
    host_settings,
    image,
    memory,
    network,
    pool,
    task,
    try_,
    user,
    vm,
    vsphere,
)
from ramet.cli.command import JSON, QUIET, ROOT_STATE, Root


def _build() -> typer.Typer:
    """Once: the groups are objects of their modules, to which everything is added here."""
    app = typer.Typer(
        name="ramet",
        cls=Root,
        help="Instant clones of running virtual machines.",
        epilog="\n".join(EXAMPLES),
        context_settings={"max_content_width": 100},
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(common)
    clone.register(app)
    try_.register(app)
    app.add_typer(vm.app)
    vm.app.add_typer(devices.disk)
    vm.app.add_typer(devices.nic)
    guest.register(app, vm.app)
    app.add_typer(image.app)
    app.add_typer(network.app)
    app.add_typer(pool.app)
    memory.register(app)
    app.add_typer(task.app)
    task.register(app)
    app.add_typer(host_settings.app)
    app.add_typer(vsphere.app)
    app.add_typer(user.app)
    app.add_typer(host.tools)
    host.register(app)
    bench.register(app)
    return app


EXAMPLES = (
    "ramet demo                                   # see it all, in a few minutes",
    "ramet image build debian",
    "ramet vm create web --image debian --start",
    "ramet clone web web-2                        # while web runs",
    "ramet vm exec web-2 -- uptime",
    "ramet try web -- dpkg -i /root/app.deb       # in a clone that is gone afterwards",
)


def common(
    state: Annotated[str | None, ROOT_STATE] = None,
    as_json: Annotated[bool, JSON] = False,
    quiet: Annotated[bool, QUIET] = False,
) -> None:
    """Instant clones of running virtual machines."""


application = _build()
"""As the program runs it, tests try it and the reference describes it."""
