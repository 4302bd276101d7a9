"""Every way to fail: one sentence, a hint, the right exit code, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ramet import errors
from ramet.errors import RametError, UsageError
from tests.unit.cli.cli_kit import FakeClient, run, task, vm_view


def all_errors(cls: type[RametError] = RametError) -> list[type[RametError]]:
    return [cls, *(deep for sub in cls.__subclasses__() for deep in all_errors(sub))]


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")})


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: str(cls.__name__))
def test_every_error_of_the_tree(client: FakeClient, cls: type[RametError]) -> None:
    client.fails["list_vms"] = cls("It went wrong.", hint="Do this.")
    result = run(client, "vm", "ls")
    assert result.exit_code == (2 if cls is UsageError else 1)
    assert (result.stdout, result.stderr) == ("", "error: It went wrong.\nhint: Do this.\n")


def test_a_bug_is_one_sentence_too(client: FakeClient) -> None:
    client.fails["list_vms"] = ZeroDivisionError("division by zero")
    result = run(client, "vm", "ls")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ZeroDivisionError: division by zero\nhint: ")
    assert "RAMET_DEBUG=1" in result.stderr


def test_ramet_debug_lets_the_traceback_through(client: FakeClient) -> None:
    client.fails["list_vms"] = ZeroDivisionError("division by zero")
    result = run(client, "vm", "ls", env={"RAMET_DEBUG": "1"})
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["clnoe"], "No such command 'clnoe'.", "Did you mean 'clone'? See 'ramet --help'."),
        (["start"], "No such command 'start'.", "Did you mean 'vm start'? See 'ramet --help'."),
        (["vm", "creat"], "No such command 'creat'.", "Did you mean 'create'? See 'ramet vm --help'."),
        (["vm", "qqq"], "No such command 'qqq'.", "See 'ramet vm --help'."),
        (["vm", "ls", "--jsn"], "No such option: --jsn.", "Did you mean --json? See 'ramet vm ls --help'."),
        (["vm", "show"], "Missing argument 'VM'.", "See 'ramet vm show --help'."),
        (["vm", "show", "a", "b"], "Got unexpected extra argument(s) (b).", "See 'ramet vm show --help'."),
    ],
)
def test_usage_errors_say_what_was_meant(client: FakeClient, args: list[str], message: str, hint: str) -> None:
    result = run(client, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {message}\nhint: {hint}\n"


def test_a_group_alone_shows_its_help(client: FakeClient) -> None:
    result = run(client, "vm")
    assert result.exit_code == 2
    assert "create" in result.stderr
    assert "error:" not in result.stderr


def test_escapes_in_a_message_are_made_visible(client: FakeClient) -> None:
    client.fails["list_vms"] = errors.GuestError("The guest said \x1b[31mred.")
    assert run(client, "vm", "ls").stderr == "error: The guest said \\x1b[31mred.\n"


def test_state_may_stand_before_or_after_the_command(client: FakeClient) -> None:
    from pathlib import Path

    from typer.testing import CliRunner

    from ramet.cli.app import application
    from ramet.cli.session import Setup

    asked: list[Path] = []

    def connect(state: Path, start: bool) -> FakeClient:
        asked.append(state)
        return client

    setup = Setup(connect=connect)  # type: ignore[arg-type]
    for args in (
        ["--state", "/a", "vm", "ls"],
        ["vm", "ls", "--state", "/a"],
        ["--state", "/b", "vm", "ls", "--state", "/a"],
    ):
        CliRunner().invoke(application, args, obj=setup, env={"RAMET_STATE": "/env"})
    CliRunner().invoke(application, ["vm", "ls"], obj=setup, env={"RAMET_STATE": "/env"})
    assert asked == [Path("/a")] * 3 + [Path("/env")]


# -- waiting for tasks


RUNNING = task("image.build", "debian", state="running", progress_percent=10, doing="unpack", ended_at=None)


def test_ctrl_c_ends_the_wait_and_says_that_the_task_goes_on(client: FakeClient) -> None:
    client.running = [RUNNING.changed(cancellable=True)]
    client.fails["wait_task"] = KeyboardInterrupt()  # type: ignore[assignment]
    result = run(client, "image", "build", "debian")
    assert result.exit_code == 130
    assert f"the task {RUNNING.id} (image.build debian) goes on." in result.stderr
    assert f"hint: Cancel it with 'ramet task cancel {RUNNING.id}'." in result.stderr


def test_ctrl_c_of_what_cannot_be_cancelled(client: FakeClient) -> None:
    client.running = [RUNNING]
    client.fails["wait_task"] = KeyboardInterrupt()  # type: ignore[assignment]
    assert f"hint: Look at it with 'ramet task show {RUNNING.id}'." in run(client, "image", "build", "debian").stderr


def test_a_cancelled_task_is_a_failure(client: FakeClient) -> None:
    client.running = [RUNNING, RUNNING.changed(state="cancelled")]
    result = run(client, "image", "build", "debian")
    assert (result.exit_code, "was cancelled" in result.stderr) == (1, True)


def test_progress_is_lines_on_stderr_in_plain_output(client: FakeClient) -> None:
    step = {"name": "unpack", "started_ms": 0.0, "took_ms": 1500.0}
    client.running = [RUNNING, RUNNING.changed(doing="checksums", steps=(step,)), task("image.build", "debian")]
    result = run(client, "image", "build", "debian")
    assert result.stdout == "debian built\n"
    assert result.stderr == (
        "image.build debian: unpack\nimage.build debian: unpack took 1.5 s\nimage.build debian: checksums\n"
    )


@pytest.mark.parametrize("flag", ["--json", "-q"])
def test_progress_is_nothing_for_programs(client: FakeClient, flag: str) -> None:
    client.running = [RUNNING, task("image.build", "debian")]
    assert run(client, "image", "build", "debian", flag).stderr == ""


def test_progress_is_a_bar_on_a_terminal(client: FakeClient) -> None:
    client.running = [RUNNING, RUNNING.changed(progress_percent=55), task("image.build", "debian")]
    result = run(client, "image", "build", "debian", terminal=True)
    assert result.exit_code == 0
    assert "image.build debian" in result.stderr
    assert "━" in result.stderr


# -- the real program


def program(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "ramet.cli", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], **env},
    )


@pytest.mark.slow
def test_the_program_has_no_traceback_and_the_right_code(tmp_path: object) -> None:
    done = program("vm", "lss")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: No such command 'lss'.\nhint: Did you mean 'ls'? See 'ramet vm --help'.\n"
    assert program("version").stdout.startswith("ramet ")


@pytest.mark.slow
def test_a_reader_that_went_away_is_no_error() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -P -m ramet.cli --help | true"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_importing_the_commands_loads_neither_rich_nor_the_model() -> None:
    code = (
        "import sys, ramet.cli.app as app; "
        "print([m for m in ('rich', 'httpx', 'pydantic', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
