"""The options of ``ramet clone``, one type each: what it asks is long, and what it does is short."""

from __future__ import annotations

from typing import Annotated

import typer

from ramet.cli import complete

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A running or frozen VM.", autocompletion=complete.vms)]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Names of the clones.")]
Count = Annotated[int, typer.Option("--count", "-n", metavar="N", help="This many, named after --name.")]
Name = Annotated[str | None, typer.Option("--name", metavar="TEMPLATE", help="Like 'web-{n}' or 'web-{n:03}'.")]
First = Annotated[int, typer.Option("--first", metavar="N", help="Where {n} begins.")]
Customize = Annotated[
    list[str] | None,
    typer.Option(
        "--customize",
        metavar="KEY=VALUE,...|@FILE",
        help="hostname, domain, dns, address, gateway, net1.address, …; {n} and {name} stand for the clone's.",
    ),
]
Bare = Annotated[
    bool, typer.Option("--bare", help="No identity of its own: the guest is left as it is, and links stay down.")
]
Without = Annotated[
    list[str] | None,
    typer.Option("--without", metavar="PART", help="Leave out a part of the identity, like ssh-keys. Repeatable."),
]
Tcp = Annotated[str, typer.Option("--tcp", metavar="POLICY", help="The source's TCP connections: reset, drop or keep.")]
HooksTimeout = Annotated[str, typer.Option("--hooks-timeout", metavar="TIME", help="For the guest's hooks, like 30s.")]
IdentityTimeout = Annotated[
    str, typer.Option("--identity-timeout", metavar="TIME", help="For the guest's acknowledgement.")
]
WaitNetwork = Annotated[
    str,
    typer.Option("--wait-network", metavar="TIME", help="For an address, once the links are up; 0 to not wait."),
]
Quiesce = Annotated[
    bool, typer.Option("--quiesce", help="Hold the guest's file systems during the stun, by its agent.")
]
NoFreezeHooks = Annotated[bool, typer.Option("--no-freeze-hooks", help="Do not run the guest's /etc/ramet/freeze.d.")]
Ttl = Annotated[str | None, typer.Option("--ttl", metavar="TIME", help="Remove the clones when it is over, like 30m.")]
Key = Annotated[
    str | None, typer.Option("--key", metavar="KEY", help="Asking again with the same key does not clone again.")
]
Connect = Annotated[bool, typer.Option("--connect", help="With --bare: bring the links up all the same.")]
DisconnectNics = Annotated[
    bool, typer.Option("--disconnect-nics", help="Leave all links down, whatever else is asked.")
]
Nic = Annotated[
    list[str] | None,
    typer.Option("--nic", metavar="NIC=NETWORK", help="Another port group for a card, or 'none'. Repeatable."),
]
Mac = Annotated[list[str] | None, typer.Option("--mac", metavar="NIC=MAC", help="This address for a card. Repeatable.")]
AddNic = Annotated[list[str] | None, typer.Option("--add-nic", metavar="NETWORK", help="One more card. Repeatable.")]
AddDisk = Annotated[
    list[str] | None, typer.Option("--add-disk", metavar="SIZE", help="One more empty disk. Repeatable.")
]
CpuLimit = Annotated[
    int | None, typer.Option("--cpu-limit", metavar="PERCENT", help="In percent of one core; 0 lifts it.")
]
MemoryTarget = Annotated[
    str | None, typer.Option("--memory-target", metavar="SIZE", help="What the balloon leaves the guest.")
]
Uuid = Annotated[str | None, typer.Option("--uuid", metavar="UUID", help="BIOS UUID, for a single clone.")]
NoPool = Annotated[bool, typer.Option("--no-pool", help="Make them afresh, whatever is ready.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Make all checks, change nothing.")]
MaxStun = Annotated[
    float | None,
    typer.Option("--max-stun", metavar="MS", help="Refuse when the source would stand still for longer."),
]
