"""Options and arguments that several commands share, with their completion."""

from __future__ import annotations

from typing import Annotated

import typer

from ramet.cli import complete

Vm = Annotated[str, typer.Argument(metavar="VM", help="Name or id of the VM.", autocompletion=complete.vms)]
Vms = Annotated[list[str], typer.Argument(metavar="VM...", help="Names or ids of VMs.", autocompletion=complete.vms)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A configuration key the guest can read, like guestinfo.role=web; =@FILE reads it.",
    ),
]
Wait = Annotated[str, typer.Option("--timeout", metavar="TIME", help="How long to wait, like 30s or 5m.")]
