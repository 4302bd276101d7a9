"""The reference page is the program's own word, and every command is in it with help and an example."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ramet.cli.app import application
from ramet.cli.reference import render
from tests.unit.cli.cli_kit import FakeClient, run

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"

EXPECTED = """
doctor serve demo bench memory version clone try tree ssh forward events
image build|import|ls|rm
vm create|copy|ls|show|start|stop|restart|suspend|resume|freeze|thaw|rename|set|identify|exec|cp|console|screenshot|rm
vm unregister|register
vm disk add|grow|export|rm
vm nic add|set|rm
network create|ls|rm|set|show
pool set|ls|rm
host show|set
user add|ls|rm|passwd|role|unlock
vsphere on|off|show
task ls|show|cancel
tools install
"""


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    group = group or typer.main.get_command(application)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif not command.hidden:
            yield (*path, name), command


ALL = dict(commands())


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text() == render(), "python -m ramet.cli.reference > docs/reference/cli.md"


def test_there_are_exactly_the_promised_commands() -> None:
    first, *groups = [line.split() for line in EXPECTED.split("\n") if line]
    expected: set[tuple[str, ...]] = {(name,) for name in first}
    expected |= {(*line[:-1], name) for line in groups for name in line[-1].split("|")}
    assert set(ALL) == expected


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_and_an_example_that_parses(path: tuple[str, ...]) -> None:
    command = ALL[path]
    assert command.help
    assert len(command.short_help) <= 80
    assert command.epilog
    assert all(parameter.help for parameter in command.params if not getattr(parameter, "hidden", False))
    for line in command.epilog.splitlines():
        words = shlex.split(line.partition("    #")[0].rpartition("| ramet")[2].partition("| jq")[0], comments=True)
        words = words[1:] if words[0] == "ramet" else words
        assert tuple(word for word in words if word in path)[: len(path)], line
        _parse(words)


def _parse(words: list[str]) -> None:
    root: Any = typer.main.get_command(application)
    context = root.make_context("ramet", list(words))
    while hasattr(context.command, "commands"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_of_every_command(path: tuple[str, ...]) -> None:
    result = run(FakeClient(), *path, "--help")
    assert result.exit_code == 0
    assert f"Usage: ramet {' '.join(path)} [OPTIONS]" in result.stdout
    assert "Examples:\n  " in result.stdout
    assert "--state DIR" in result.stdout


def test_choices_are_those_of_the_model() -> None:
    from typing import get_args

    from ramet.cli import devices, image, vm
    from ramet.model.machine import Accelerator, Display, Firmware
    from ramet.model.requests import BuildImage, ExportDisk

    assert get_args(vm.Display) == tuple(Display)
    assert get_args(vm.Firmware) == get_args(image.Firmware) == tuple(Firmware)
    assert get_args(vm.Accel) == tuple(Accelerator)
    assert get_args(devices.Format) == get_args(ExportDisk.model_fields["format"].annotation)
    assert set(get_args(image.Recipe)) == set(get_args(BuildImage.model_fields["recipe"].annotation))
