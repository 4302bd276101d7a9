"""``ramet network``: port groups."""

from __future__ import annotations

from typing import Annotated

import typer

from ramet.cli import complete
from ramet.cli.command import command, group
from ramet.cli.output import Cell
from ramet.cli.session import Session, run_all

app = group(
    "network",
    "Create, list, change and remove port groups.",
    examples=("ramet network create lab --cidr 10.9.0.0/24 --dhcp",),
)

Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="RULE", help="May leave: CIDR[:PORT[-PORT]][/PROTOCOL], or 'any'. Repeatable."),
]
Deny = Annotated[
    list[str] | None,
    typer.Option("--deny", metavar="RULE", help="Must not leave, whatever is allowed. Repeatable."),
]
Default = Annotated[
    str | None,
    typer.Option("--egress-default", metavar="allow|deny", help="For what no rule names; allow from the start."),
]
NetworkName = Annotated[
    str, typer.Argument(metavar="NETWORK", help="Name of a port group.", autocompletion=complete.networks)
]


@command(
    app,
    "create",
    examples=(
        "ramet network create lab --cidr 10.9.0.0/24 --dhcp --nat",
        "ramet network create quarantine --dhcp --isolated",
        "ramet network create copies --dhcp --fenced",
        "ramet network create office --uplink eth1.100",
        "ramet network create build --dhcp --nat --egress-default deny --allow 10.0.0.0/8:443/tcp",
    ),
)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the port group.")],
    cidr: Annotated[str | None, typer.Option("--cidr", metavar="CIDR", help="Its IPv4 network.")] = None,
    dhcp: Annotated[
        bool, typer.Option("--dhcp", help="Hand out addresses; inside the fences where it has some.")
    ] = False,
    nat: Annotated[bool, typer.Option("--nat", help="Let guests reach the world through this host.")] = False,
    isolated: Annotated[bool, typer.Option("--isolated", help="Guests reach each other and nothing else.")] = False,
    fenced: Annotated[
        bool, typer.Option("--fenced", help="Each clone keeps its source's MAC and IP address, in a fence of its own.")
    ] = False,
    uplink: Annotated[
        str | None,
        typer.Option("--uplink", metavar="IFACE[.VLAN]", help="A host's interface or bridge that frames reach."),
    ] = None,
    egress_default: Default = None,
    allow: Allow = None,
    deny: Deny = None,
) -> None:
    """Make a port group: a network of guests in the daemon's own namespace."""
    from ramet.cli import parsing, portgroups
    from ramet.model.requests import CreateNetwork

    fields = {"name": name, "cidr": cidr, "dhcp": dhcp, "nat": nat, "isolated": isolated, "fenced": fenced}
    fields |= {"uplink": uplink, "egress_default": egress_default or "allow"}
    rules = portgroups.egress_rules(allow, deny)
    network = session.client.create_network(parsing.request(CreateNetwork, {**fields, "egress": rules}))
    session.show(network, lambda: session.out.say(Cell(name, "bold"), " created"))


@command(app, "ls", examples=("ramet network ls",))
def ls(session: Session) -> None:
    """List all port groups."""
    from ramet.cli import portgroups

    networks = session.client.list_networks()
    session.show(networks, lambda: portgroups.networks(session.out, networks))


@command(app, "show", examples=("ramet network show lab",))
def show(session: Session, network: NetworkName) -> None:
    """Show a port group: its rules, and who is plugged in."""
    from ramet.cli import portgroups

    session.named.append(("network", network))
    found = session.client.show_network(network)
    session.show(found, lambda: portgroups.network_page(session.out, found, session.client.list_vms()))


@command(
    app,
    "set",
    examples=(
        "ramet network set lab --no-nat",
        "ramet network set build --allow 192.0.2.7:22/tcp",
        "ramet network set build --remove '10.0.0.0/8:443/tcp'",
        "ramet network set build --clear-rules --egress-default allow",
    ),
)
def set_(
    session: Session,
    network: NetworkName,
    dhcp: Annotated[bool | None, typer.Option("--dhcp/--no-dhcp", help="Hand out addresses.")] = None,
    nat: Annotated[bool | None, typer.Option("--nat/--no-nat", help="A way out through this host.")] = None,
    isolated: Annotated[
        bool | None, typer.Option("--isolated/--not-isolated", help="Guests reach each other and nothing else.")
    ] = None,
    egress_default: Default = None,
    allow: Allow = None,
    deny: Deny = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="RULE", help="Take a rule away, as it is shown. Repeatable.")
    ] = None,
    clear_rules: Annotated[bool, typer.Option("--clear-rules", help="Take all rules away first.")] = False,
) -> None:
    """Change a port group at once, also for the guests that are plugged in."""
    from ramet.cli import parsing, portgroups
    from ramet.errors import UsageError
    from ramet.model.requests import ChangeNetwork

    session.named.append(("network", network))
    fields: dict[str, object] = {"dhcp": dhcp, "nat": nat, "isolated": isolated, "egress_default": egress_default}
    fields = {key: value for key, value in fields.items() if value is not None}
    gone = [portgroups.present_rule(session.client.show_network(network), text) for text in remove or ()]
    fields |= {"clear_rules": clear_rules, "add_rules": portgroups.egress_rules(allow, deny), "remove_rules": gone}
    change = parsing.request(ChangeNetwork, fields)
    if change == ChangeNetwork():
        raise UsageError("Nothing to change was given.", hint="See 'ramet network set --help'.")
    changed = session.client.change_network(network, change)
    session.show(changed, lambda: session.out.say(Cell(network, "bold"), " changed"))


@command(app, "rm", examples=("ramet network rm lab",))
def rm(
    session: Session,
    network: Annotated[
        list[str], typer.Argument(metavar="NETWORK...", help="Names.", autocompletion=complete.networks)
    ],
) -> None:
    """Remove port groups that no VM uses."""

    def remove(name: str) -> dict[str, str]:
        session.named.append(("network", name))
        session.client.remove_network(name)
        session.out.say(Cell(name, "bold"), " removed")
        return {"removed": name}

    run_all(session, network, remove)
