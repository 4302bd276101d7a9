"""The program as a user runs it, on real guests: the demo, and the ways into a guest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.cli.demo_stage import end_process
from tests.guest.leaks import left_behind

pytestmark = pytest.mark.guest

PROGRAM = [sys.executable, "-P", "-m", "ramet.cli"]


def alone(folder: Path) -> dict[str, str]:
    """The environment of a demo whose stage lies in `folder`."""
    return {**{k: v for k, v in os.environ.items() if k != "RAMET_STATE"}, "TMPDIR": str(folder)}


class Ramet:
    """Runs commands on one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, *args: str, stdin: bytes = b"", code: int = 0) -> str:
        argv = [*PROGRAM, "--state", str(self.state), *args]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=240, check=False)
        assert done.returncode == code, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace")


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """One that QEMU's own user may pass through, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="ramet-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def ramet() -> Iterator[Ramet]:
    """A daemon of its own with a micro guest 'web' that answers; both are gone afterwards."""
    with open_folder() as state:
        yield from served(state)


def served(state: Path) -> Iterator[Ramet]:
    ramet = Ramet(state)
    try:
        ramet("image", "build", "micro")
        ramet("vm", "create", "web", "--image", "micro", "--start", "--set", "guestinfo.role=web")
        ramet("vm", "exec", "--wait", "2m", "web", "--", "true")
        yield ramet
    finally:
        for vm in ramet("vm", "ls", "-q").split():
            ramet("vm", "rm", "--force", vm)
        assert end_process(int((state / "run" / "daemon.lock").read_text()), 20)


def test_clone_prints_what_programs_read(ramet: Ramet) -> None:
    clones = json.loads(ramet("clone", "web", "one", "two", "--json"))
    assert [clone["name"] for clone in clones] == ["one", "two"]
    assert all(clone["timings_ms"]["total"] >= clone["timings_ms"]["stun"] > 0 for clone in clones)
    assert "  one  running  live clone\n" in ramet("tree")
    assert {clone["identity"] for clone in clones} == {"acknowledged"}
    page = ramet("vm", "show", "one")
    assert "cloned from  web, while it ran" in page
    assert "identity     its own, one, generation " in page
    assert f"connected  {clones[0]['addresses']['net0']}" in page
    ramet("vm", "rm", "--force", "one", "two")


def test_files_and_commands(ramet: Ramet, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    ramet("vm", "cp", str(tmp_path / "in"), "web:/root/data")
    ramet("vm", "cp", "web:/root/data", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data
    assert ramet("vm", "exec", "-i", "web", "--", "sh", "-c", "cat; exit 3", stdin=b"said\n", code=3) == "said\n"


def test_folders_go_in_and_out(ramet: Ramet, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "data").write_bytes(os.urandom(2_000_000))
    (folder / "run me").write_text("#!/bin/sh\n")
    (folder / "run me").chmod(0o755)
    (folder / "link").symlink_to("run me")
    ramet("vm", "cp", "-r", str(folder), "web:/srv/")
    assert (
        ramet("vm", "exec", "web", "--", "sh", "-c", "cd /srv/site && readlink link && ls deep/er") == "run me\ndata\n"
    )
    ramet("vm", "cp", "-r", "web:/srv/site", str(tmp_path / "back"))
    assert (tmp_path / "back" / "deep/er/data").read_bytes() == (folder / "deep/er/data").read_bytes()
    assert (tmp_path / "back" / "run me").stat().st_mode & 0o777 == 0o755
    ramet("vm", "cp", "-r", "web:/nowhere", str(tmp_path / "none"), code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "site"]


def start(ramet: Ramet, *args: str) -> subprocess.Popen[bytes]:
    argv = [*PROGRAM, "--state", str(ramet.state), *args]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_command_talks_while_it_runs(ramet: Ramet) -> None:
    with start(
        ramet, "vm", "exec", "-i", "web", "--", "sh", "-c", "echo ready; while read x; do echo got $x; done"
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        for word in (b"one", b"two"):
            run.stdin.write(word + b"\n")
            run.stdin.flush()
            assert run.stdout.readline() == b"got " + word + b"\n"
        run.stdin.close()
        assert run.wait(60) == 0


def test_ctrl_c_ends_the_command_in_the_guest(ramet: Ramet) -> None:
    with start(ramet, "vm", "exec", "web", "--", "sh", "-c", "echo ready; sleep 3333") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    left = "ps | grep '[s]leep 3333'; ls -d /run/ramet-exec-* | wc -l"
    assert ramet("vm", "exec", "web", "--", "sh", "-c", left) == "1\n"  # the looker's own


def test_who_vanishes_takes_the_command_along(ramet: Ramet) -> None:
    with start(ramet, "vm", "exec", "web", "--", "sh", "-c", "echo ready; sleep 3434") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        run.kill()
    gone = "while ps | grep -q '[s]leep 3434'; do sleep 0.1; done"
    ramet("vm", "exec", "--timeout", "60s", "web", "--", "sh", "-c", gone)


def test_a_trial_prints_reports_and_leaves_nothing(ramet: Ramet) -> None:
    with start(ramet, "try", "web", "--", "sh", "-c", "echo tried; touch /root/tried; exit 5") as run:
        out, err = run.communicate(timeout=120)
    assert (run.returncode, out) == (5, b"tried\n")
    assert b"+ /root/tried" in err
    assert b"exit status 5 after " in err
    assert ramet("vm", "ls", "-q") == "web\n"


def test_an_interrupted_trial_leaves_nothing(ramet: Ramet) -> None:
    with start(ramet, "try", "web", "--", "sh", "-c", "echo ready; sleep 1000") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 130
    assert ramet("vm", "ls", "-q") == "web\n"


def test_a_trial_survives_no_restart_of_the_daemon(ramet: Ramet) -> None:
    with start(ramet, "try", "web", "--", "sh", "-c", "echo ready; sleep 1000") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        pidfd = os.pidfd_open(int((ramet.state / "run" / "daemon.lock").read_text()))
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        assert run.wait(120) == 1
    assert ramet("vm", "ls", "-q") == "web\n"
    assert "running" in ramet("vm", "show", "web")


def test_a_forwarded_port_reaches_the_guest(ramet: Ramet) -> None:
    ramet("vm", "exec", "web", "--", "sh", "-c", "mkdir /w && echo hello > /w/x && httpd -p 8000 -h /w")
    argv = [*PROGRAM, "--state", str(ramet.state), "forward", "web", "0:8000", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as forward:
        assert forward.stdout is not None
        lines = iter(forward.stdout.readline, b"")
        text = b"".join(line for _, line in zip(range(5), lines, strict=False))
        host, _, port = json.loads(text)["listen"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /x HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        forward.send_signal(signal.SIGINT)
        assert forward.wait(30) == 0
    assert answer.endswith(b"hello\n")


def test_the_console_has_scrollback(ramet: Ramet) -> None:
    ramet("vm", "exec", "web", "--", "sh", "-c", "echo seen on the console > /dev/ttyS0")
    assert "seen on the console" in ramet("vm", "console", "web", "--log")


def test_the_demo_holds_and_leaves_nothing(folder: Path) -> None:
    argv = [*PROGRAM, "demo", "--micro", "--live", "1", "--frozen", "2", "--many", "3", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False, env=alone(folder))
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["ok"] is True
    names = [machine["name"] for machine in data["machines"]]
    by_vsphere = ["by-script", "by-form"]
    assert names == ["origin", "live-1", "frozen-1", "frozen-2", "pod-1", "pod-2", "pod-3", *by_vsphere]
    assert len({one["random"] for one in data["identities"]}) == 6
    # What the frozen origin has, its zygote has as well.
    assert all(machine["memory"]["unique_bytes"] > 0 for machine in data["machines"][1:])
    assert list(folder.iterdir()) == []


def test_an_interrupted_demo_leaves_nothing(folder: Path) -> None:
    argv = [*PROGRAM, "demo", "--micro"]
    seen = []
    null = subprocess.DEVNULL
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=null, text=True, env=alone(folder)) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            seen.append(line)
            if "runs after" in line:
                demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    (stage,) = [Path(line.split()[1]) for line in seen if line.startswith("State: ")]
    assert not any("Delete the source" in line for line in seen)
    assert list(folder.iterdir()) == []
    assert left_behind(stage) == []
