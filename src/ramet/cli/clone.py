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
            "ramet clone web test-{1..5} --json           # five, from the same instant",
            "ramet clone web lab --nic net0=lab --connect --set guestinfo.role=lab",
            "ramet clone web web-2 --dry-run --max-stun 50",
        ),
    )(clone)
    command(app, "tree", examples=("ramet tree", "ramet tree --json"))(tree)


def clone(
    session: Session,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A running or frozen VM.", autocompletion=complete.vms)
    ],
    name: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of the clones.")],
    connect: Annotated[bool, typer.Option("--connect", help="Bring the clones' links up.")] = False,
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
    uuid: Annotated[str | None, typer.Option("--uuid", metavar="UUID", help="BIOS UUID, for a single clone.")] = None,
    set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make all checks, change nothing.")] = False,
    max_stun: Annotated[
        float | None,
        typer.Option("--max-stun", metavar="MS", help="Refuse when the source would stand still for longer."),
    ] = None,
) -> None:
    """Clone a running or frozen VM: its memory shared, its disks as deltas, running a moment later.

    All clones of one call start from the same instant. Their links are down unless --connect is given.
    With --json the answer is always a list, one object for each clone: name, id, task, timings_ms.
    """
    from ramet.cli import parsing
    from ramet.errors import UsageError
    from ramet.model.requests import CloneVm

    if connect and disconnect_nics:
        raise UsageError("--connect and --disconnect-nics exclude each other.")
    if uuid and len(name) > 1:
        raise UsageError("--uuid is for a single clone.")
    changes = parsing.nic_changes(nic, mac)
    session.named += [("network", change.network) for change in changes if change.network]
    fields = {
        "names": tuple(name),
        "connect": connect,
        "disconnect_nics": disconnect_nics,
        "nics": changes,
        "uuid": uuid,
        "extra_config": parsing.keys(set_),
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
    session.show(
        [result.model_dump(mode="json", include={"name", "id", "task", "timings_ms"}) for result in results],
        lambda: render.clones(session.out, results),
    )


def results_of(task: Any) -> list[Any]:
    """The clones in a finished task's result."""
    from ramet.model.views import CloneResult

    return [CloneResult.model_validate(item) for item in task.result or []]


def tree(session: Session) -> None:
    """Draw who was cloned from whom. A record for people: no VM depends on another."""
    from ramet.cli import render

    roots = session.client.tree()
    session.show(roots, lambda: render.lineage(session.out, roots))
