"""From what a command raised to an exit code and a sentence: 0, 1 failed, 2 usage, 130 interrupted.

This is the only place that turns errors into words; RAMET_DEBUG=1 lets the traceback through.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from ramet.cli.output import Output
from ramet.errors import RametError

FAILED = 1
USAGE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
"""What a shell reports for a program that SIGPIPE ended."""


def guarded(run: Callable[[], Any]) -> int:
    """The exit code of `run`, whose errors are reported on stderr."""
    try:
        code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return PIPE_CLOSED
    except Exception as error:
        if os.environ.get("RAMET_DEBUG"):
            raise
        return report(error, Output())
    return code if isinstance(code, int) else 0


def report(error: Exception, out: Output) -> int:
    """Say what happened, and the exit code for it."""
    message, hint, code = explain(error)
    out.error(message, hint)
    return code


def explain(error: Exception) -> tuple[str, str | None, int]:
    """Message, hint and exit code of anything a command can raise."""
    if isinstance(error, RametError):
        return error.message, error.hint, error.exit_code
    if hasattr(error, "format_message"):
        return _explain_usage(error)
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        from ramet.model.base import explain as explain_validation

        return explain_validation(error), None, USAGE  # type: ignore[arg-type]
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}.", None, FAILED
    return f"{type(error).__name__}: {error}", "This is a bug in Ramet; RAMET_DEBUG=1 shows where.", FAILED


def _explain_usage(error: Any) -> tuple[str, str | None, int]:
    """Of Typer's own errors: what was wrong, what was meant, where the help is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
        raise SystemExit(USAGE)
    context = getattr(error, "ctx", None)
    see = f"See '{context.command_path} --help'." if context is not None else None
    message, _, guess = str(error.format_message()).strip().partition(" Did you mean ")
    message, _, options = message.partition(" (Possible options: ")
    if options:
        guess = f"{options.rstrip(').')}?"
    guess = guess.replace("', '", "' or '") or _elsewhere(message, context)
    hint = f"Did you mean {guess}" + (f" {see}" if see else "") if guess else see
    return message if message.endswith(".") else f"{message}.", hint, error.exit_code


def _elsewhere(message: str, context: Any) -> str:
    """'start' is no command, but 'vm start' is."""
    match = re.match(r"No such command '(.+)'", message)
    groups = getattr(getattr(context, "command", None), "commands", {})
    found = [f"'{name} {match[1]}'" for name, group in groups.items() if match and match[1] in _commands(group)]
    return f"{' or '.join(found)}?" if found else ""


def _commands(group: Any) -> dict[str, Any]:
    return getattr(group, "commands", {})


def _silence_stdout() -> None:
    """Nobody reads: keep the interpreter's last flush from complaining."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
