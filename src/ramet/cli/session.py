"""One run of the program: where the state is, the client, the output, and the wait for a task."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer

from ramet.cli.output import Output
from ramet.errors import NotFoundError

if TYPE_CHECKING:
    from ramet.api.client import Client

Connect = Callable[[Path, bool], "Client"]
"""State folder, and whether to start a daemon when none runs."""


def connect(state_dir: Path, start_daemon: bool) -> Client:
    from ramet.api.client import Client

    return Client.connect(state_dir, start_daemon=start_daemon)


@dataclass(frozen=True)
class Setup:
    """What a run is made with; tests put their own in."""

    connect: Connect = connect
    output: Callable[..., Output] = Output
    now: Callable[[], float] = time.time


def resolve_state(given: Path | str | None) -> Path:
    """An absolute path of the state folder, the default one where none was given."""
    if given:
        return Path(given).expanduser().absolute()
    from ramet.host.settings import default_state_dir

    return default_state_dir()


def begin(setup: Setup, *, state: str | None, as_json: bool, quiet: bool) -> Session:
    return Session(setup, setup.output(as_json=as_json, quiet=quiet), Path(state) if state else None)


@dataclass
class Session:
    """What a command works with. Connects on first use; use it as a context manager, which disconnects."""

    setup: Setup
    out: Output
    given_state: Path | None = None
    """By option or variable, rather than the default."""
    named: list[tuple[str, str]] = field(default_factory=list)
    """What the user named, for suggestions when it is not found: ('vm', 'web'), ('image', 'debain'), …"""
    _client: Client | None = None

    @property
    def state_dir(self) -> Path:
        return resolve_state(self.given_state)

    @property
    def client(self) -> Client:
        """The daemon's client; starts the daemon when none runs."""
        if self._client is None:
            self._client = self.setup.connect(self.state_dir, True)
        return self._client

    def vm(self, ref: str) -> str:
        """Remember that the user named this VM, and hand it back."""
        self.named.append(("vm", ref))
        return ref

    def now(self) -> float:
        return self.setup.now()

    def show(self, data: Any, render: Callable[[], None]) -> None:
        """The data as JSON when asked for, else rendered for people."""
        if self.out.as_json:
            self.out.json(data)
        else:
            render()

    def settle(self, answer: Any) -> Any:
        """The final task when the answer is a task, else the answer itself. See `ramet.cli.progress.wait`."""
        from ramet.model.host import Task

        if not isinstance(answer, Task):
            return answer
        from ramet.cli.progress import wait

        return wait(self.client, answer, self.out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.help_with(error)
        finally:
            if self._client is not None:
                self._client.close()
                self._client = None

    def help_with(self, error: BaseException | None) -> None:
        """Put near names into the hint of a name that does not exist."""
        if not isinstance(error, NotFoundError):
            return
        from difflib import get_close_matches

        for kind, name in self.named:
            known = self._names(kind) if repr(name) in error.message else [name]
            if name in known:
                continue  # it is something else that is not there
            near = get_close_matches(name, known, n=3)
            guess = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            said = error.hint if error.hint and "Did you mean" not in error.hint else f"See 'ramet {kind} ls'."
            error.hint = f"{guess} {said}".strip()
            return

    def _names(self, kind: str) -> list[str]:
        from ramet.errors import RametError

        lists: dict[str, Callable[[], Any]] = {
            "vm": self.client.list_vms,
            "image": self.client.list_images,
            "network": self.client.list_networks,
        }
        try:
            return [item.name for item in lists[kind]()]
        except (RametError, OSError):
            return []


def run_all(session: Session, refs: Sequence[str], act: Callable[[str], Any]) -> None:
    """`act` on each; a failure does not keep the others from it, is told at once, and decides the exit code.

    With --json the answers are one list, in order; those that failed are left out.
    """
    from ramet.errors import RametError

    if len(refs) == 1:
        answers, code = [act(refs[0])], 0
    else:
        answers, code = [], 0
        for ref in refs:
            try:
                answers.append(act(ref))
            except RametError as error:
                session.help_with(error)
                session.out.error(f"{ref}: {error.message}", error.hint)
                code = max(code, error.exit_code)
    if session.out.as_json:
        session.out.json(answers)
    if code:
        raise typer.Exit(code)


def program() -> list[str]:
    """The command line that starts this program again; -P keeps the current folder out of Python's path."""
    return [sys.executable, "-P", "-m", "ramet.cli"]
