"""``ramet try``: what is asked, what is shown, and whose exit code it is."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from ramet.cli.output import Output
from ramet.cli.trial import page
from ramet.errors import CapacityError
from ramet.model.host import Task, TaskState
from ramet.model.trying import Changes, FileChange, PackageChange, PortChange, ServiceChange, TryReport, TryTimings
from tests.unit.cli.cli_kit import FakeClient, run, said, vm_view

CHANGES = Changes(
    files=(
        FileChange(path="/etc/app.conf", change="changed", kind="file", size_bytes=2048),
        FileChange(path="/opt/app", change="created", kind="folder"),
        FileChange(path="/opt/app/bin", change="created", kind="folder"),
        FileChange(path="/opt/app/bin/app", change="created", kind="file", size_bytes=5),
        FileChange(path="/opt/app-old", change="deleted", kind="file", size_bytes=7),
    ),
    files_created=3,
    files_changed=1,
    files_deleted=1,
    packages=(PackageChange(name="app", change="upgraded", before="1.0", after="2.0"),),
    services=(ServiceChange(name="app.service", change="failed", state="failed (failed)"),),
    ports=(PortChange(protocol="tcp", address="::", port=80, change="opened", process="a\x1bpp"),),
)


def report(**change: object) -> TryReport:
    base = TryReport(
        source="web",
        clone="web-try-1",
        clone_id="1",
        kept=False,
        network="try",
        exit_code=0,
        changes=CHANGES,
        timings_ms=TryTimings(clone=120, stun=14, before=800, command=2300, after=700, remove=90, total=4100),
    )
    return base.model_copy(update=change)


def client_with(result: TryReport) -> FakeClient:
    ended = Task(id="t1", kind="try", target="web", state=TaskState.SUCCESS, result=result.model_dump(mode="json"))
    return FakeClient(vms={"web": vm_view("web")}, running=[ended])


def test_a_trial_is_asked_for_shown_and_reported() -> None:
    client = client_with(report(exit_code=4))
    client.exec_result = said("hello\n")
    result = run(client, "try", "--network", "lab", "--keep", "--timeout", "5m", "web", "--", "app", "--json")
    ((ref, request),) = client.asked("try_command")
    assert (ref, request.argv, request.network, request.keep) == ("web", ("app", "--json"), "lab", True)
    assert request.timeout_s == 300
    assert (result.exit_code, result.stdout) == (4, "hello\n")
    assert result.stderr == textwrap.dedent("""\
        Trying it in a clone of web …

        exit status 4 after 2.3 s
        files: 3 created, 1 changed, 1 deleted
          ~ /etc/app.conf  2 KiB
          + /opt/app/      2 in it
          - /opt/app-old   7 B
        packages
          ^ app  1.0 -> 2.0
        services
          ! app.service  failed, failed (failed)
        listening ports
          + tcp [::]:80  a\\x1bpp
        took   4.1 s = cloning 120 ms + looking 1.5 s + command 2.3 s + removing 90 ms
        stun   web stood still for 14 ms
        clone  web-try-1 is removed; web is as it was
        """)


def test_all_of_it_as_json() -> None:
    client = client_with(report(exit_code=1))
    client.exec_result = said("no\n", error=True)
    result = run(client, "try", "--json", "web", "x")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["exit_code"], data["stderr"], data["task"]) == (1, 1, "no\n", "t1")
    assert TryReport.model_validate({k: v for k, v in data.items() if k in TryReport.model_fields}) == report(
        exit_code=1
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"changes": Changes()}, "Nothing was changed.\n"),
        ({"timed_out": True, "exit_code": 124}, "killed when its time was over, after 2.3 s"),
        ({"signal": 9, "exit_code": 137}, "signal 9 ended the command"),
        ({"kept": True}, "web-try-1 is kept; 'ramet vm rm --force web-try-1' removes it"),
        ({"changes": None, "changes_problem": "No."}, "warning: What changed is not known: No."),
    ],
)
def test_other_ends(change: dict[str, object], text: str) -> None:
    assert text in run(client_with(report(**change)), "try", "web", "x").stderr


def test_quiet_is_quiet_and_failures_are_told() -> None:
    assert run(client_with(report()), "try", "-q", "web", "x").stderr == ""
    client = client_with(report())
    client.fails["try_command"] = CapacityError("Memory is short.")
    result = run(client, "try", "web", "x")
    assert (result.exit_code, result.stderr) == (1, "error: Memory is short.\n")


def test_a_cancelled_trial() -> None:
    client = client_with(report())
    client.running = [Task(id="t1", kind="try", target="web", state=TaskState.CANCELLED)]
    result = run(client, "try", "web", "x")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "error: The trial was cancelled.")


def test_long_lists_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    files = tuple(FileChange(path=f"/f{n:03}", change="created", kind="file", size_bytes=1) for n in range(100))
    page(Output(terminal=False), report(changes=Changes(files=files, files_created=100)))
    printed = capsys.readouterr().out
    assert "… and 70 more; --json tells all" in printed
    assert printed.count("+ /f") == 30


def test_ctrl_c_is_handed_on_and_the_wait_goes_on() -> None:
    code = """
import os, signal, threading
from ramet.cli.follow import interrupts
got = threading.Event()
def act(count):
    print("handed on", count, flush=True)
    got.set()
with interrupts(act, ready=lambda: True, most=1):
    os.kill(os.getpid(), signal.SIGINT)
    assert got.wait(20)
    print("goes on", flush=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(20)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["handed on 1", "goes on", "interrupted"]
