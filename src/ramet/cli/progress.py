"""Waiting for a task: a bar on a terminal, a line for each step otherwise, nothing when quiet.

Ctrl-C ends the wait, never the task: the user is told whether it goes on, and how to cancel it.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

from ramet.cli.failure import INTERRUPTED
from ramet.cli.output import Output, millis
from ramet.errors import RametError, TaskCancelledError, from_dict
from ramet.model.host import Task, TaskState

if TYPE_CHECKING:
    from ramet.api.client import Client

PATIENCE_S = 0.4
"""A task that ends sooner shows no bar: most clones do, and Rich need not be loaded."""


def wait(client: Client, task: Task, out: Output) -> Task:
    """Wait until the task is final and show how it goes.

    Returns a successful task; raises the task's own error, `TaskCancelledError`, or Exit(130) on Ctrl-C.
    """
    try:
        return succeed(follow(client, task, out))
    except KeyboardInterrupt:
        leave(client, task, out)
        raise typer.Exit(INTERRUPTED) from None


def follow(client: Client, task: Task, out: Output) -> Task:
    """Show how a task goes until it is final, however it ended."""
    if not task.state.is_final:
        task = client.get_task(task.id, wait_s=PATIENCE_S)
    if not task.state.is_final:
        with display(out) as show:
            show(task)
            task = client.wait_task(task, on_update=show)
            show(task)
    return task


def succeed(task: Task) -> Task:
    """The task itself if it went well, else its error raised."""
    if task.state is TaskState.ERROR:
        raise from_dict(task.error or {"message": f"The task {task.id} failed."})
    if task.state is TaskState.CANCELLED:
        raise TaskCancelledError(f"The task {task.id} ({describe(task)}) was cancelled.")
    return task


def leave(client: Client, task: Task, out: Output) -> None:
    """After Ctrl-C: does the task go on?"""
    try:
        task = client.get_task(task.id)
    except (RametError, OSError):
        out.warn(f"Stopped waiting for the task {task.id} ({describe(task)}).")
        return
    if task.state.is_final:
        out.warn(f"The task {task.id} ({describe(task)}) had already ended: {task.state}.")
        return
    out.warn(f"Stopped waiting; the task {task.id} ({describe(task)}) goes on.")
    if task.cancellable:
        out.hint(f"Cancel it with 'ramet task cancel {task.id}'.")
    else:
        out.hint(f"Look at it with 'ramet task show {task.id}'.")


def describe(task: Task) -> str:
    return f"{task.kind} {task.target}".strip()


def display(out: Output) -> Silence | Lines | Bar:
    if out.quiet or (out.as_json and not out.error_terminal):
        return Silence()
    return Bar(out) if out.error_terminal else Lines(out)


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, task: Task) -> None:
        """Take note of a task's newest state."""


class Lines(Silence):
    """A line for each step when it is done, and for what is being done when that changes."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._told: set[str] = set()

    def __call__(self, task: Task) -> None:
        for step in task.steps:
            if step.took_ms is not None:
                self._tell(f"{describe(task)}: {step.name} took {millis(step.took_ms)}")
        if task.doing and not task.state.is_final:
            self._tell(f"{describe(task)}: {task.doing}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._out.note(text)


class Bar(Silence):
    """A Rich progress bar on stderr that goes away when the task is done."""

    def __init__(self, out: Output) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}", style="dim", markup=False),
            console=out.console(error=True),
            transient=True,
        )
        self._row: Any = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, task: Task) -> None:
        total = 100.0 if task.progress_percent > 0 else None
        if self._row is None:
            self._row = self._progress.add_task(describe(task), total=total, doing="")
        doing = task.doing or (task.steps[-1].name if task.steps else "")
        self._progress.update(self._row, completed=task.progress_percent, total=total, doing=doing)
