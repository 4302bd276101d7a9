"""The daemon as a process: its lock, its signals, its death, and who may speak to it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ramet.api import Client
from ramet.api.launch import start_daemon
from ramet.errors import PeerError
from ramet.model.host import TaskState
from tests.unit.api.api_kit import Served

pytestmark = pytest.mark.slow

PROGRAM = (sys.executable, "-m", "tests.unit.api.api_kit")
ROOT = Path(__file__).parents[3]
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def daemon(state_dir: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon, ready; killed at the end if it still runs."""
    ready_r, ready_w = os.pipe()
    process = subprocess.Popen(
        [*PROGRAM, "--state", str(state_dir), "--ready-fd", str(ready_w), *flags],
        pass_fds=[ready_w],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    os.close(ready_w)
    try:
        with os.fdopen(ready_r, "rb") as ready:
            assert ready.read() == b"1"
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
    process.send_signal(number)
    process.communicate(timeout=30)
    return process.returncode


def fails(state_dir: Path, *flags: str) -> tuple[int, str]:
    """Exit code and last line of a daemon that does not start."""
    command = [*PROGRAM, "--state", str(state_dir), *flags]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, text=True, timeout=60)
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_and_leaves_the_vms(state_dir: Path, number: signal.Signals) -> None:
    with daemon(state_dir) as process:
        with Client.connect(state_dir, start_daemon=False) as client:
            assert client.list_vms() == []
        assert end(process, number) == 0
    assert not list((state_dir / "run").glob("*.sock"))
    assert not (state_dir / "stopped").exists()


def test_the_vms_are_stopped_when_asked_for(state_dir: Path) -> None:
    with daemon(state_dir, "--stop-vms") as process:
        assert end(process) == 0
    assert (state_dir / "stopped").exists()


def test_what_is_made_is_for_the_daemons_user_and_group_alone(state_dir: Path) -> None:
    with daemon(state_dir):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (state_dir / "run").iterdir()}
        assert modes["daemon.lock"] == 0o600
        assert {modes["api.sock"], modes["streams.sock"]} <= {0o600, 0o660}
        assert stat.S_IMODE((state_dir / "inventory.db").stat().st_mode) == 0o600
        assert stat.S_IMODE((state_dir / "run").stat().st_mode) == 0o711


def test_a_second_daemon_for_the_same_folder_is_refused(state_dir: Path) -> None:
    with daemon(state_dir) as process:
        code, line = fails(state_dir)
        assert code == 1
        assert line.startswith(f"error: A daemon (process {process.pid}) serves {state_dir} already.")
        with Client.connect(state_dir, start_daemon=False) as client:
            client.list_vms()


def test_two_daemons_live_side_by_side(state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with daemon(state_dir), daemon(state_dir / "b"), Client.connect(state_dir / "b", start_daemon=False) as client:
        assert client.host_view().state_dir == str(state_dir / "b")


def test_a_wrong_setting_is_a_usage_error(state_dir: Path) -> None:
    code, line = fails(state_dir, "--chain-bound", "many")
    assert code == 2
    assert line.startswith("error: The setting chain_bound:")


def test_too_long_a_path_is_said(state_dir: Path) -> None:
    code, line = fails(state_dir / ("x" * 100))
    assert code == 2
    assert "longer than 107 bytes" in line


def test_after_kill_9_tasks_have_ended_and_waiters_learn_it(state_dir: Path) -> None:
    with daemon(state_dir) as first, Client.connect(state_dir, start_daemon=False) as client:
        task = client.selftest()
        first.kill()
        first.wait()
        assert (state_dir / "run" / "api.sock").exists()
        with daemon(state_dir):
            ended = client.wait_task(task)
    assert ended.state is TaskState.ERROR
    assert ended.error is not None
    assert ended.error["message"] == "The daemon was restarted while this ran."


def test_a_follower_of_events_outlives_a_restart(state_dir: Path) -> None:
    with daemon(state_dir) as first, Client.connect(state_dir, start_daemon=False) as client:
        events = client.events(since=0, follow=True)
        assert [next(events).kind, end(first)] == ["host.started", 0]
        with daemon(state_dir):
            assert next(events).seq == 2


def test_systemd_is_told(state_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(state_dir / "notify"))
        manager.settimeout(30)
        with daemon(state_dir, env={"NOTIFY_SOCKET": str(state_dir / "notify")}) as process:
            assert manager.recv(100) == b"READY=1"
            assert end(process) == 0
            assert manager.recv(100) == b"STOPPING=1"


def test_the_log_is_json_where_nobody_watches(state_dir: Path) -> None:
    with daemon(state_dir) as process:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    events = [json.loads(line)["event"] for line in stderr.decode().splitlines()]
    assert events == ["ready", "stopping"]


# Started for the user


def test_a_daemon_is_started_in_the_background_and_is_nobodys_child(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start_daemon(state_dir, lambda: False, PROGRAM)
    pid = int((state_dir / "run" / "daemon.lock").read_text())
    try:
        with Client.connect(state_dir) as client:
            assert client.list_vms() == []
        assert os.getsid(pid) != os.getsid(0)
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    finally:
        watch = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        _wait_end(watch)
    assert '"ready"' in (state_dir / "run" / "daemon.log").read_text()


def _wait_end(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)


def test_a_daemon_that_does_not_start_says_why(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("ramet.api.launch._LOST_RACE_S", 0.0)
    (state_dir / "run" / "daemon.log").write_text("error: an old one\n")
    (state_dir / "settings.toml").write_text("chain_bnd = 5\n")
    with pytest.raises(PeerError, match=r"did not start: .*there is no setting 'chain_bnd'") as caught:
        start_daemon(state_dir, lambda: False, PROGRAM)
    assert "daemon.log" in (caught.value.hint or "")


def test_who_loses_the_race_to_start_uses_the_winners(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with daemon(state_dir):
        start_daemon(state_dir, lambda: True, PROGRAM)


# Who may speak to it


_STRANGER = """
import contextlib, json, os, socket, sys
os.setgroups([int(gid) for gid in sys.argv[2:]])
os.setgid(65534)
os.setuid(65534)
api = socket.socket(socket.AF_UNIX)
try:
    api.connect(sys.argv[1] + "/api.sock")
except OSError as exc:
    sys.exit(type(exc).__name__)
with contextlib.suppress(ConnectionError):  # refused before it asked
    api.sendall(b"GET /v1/vms HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n")
print(api.makefile("rb").readline().decode().strip())
streams = socket.socket(socket.AF_UNIX)
streams.connect(sys.argv[1] + "/streams.sock")
with contextlib.suppress(ConnectionError):
    streams.sendall(b'{"kind": "console", "vm": "web"}\\n')
print(json.loads(streams.makefile().readline())["error"]["code"])
"""


def stranger(run_dir: Path, *gids: int) -> Any:
    command = [sys.executable, "-c", _STRANGER, str(run_dir), *map(str, gids)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@needs_root
def test_another_user_cannot_even_connect(served: Served) -> None:
    served.settings.state_dir.chmod(0o711)
    assert "PermissionError" in stranger(served.settings.state_dir / "run").stderr


@needs_root
def test_another_user_who_gets_through_is_refused_by_credentials(served: Served) -> None:
    served.settings.state_dir.chmod(0o711)
    (served.settings.state_dir / "run").chmod(0o711)
    for path in (served.settings.api_socket, served.settings.streams_socket):
        path.chmod(0o666)
    assert stranger(served.settings.state_dir / "run").stdout.split("\n")[:2] == ["HTTP/1.1 403 Forbidden", "privilege"]


@needs_root
def test_a_member_of_the_group_may(state_dir: Path) -> None:
    import grp

    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, NOBODY))
    served = Served(state_dir, group=group.gr_name)
    served.start()
    try:
        state_dir.chmod(0o711)
        (state_dir / "run").chmod(0o711)
        assert served.settings.api_socket.stat().st_gid == group.gr_gid
        assert stat.S_IMODE(served.settings.api_socket.stat().st_mode) == 0o660
        done = stranger(state_dir / "run", group.gr_gid)
        assert done.stdout.split("\n")[:2] == ["HTTP/1.1 200 OK", "not-found"]
    finally:
        served.stop()
