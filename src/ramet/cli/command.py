"""How commands are declared: examples in the help, the common options everywhere, one place for errors.

A command is a function whose first argument is its `Session`; the rest are Typer parameters. `command` adds
``--state``, ``--json`` and ``--quiet`` to every one, so that they can stand before or after its name.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from ramet.cli.session import Setup, begin

STATE_HELP = "Folder of all state, the daemon's socket included (or RAMET_STATE)."
ROOT_STATE = typer.Option("--state", metavar="DIR", envvar="RAMET_STATE", show_envvar=False, help=STATE_HELP)
STATE = typer.Option("--state", metavar="DIR", help=STATE_HELP)
"""Of a command: without the variable, which must not win over an option before the command."""
JSON = typer.Option("--json", help="Print JSON.")
QUIET = typer.Option("--quiet", "-q", help="No progress and no notes; lists print names alone.")

COMMON = ("state", "as_json", "quiet", "install_completion", "show_completion")
"""Names of the parameters that every command has, and the program's own."""

Function = Callable[..., Any]


ORDER = (
    "demo",
    "doctor",
    "image",
    "vm",
    "clone",
    "pool",
    "memory",
    "host",
    "vsphere",
    "user",
    "tree",
    "ssh",
    "forward",
    "network",
    "task",
    "events",
    "tools",
    "serve",
    "bench",
)
"""Of the commands in the help: the way a newcomer meets them."""


class Helpful:
    """The help of commands and groups: arguments, own options, common options, then examples as written."""

    params: list[Any]
    epilog: str | None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [argument_name(p) for p in self.params if p.param_type_name == "argument"]
        more = ["COMMAND …"] if hasattr(self, "commands") else []
        return ["[OPTIONS]", *arguments, *more]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [(argument_name(p), p.help or "") for p in self.params if p.param_type_name == "argument"]
        own = [p for p in self.params if p.param_type_name == "option" and p.name not in COMMON]
        common = [p for p in self.params if p.name in COMMON]
        helping = [getattr(self, "get_help_option")(ctx)]  # noqa: B009 - TyperCommand's and TyperGroup's alike
        sections = {"Arguments": arguments, "Options": _records(own, ctx), "Common": _records(common + helping, ctx)}
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if hasattr(self, "commands"):
            getattr(self, "format_commands")(ctx, formatter)  # noqa: B009 - TyperGroup's

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            formatter.write("\nExamples:\n")
            for line in self.epilog.splitlines():
                formatter.write(f"  {line}\n")


class Command(Helpful, TyperCommand):
    """A command; its epilog is its examples."""

    def get_help(self, ctx: Any) -> str:
        return coloured(super().get_help(ctx))


class Group(Helpful, TyperGroup):
    """A group; answers with its help when no command is given."""

    def get_help(self, ctx: Any) -> str:
        return coloured(super().get_help(ctx))


class Root(Group):
    """The program itself: runs a command, reports what it raises, and exits with its code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        from ramet.cli.failure import guarded

        if f"_{(prog_name or '').upper()}_COMPLETE" in os.environ:
            return super().main(args, prog_name, complete_var, **extra)
        run = functools.partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        sys.exit(guarded(run))


def argument_name(parameter: Any) -> str:
    """As it stands in the usage line: 'VM', 'NAME...', '[FILE]'."""
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required else f"[{name}]"


def _records(parameters: Sequence[Any], ctx: Any) -> list[tuple[str, str]]:
    return [record for p in parameters if p is not None and (record := p.get_help_record(ctx)) is not None]


def coloured(text: str) -> str:
    """Help in bold and cyan on a terminal, as it is otherwise."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    text = re.sub(r"(?m)^(Usage|[A-Z][a-z]+):", lambda m: typer.style(m[0], bold=True), text)
    text = re.sub(r"(?m)^  (-[\w-]+(?:, -[\w-]+)*)", lambda m: "  " + typer.style(m[1], fg="cyan"), text)
    return re.sub(r"(?m)^  (ramet .*?)(\s+#.*)?$", _example, text)


def _example(match: re.Match[str]) -> str:
    return f"  {typer.style(match[1], fg='green')}{typer.style(match[2] or '', dim=True)}"


def group(name: str, help: str, *, examples: Sequence[str] = ()) -> typer.Typer:
    """An app for a group of commands, to be added to the root."""
    return typer.Typer(
        name=name,
        cls=Group,
        help=help,
        epilog="\n".join(examples),
        context_settings={"max_content_width": 100},
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def command(
    app: typer.Typer,
    name: str,
    *,
    examples: Sequence[str] = (),
    hidden: bool = False,
    passthrough: bool = False,
    foreign_options: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as a command of `app`.

    `passthrough`: everything after the first argument belongs to the guest's command. `foreign_options`: unknown
    options are arguments.
    """

    def decorate(function: Function) -> Function:
        settings: dict[str, Any] = {"max_content_width": 100}
        if passthrough:
            settings["allow_interspersed_args"] = False
        if foreign_options:
            settings["ignore_unknown_options"] = True
        registered = app.command(
            name,
            cls=Command,
            help=inspect.getdoc(function),
            short_help=summary(function),
            epilog="\n".join(examples),
            hidden=hidden,
            context_settings=settings,
        )
        registered(_with_session(function))
        return function

    return decorate


def summary(function: Function) -> str:
    """What a command does in a few words: its docstring up to the first stop."""
    return re.split(r"[.:;]\s", f"{inspect.getdoc(function)} ", maxsplit=1)[0]


def _with_session(function: Function) -> Function:
    """What Typer calls: takes the common options away and gives the function its session."""

    @functools.wraps(function)
    def run(ctx: typer.Context, state: str | None, as_json: bool, quiet: bool, **own: Any) -> Any:
        root = ctx.find_root()
        before = root.params
        session = begin(
            root.obj if isinstance(root.obj, Setup) else Setup(),
            state=state or before.get("state"),
            as_json=as_json or bool(before.get("as_json")),
            quiet=quiet or bool(before.get("quiet")),
        )
        with session:
            return function(session, **own)

    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    common = [
        _keyword("state", Annotated[str | None, STATE], None),
        _keyword("as_json", Annotated[bool, JSON], False),
        _keyword("quiet", Annotated[bool, QUIET], False),
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *common]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
