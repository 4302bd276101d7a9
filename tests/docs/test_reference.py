"""Pages that are made from the program are what it makes now, and commands that pages show exist with their options."""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tools import docs, openapi, vsphere_reference

from ramet.cli.app import application
from ramet.cli.reference import render
from tests.docs.pages import DOCS, ROOT, all_pages, blocks

EVERYWHERE = {"--state", "--json", "--quiet", "-q", "--help"}


@pytest.mark.parametrize("path", [*docs.generated(), *openapi.generated()], ids=lambda path: path.name)
def test_a_generated_page_is_not_stale(path: Path) -> None:
    made = {**docs.generated(), **openapi.generated()}
    assert path.read_text() == made[path], "run: python tools/docs.py; python tools/openapi.py"


MAKE = "from tools import vsphere_reference as made; print(*made.generated().values(), sep='', end='')"


def test_the_page_of_the_vsphere_api_is_not_stale() -> None:
    """In a process of its own: pyVmomi's types are known by what was used of them, here by tests before this one."""
    made = subprocess.run(
        [sys.executable, "-c", MAKE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert vsphere_reference.PAGE.read_text() == made.stdout, "run: python tools/vsphere_reference.py"


def test_the_page_of_commands_is_not_stale() -> None:
    page = DOCS / "reference" / "cli.md"
    assert page.read_text() == render(), "run: python -m ramet.cli.reference > docs/reference/cli.md"


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The words of every `ramet …` in the blocks of a page, those that are not run too."""
    for block in blocks(page):
        if block.kind not in ("console", ""):
            continue
        for line in block.text.replace("\\\n> ", "").replace("\\\n", "").splitlines():
            line = line.removeprefix("$ ")
            if line.startswith("ramet ") and "$" not in line:
                yield shlex.split(line, comments=True)[1:]


@functools.cache
def program() -> Any:
    return typer.main.get_command(application)


def problem(words: list[str]) -> str | None:
    """Why the program would not understand these words; None if it would."""
    command = program()
    words = words[: words.index("--")] if "--" in words else list(words)
    if words[:1] == ["--state"]:
        words = words[2:]
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return f"no such command: {' '.join(words[:2])}"
        command = command.commands[words.pop(0)]
    if command.name == "serve":  # its flags are the settings, which have a page and a test of their own
        return None
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | EVERYWHERE
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
    return f"no such option: {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_shows_exist(page: Path) -> None:
    problems = [(words, why) for words in shown_commands(page) if (why := problem(words))]
    assert not problems


def test_a_command_that_does_not_exist_is_found() -> None:
    assert problem(["clone", "web", "--cout", "3"]) == "no such option: --cout"
    assert problem(["pool", "fill"]) == "no such command: fill"
    assert problem(["clone", "web", "--count", "3", "--", "--whatever"]) is None
