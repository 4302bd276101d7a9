"""``ramet task`` and ``ramet events``: what is going on, and what went on."""

from __future__ import annotations

from typing import Annotated

import typer

from ramet.cli.command import command, group
from ramet.cli.output import Cell
from ramet.cli.session import Session

app = group("task", "Look at tasks and cancel them.", examples=("ramet task ls", "ramet task show 3f2a9c1d5e7b"))

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="Its id; see 'ramet task ls'.")]


def register(root: typer.Typer) -> None:
    command(root, "events", examples=("ramet events", "ramet events --follow", "ramet events --json | jq .kind"))(
        events
    )


@command(app, "ls", examples=("ramet task ls",))
def ls(session: Session) -> None:
    """List what runs and what ended lately."""
    from ramet.cli import render

    tasks = session.client.list_tasks()
    session.show(tasks, lambda: render.tasks(session.out, tasks, session.now()))


@command(app, "show", examples=("ramet task show 3f2a9c1d5e7b", "ramet task show 3f2a9c1d5e7b --wait"))
def show(
    session: Session, task: TaskId, wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False
) -> None:
    """Show a task with the time of every step."""
    from ramet.cli import render

    found = session.client.get_task(task)
    if wait:
        found = session.settle(found)
    session.show(found, lambda: render.task_page(session.out, found, session.now()))


@command(app, "cancel", examples=("ramet task cancel 3f2a9c1d5e7b",))
def cancel(session: Session, task: TaskId) -> None:
    """Cancel a task; what it had begun is undone."""
    session.client.cancel_task(task)
    found = session.client.get_task(task)
    session.show(found, lambda: session.out.say(Cell(task, "bold"), " is being cancelled"))


def events(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones, until Ctrl-C.")] = False,
    since: Annotated[
        int | None, typer.Option("--since", metavar="SEQ", help="Only those after this number.", min=0)
    ] = None,
) -> None:
    """Print events, oldest first; with --follow those to come. With --json one object a line."""
    from ramet.cli import render

    for event in session.client.events(since=since, follow=follow):
        if session.out.as_json:
            session.out.json(event, one_line=True)
        else:
            render.event(session.out, event)
