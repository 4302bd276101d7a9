"""The reference of all commands, in Markdown, from the application itself.

python -m ramet.cli.reference > docs/reference/cli.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from ramet.cli.app import application
from ramet.cli.command import COMMON, argument_name

HEAD = """\
# Commands

Generated from the program: `python -m ramet.cli.reference`.

## Everywhere

| Option | Meaning |
|---|---|
| `--state DIR` | Folder of all state, the daemon's socket included. Also `RAMET_STATE`. |
| `--json` | Print one JSON document; `events` prints an object a line. |
| `--quiet`, `-q` | No progress and no notes; lists print names alone. |

They stand before or after the command. The daemon is started when none runs; `ramet serve` runs it in the foreground.

Data goes to standard output; progress, notes and errors to standard error. On a terminal there are tables, colours
and progress bars; `NO_COLOR` takes the colours away. Otherwise text is plain and aligned, without lines around it.

| Exit code | Meaning |
|---|---|
| 0 | Done. |
| 1 | Failed: `error:` says what is wrong, `hint:` what to do. `RAMET_DEBUG=1` adds the traceback. |
| 2 | The command line is wrong; nothing was asked of the daemon. |
| 130 | Ctrl-C. It ends the wait, not the task: the message says whether the task goes on, and how to cancel it. |

`ramet vm exec` has the exit code of the guest's command, and 128 + N when signal N ended it. `ramet doctor` has 1 when
something is missing without which no VM can be made or cloned.

`ramet --install-completion` installs completion for bash, zsh, fish or PowerShell; names of VMs, images and port groups
are completed while a daemon runs.

## Shapes for programs

`ramet clone --json` prints a list, also of a single clone, with an object for each:

```json
[
  {
    "name": "web-2",
    "id": "5a1c0f3b9d2e",
    "task": "c0ffee123456",
    "timings_ms": {
      "check": 1.2, "prepare": 18.0, "stun": 14.1, "fork": 3.0,
      "qemu": 55.0, "load": 20.3, "running": 1.9, "total": 131.0
    }
  }
]
```

Commands on several VMs print a list of what they are now; lists print lists; `show` prints an object. The objects are
those of the API.
"""


def render(app: typer.Typer = application) -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app)
    context = typer.Context(root, info_name="ramet")
    sections = [HEAD, *_sections(root, context, "ramet")]
    return "\n".join(sections).rstrip() + "\n"


def _sections(group: Any, context: Any, path: str) -> Iterator[str]:
    """Every visible command below a group, groups of groups included."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "commands"):
            yield f"## {path} {name}\n\n{_text(command)}\n"
            yield from _sections(command, inner, f"{path} {name}")
        else:
            yield _command(command, inner, f"{path} {name}")


def _command(command: Any, context: Any, path: str) -> str:
    depth = "##" if path.count(" ") == 1 else "###"
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"{depth} {path}\n", f"```text\n{usage}\n```\n", f"{_text(command)}\n"]
    rows = [*_arguments(command), *_options(command, context)]
    if rows:
        parts.append("| | |\n|---|---|")
        parts += [f"| `{_escape(name)}` | {_escape(help_)} |" for name, help_ in rows]
        parts.append("")
    if command.epilog:
        parts.append(f"```sh\n{command.epilog}\n```\n")
    return "\n".join(parts)


def _text(command: Any) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help or ""))


def _arguments(command: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            yield argument_name(parameter), parameter.help or ""


def _options(command: Any, context: Any) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name not in COMMON:
            record = parameter.get_help_record(context)
            if record is not None:
                yield record[0], " ".join(record[1].split())


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
