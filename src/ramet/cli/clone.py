"""``ramet clone`` and ``ramet tree``: what all of this is about."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ramet.cli import complete
from ramet.cli.command import command
from ramet.cli.options import Set
from ramet.cli.session import Session


def register(app: typer.Typer) -> None:
    """Put the commands of this file into `app`."""
    command(
        app,
        "clone",
        examples=(
            "ramet clone web web-2                        # while web runs",
            "ramet clone web --count 5 --name 'web-{n}'   # five, from the same instant",
            "ramet clone web --count 9 --name 'web-{n}' --customize 'address=10.0.0.{n+9}/24,gateway=10.0.0.1'",
            "ramet clone web lab --nic net0=lab --set guestinfo.role=lab --ttl 2h",
            "ramet clone web copy --bare                  # an exact copy, links down",
            "ramet clone web web-2 --dry-run --max-stun 50",
        ),
    )(clone)
    command(app, "tree", examples=("ramet tree", "ramet tree --json"))(tree)


def clone(
    session: Session,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A running or frozen VM.", autocompletion=complete.vms)
    ],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Names of the clones.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="This many, named after --name.")] = 1,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEMPLATE", help="Like 'web-{n}' or 'web-{n:03}'.")
    ] = None,
    first: Annotated[int, typer.Option("--first", metavar="N", help="Where {n} begins.")] = 1,
    customize: Annotated[
        list[str] | None,
        typer.Option(
            "--customize",
            metavar="KEY=VALUE,...|@FILE",
            help="hostname, domain, dns, address, gateway, net1.address, …; {n} and {name} stand for the clone's.",
        ),
    ] = None,
    bare: Annotated[
        bool, typer.Option("--bare", help="No identity of its own: the guest is left as it is, and links stay down.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="PART", help="Leave out a part of the identity, like ssh-keys. Repeatable."),
    ] = None,
    tcp: Annotated[
        str, typer.Option("--tcp", metavar="POLICY", help="The source's TCP connections: reset, drop or keep.")
    ] = "reset",
    hooks_timeout: Annotated[
        str, typer.Option("--hooks-timeout", metavar="TIME", help="For the guest's hooks, like 30s.")
    ] = "30s",
    identity_timeout: Annotated[
        str, typer.Option("--identity-timeout", metavar="TIME", help="For the guest's acknowledgement.")
    ] = "120s",
    wait_network: Annotated[
        str,
        typer.Option("--wait-network", metavar="TIME", help="For an address, once the links are up; 0 to not wait."),
    ] = "10s",
    quiesce: Annotated[
        bool, typer.Option("--quiesce", help="Hold the guest's file systems during the stun, by its agent.")
    ] = False,
    no_freeze_hooks: Annotated[
        bool, typer.Option("--no-freeze-hooks", help="Do not run the guest's /etc/ramet/freeze.d.")
    ] = False,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="TIME", help="Remove the clones when it is over, like 30m.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="Asking again with the same key does not clone again.")
    ] = None,
    connect: Annotated[bool, typer.Option("--connect", help="With --bare: bring the links up all the same.")] = False,
    disconnect_nics: Annotated[
        bool, typer.Option("--disconnect-nics", help="Leave all links down, whatever else is asked.")
    ] = False,
    nic: Annotated[
        list[str] | None,
        typer.Option("--nic", metavar="NIC=NETWORK", help="Another port group for a card, or 'none'. Repeatable."),
    ] = None,
    mac: Annotated[
        list[str] | None, typer.Option("--mac", metavar="NIC=MAC", help="This address for a card. Repeatable.")
    ] = None,
    add_nic: Annotated[
        list[str] | None, typer.Option("--add-nic", metavar="NETWORK", help="One more card. Repeatable.")
    ] = None,
    add_disk: Annotated[
        list[str] | None, typer.Option("--add-disk", metavar="SIZE", help="One more empty disk. Repeatable.")
    ] = None,
    cpu_limit: Annotated[
        int | None, typer.Option("--cpu-limit", metavar="PERCENT", help="In percent of one core; 0 lifts it.")
    ] = None,
    memory_target: Annotated[
        str | None, typer.Option("--memory-target", metavar="SIZE", help="What the balloon leaves the guest.")
    ] = None,
    uuid: Annotated[str | None, typer.Option("--uuid", metavar="UUID", help="BIOS UUID, for a single clone.")] = None,
    set_: Set = None,
    no_pool: Annotated[bool, typer.Option("--no-pool", help="Make them afresh, whatever is ready.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make all checks, change nothing.")] = False,
    max_stun: Annotated[
        float | None,
        typer.Option("--max-stun", metavar="MS", help="Refuse when the source would stand still for longer."),
    ] = None,
) -> None:
    """Clone a running or frozen VM: its memory shared, its disks as deltas, running a moment later.

    All clones of one call start from the same instant. Each takes on an identity of its own before its links come up:
    random numbers, clock, MAC and IP address, hostname, machine-id, SSH host keys, and the guest's hooks. A clone whose
    guest does not acknowledge that stays off the network. With --json the answer is always a list, one object for each
    clone: name, id, task, timings_ms, and how it went.
    """
    from ramet.cli import parsing
    from ramet.errors import UsageError
    from ramet.model.requests import CloneVm
    from ramet.model.units import parse_duration_s, parse_size_mib

    if bool(names) == bool(name):
        raise UsageError("Give the clones' names, or --name with a template.", hint="See 'ramet clone --help'.")
    changes = parsing.nic_changes(nic, mac)
    session.named += [("network", change.network) for change in changes if change.network]
    fields = {
        "names": tuple(names or ()),
        "name": name,
        "count": count,
        "first": first,
        "key": key,
        "ttl_s": parse_duration_s(ttl) if ttl else None,
        "bare": bare,
        "without": parsing.parts(without),
        "tcp": tcp,
        "customize": parsing.customizations(customize),
        "hooks_timeout_s": parse_duration_s(hooks_timeout),
        "identity_timeout_s": parse_duration_s(identity_timeout),
        "wait_network_s": parse_duration_s(wait_network),
        "quiesce": quiesce,
        "freeze_hooks": not no_freeze_hooks,
        "freeze_hooks_timeout_s": parse_duration_s(hooks_timeout),
        "connect": connect,
        "disconnect_nics": disconnect_nics,
        "nics": changes,
        "add_nics": tuple(parsing.nic(item) for item in add_nic or ()),
        "add_disks": tuple({"size_mib": parse_size_mib(size)} for size in add_disk or ()),
        "cpu_limit_percent": cpu_limit,
        "memory_target_mib": parse_size_mib(memory_target) if memory_target else None,
        "uuid": uuid,
        "extra_config": parsing.keys(set_),
        "pool": not no_pool,
        "dry_run": dry_run,
        "max_stun_ms": max_stun,
    }
    request = parsing.request(CloneVm, fields)
    if dry_run:
        _forecast(session, source, request)
    else:
        _clone(session, source, request)


def _forecast(session: Session, source: str, request: Any) -> None:
    from ramet.cli import render

    answer = session.client.forecast_clone(session.vm(source), request)
    for warning in answer.warnings:
        session.out.warn(warning)
    session.show(answer, lambda: render.forecast(session.out, answer))


def _clone(session: Session, source: str, request: Any) -> None:
    from ramet.cli import render

    task = session.settle(session.client.clone_vm(session.vm(source), request))
    results = results_of(task)
    for warning in dict.fromkeys(text for result in results for text in result.warnings):
        session.out.warn(warning)
    session.show([result.model_dump(mode="json") for result in results], lambda: render.clones(session.out, results))
    _tell_failures(session, results)


def _tell_failures(session: Session, results: list[Any]) -> None:
    """What is good stays and was shown; what is not decides the exit code."""
    for result in results:
        if result.error:
            session.out.error(f"{result.name}: {result.error['message']}", result.error.get("hint"))
        elif result.problem:
            again = f"See its console, then 'ramet vm identify {result.name}'."
            session.out.error(f"{result.name} runs, and stays off the network: {result.problem}", again)
    if any(result.error or result.problem for result in results):
        raise typer.Exit(1)


def results_of(task: Any) -> list[Any]:
    """The clones in a finished task's result."""
    from ramet.model.views import CloneResult

    return [CloneResult.model_validate(item) for item in task.result or []]


def tree(session: Session) -> None:
    """Draw who was cloned from whom. A record for people: no VM depends on another."""
    from ramet.cli import render

    roots = session.client.tree()
    session.show(roots, lambda: render.lineage(session.out, roots))
