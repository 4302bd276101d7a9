"""Completion: commands, options, choices and names, in the shell's own terms; silence when there is no daemon."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from ramet.cli import complete
from ramet.cli.app import application
from ramet.cli.session import Setup
from tests.unit.cli.cli_kit import FakeClient, setup, vm_view


def completed(line: str, client: FakeClient | None = None, **env: str) -> list[str]:
    """What the shell would offer after `line`, through the real application."""
    from typer.testing import CliRunner

    words = line.split(" ")
    variables = {"_RAMET_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), **env}
    obj = setup(client or FakeClient())
    result = CliRunner().invoke(application, [], prog_name="ramet", env=variables, obj=obj)
    return result.stdout.split()


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={name: vm_view(name) for name in ("web", "web-2", "db")})


def test_commands_and_options() -> None:
    assert completed("ramet vm sta") == ["start"]
    assert "clone" in completed("ramet ")
    assert "_tunnel" not in completed("ramet ")
    assert completed("ramet clone --max") == ["--max-stun"]


def test_choices() -> None:
    assert completed("ramet vm create x --accel ") == ["auto", "kvm", "tcg"]
    assert completed("ramet image build m") == ["micro"]


def test_names_of_vms(client: FakeClient) -> None:
    assert completed("ramet vm show w", client) == ["web", "web-2"]
    assert completed("ramet clone ", client) == ["db", "web", "web-2"]
    assert completed("ramet vm stop db w", client) == ["web", "web-2"]
    assert client.closed


def test_no_daemon_is_started_for_a_completion() -> None:
    asked: list[tuple[Path, bool]] = []

    def connect(state: Path, start: bool) -> Any:
        asked.append((state, start))
        raise OSError

    context = typer.Context(typer.main.get_command(application), obj=Setup(connect=connect))
    context.params["state"] = "/s"
    assert complete.vms(context, "") == []
    assert asked == [(Path("/s"), False)]


def test_a_daemon_that_hangs_does_not_hang_the_shell(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "PATIENCE_S", 0.05)
    monkeypatch.setattr(client, "list_vms", lambda: time.sleep(30))
    context = typer.Context(typer.main.get_command(application), obj=setup(client))
    started = time.monotonic()
    assert complete.vms(context, "") == []
    assert time.monotonic() - started < 10


def test_guest_paths_begin_with_a_vm(client: FakeClient) -> None:
    context = typer.Context(typer.main.get_command(application), obj=setup(client))
    assert complete.guest_files(context, "web") == ["web:", "web-2:"]
    assert complete.guest_files(context, "web:/etc") == []


@pytest.mark.slow
def test_without_a_daemon_the_program_is_silent(tmp_path: Path) -> None:
    env = {**os.environ, "_RAMET_COMPLETE": "complete_bash", "COMP_WORDS": "ramet vm show w", "COMP_CWORD": "3"}
    argv = [sys.executable, "-c", "import sys; from ramet.cli.main import main; sys.argv = ['ramet']; main()"]
    done = subprocess.run(
        argv,
        env={**env, "RAMET_STATE": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert not (tmp_path / "none").exists()
