"""``ramet try``: a command in a clone that is gone afterwards, and what it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import complete
from ramet.cli.command import command
from ramet.cli.session import Session

if TYPE_CHECKING:
    from ramet.cli.follow import Collected
    from ramet.model.host import Task


def register(app: typer.Typer) -> None:
    """Put the command into the root."""
    command(
        app,
        "try",
        passthrough=True,
        examples=(
            "ramet try web -- dpkg -i /root/app_2.0_all.deb",
            "ramet try --timeout 10m web -- sh -c 'cd /srv/app && make migrate'",
            "ramet try --network trials web -- apt-get -qy upgrade    # a port group with a way out",
            "ramet try --keep --name upgraded web -- /root/upgrade.sh",
        ),
    )(try_)


def try_(
    session: Session,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A running or frozen VM.", autocompletion=complete.vms)
    ],
    argv: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="Command and arguments; no shell in between.")
    ],
    network: Annotated[
        str,
        typer.Option(
            "--network",
            metavar="NAME",
            help="The clone's port group; made, isolated, when there is none of that name.",
            autocompletion=complete.networks,
        ),
    ] = "try",
    keep: Annotated[bool, typer.Option("--keep", help="Do not remove the clone.")] = False,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the clone.")] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Kill the command after this, like 10m.")
    ] = "1h",
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="For the command.")] = None,
) -> None:
    """Try a command in a clone of a VM, and tell what it changed: files, packages, services, open ports.

    The clone is live, on an isolated port group, and removed afterwards; the VM itself goes on and is not changed.
    The command's output is ours, its exit code too; what changed is told on standard error, or all of it with --json.
    """
    from ramet.cli import parsing
    from ramet.cli.follow import Collected
    from ramet.model.trying import TryCommand
    from ramet.model.units import parse_duration_s

    fields = {
        "argv": tuple(argv[1:] if argv[0] == "--" else argv),
        "env": parsing.keys(env, "--env"),
        "network": network,
        "keep": keep,
        "name": name,
        "timeout_s": parse_duration_s(timeout),
    }
    request = parsing.request(TryCommand, fields)
    task = session.client.try_command(session.vm(source), request)
    session.out.note(f"Trying it in a clone of {source} …")
    collected = Collected(session.out)
    _tell(session, _to_the_end(session, task, collected), collected)


def _to_the_end(session: Session, task: Task, collected: Collected) -> Task:
    """Until the clone is removed, too. The first Ctrl-C cancels the trial, the second leaves it alone."""
    from ramet.cli.follow import interrupts
    from ramet.errors import NotFoundError, PeerError

    client = session.client
    with interrupts(lambda count: _cancel(session, task), ready=lambda: True, most=1):
        try:
            for event in client.task_output(task.id):
                collected.take(event)
        except (NotFoundError, PeerError):  # the daemon ended meanwhile: the task says what that came to
            pass
        return client.wait_task(task)


def _cancel(session: Session, task: Task) -> None:
    session.out.note("Cancelling; once more Ctrl-C leaves the trial alone.")
    session.client.cancel_task(task.id)


def _tell(session: Session, task: Task, collected: Collected) -> None:
    from ramet.cli import trial
    from ramet.cli.failure import INTERRUPTED
    from ramet.cli.progress import succeed
    from ramet.model.host import TaskState
    from ramet.model.trying import TryReport

    if task.state is TaskState.CANCELLED:
        session.out.error("The trial was cancelled.")
        raise typer.Exit(INTERRUPTED)
    report = TryReport.model_validate(succeed(task).result)
    for warning in report.warnings:
        session.out.warn(warning)
    if session.out.as_json:
        session.out.json({**report.model_dump(mode="json"), "task": task.id, **collected.as_json()})
    elif not session.out.quiet:
        trial.page(session.out.beside(), report)
    raise typer.Exit(report.exit_code)
