"""``ramet network``: port groups."""

from __future__ import annotations

from typing import Annotated

import typer

from ramet.cli import complete
from ramet.cli.command import command, group
from ramet.cli.output import Cell
from ramet.cli.session import Session, run_all

app = group(
    "network", "Create, list and remove port groups.", examples=("ramet network create lab --cidr 10.9.0.0/24 --dhcp",)
)


@command(
    app,
    "create",
    examples=("ramet network create lab --cidr 10.9.0.0/24 --dhcp --nat", "ramet network create quarantine --isolated"),
)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the port group.")],
    cidr: Annotated[str | None, typer.Option("--cidr", metavar="CIDR", help="Its IPv4 network.")] = None,
    dhcp: Annotated[bool, typer.Option("--dhcp", help="Hand out addresses.")] = False,
    nat: Annotated[bool, typer.Option("--nat", help="Let guests reach the world through this host.")] = False,
    isolated: Annotated[bool, typer.Option("--isolated", help="Guests reach each other and nothing else.")] = False,
) -> None:
    """Make a port group: a network of guests in the daemon's own namespace."""
    from ramet.cli import parsing
    from ramet.model.requests import CreateNetwork

    fields = {"name": name, "cidr": cidr, "dhcp": dhcp, "nat": nat, "isolated": isolated}
    network = session.client.create_network(parsing.request(CreateNetwork, fields))
    session.show(network, lambda: session.out.say(Cell(name, "bold"), " created"))


@command(app, "ls", examples=("ramet network ls",))
def ls(session: Session) -> None:
    """List all port groups."""
    from ramet.cli import render

    networks = session.client.list_networks()
    session.show(networks, lambda: render.networks(session.out, networks))


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
