"""``ramet user``: who may log in from outside, and what they may do there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ramet.cli import complete
from ramet.cli.command import command, group
from ramet.cli.output import Cell, Column, Output, duration
from ramet.cli.session import Session, run_all

if TYPE_CHECKING:
    from ramet.model.access import Credentials, Role, UserView

ROLES = ("administrator", "operator", "read-only")

app = group(
    "user",
    "Users of the vSphere API: who may log in from outside, and what they may do.",
    examples=("ramet user add eve --role operator", "ramet user ls"),
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the user.", autocompletion=complete.users)]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="Name to log in with, like eve or eve@example.org.")]
RoleName = Annotated[
    str,
    typer.Option(
        "--role", metavar="ROLE", help=", ".join(ROLES[:-1]) + f" or {ROLES[-1]}.", autocompletion=lambda: list(ROLES)
    ),
]
Ask = Annotated[bool, typer.Option("--ask", help="Ask for the password, instead of making a random one.")]
PasswordFile = Annotated[
    str | None,
    typer.Option("--password-file", metavar="FILE", help="Take the password from the first line of FILE; - is stdin."),
]


@command(
    app,
    "add",
    examples=("ramet user add eve --role operator", "ramet user add ci --role operator --password-file secret.txt"),
)
def add(
    session: Session,
    name: NewName,
    role: RoleName = "operator",
    ask: Ask = False,
    password_file: PasswordFile = None,
) -> None:
    """Add a user. A random password is made, unless you give one, and shown this once.

    An administrator may do everything, an operator everything with VMs, read-only looks.
    """
    from ramet.cli import parsing
    from ramet.model.access import AddUser

    password = _password(ask, password_file)
    request = parsing.request(AddUser, {"name": name, "role": _role(role), "password": password})
    made = session.client.add_user(request)
    session.show(made, lambda: _tell(session.out, made, "added"))


@command(app, "ls", examples=("ramet user ls", "ramet user ls --json"))
def ls(session: Session) -> None:
    """List all users, their roles, and who is locked after wrong passwords."""
    users = session.client.list_users()
    session.show(users, lambda: _table(session.out, users, session.now()))


@command(app, "rm", examples=("ramet user rm eve",))
def rm(
    session: Session,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names of users.", autocompletion=complete.users)
    ],
) -> None:
    """Remove users; their sessions end."""

    def remove(name: str) -> dict[str, str]:
        session.client.remove_user(name)
        session.out.say("user ", Cell(name, "bold"), " removed")
        return {"removed": name}

    run_all(session, names, remove)


@command(app, "passwd", examples=("ramet user passwd eve", "ramet user passwd eve --ask"))
def passwd(session: Session, name: Name, ask: Ask = False, password_file: PasswordFile = None) -> None:
    """Set a new password: a random one, unless you give one. Sessions of the user end, and so does a lock."""
    set_ = session.client.set_password(name, _password(ask, password_file))
    session.show(set_, lambda: _tell(session.out, set_, "has a new password"))


@command(app, "role", examples=("ramet user role eve read-only",))
def role(
    session: Session,
    name: Name,
    role: Annotated[str, typer.Argument(metavar="ROLE", help=", ".join(ROLES), autocompletion=lambda: list(ROLES))],
) -> None:
    """Change what a user may do; their sessions end."""
    view = session.client.set_role(name, _role(role))
    session.show(view, lambda: session.out.say("user ", Cell(view.name, "bold"), f" is {view.role.value} now"))


@command(app, "unlock", examples=("ramet user unlock eve",))
def unlock(session: Session, name: Name) -> None:
    """Let a user in again who is locked after wrong passwords."""
    view = session.client.unlock_user(name)
    session.show(view, lambda: session.out.say("user ", Cell(view.name, "bold"), " may log in again"))


def _role(text: str) -> Role:
    from difflib import get_close_matches

    from ramet.errors import UsageError
    from ramet.model.access import Role

    if text not in ROLES:
        near = get_close_matches(text, ROLES, n=1)
        raise UsageError(
            f"There is no role {text!r}.", hint=f"Did you mean {near[0]!r}?" if near else f"Roles: {', '.join(ROLES)}."
        )
    return Role(text)


def _password(ask: bool, file: str | None) -> str | None:
    """What the user gives, never in the command line, which others can see. None: none was given."""
    if ask:
        typed: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return typed
    if file is None:
        return None
    import sys
    from pathlib import Path

    from ramet.errors import UsageError

    try:
        text = sys.stdin.readline() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{file} cannot be read: {getattr(exc, 'strerror', None) or exc}.") from exc
    line = text.partition("\n")[0].rstrip("\r")
    if not line:
        raise UsageError(f"There is no password in {'what was piped in' if file == '-' else file}.")
    return line


def _tell(out: Output, made: Credentials, what: str) -> None:
    out.say("user ", Cell(made.name, "bold"), f" {what}")
    show_password(out, made)


def show_password(out: Output, made: Credentials) -> None:
    """That which was made here, with the word that it is not kept."""
    if made.password is not None:
        out.facts([("name", made.name), ("password", Cell(made.password, "bold"))])
        out.note("The password is shown this once. Another: ramet user passwd " + made.name)


def _table(out: Output, users: list[UserView], now: float) -> None:
    columns = (
        Column("name", style="bold"),
        Column("role"),
        Column("sessions", right=True),
        Column("password set", right=True),
        Column("locked", right=True),
    )
    rows = [
        (
            user.name,
            user.role.value,
            str(user.sessions),
            f"{duration(now - user.password_changed_at)} ago",
            f"for {duration(user.locked_until - now)}" if user.locked_until else "",
        )
        for user in users
    ]
    out.table(columns, rows, empty="No users. Add one: ramet user add NAME")
