"""Starting the daemon for a user who did not: detached, waited for, and with its own words when it fails."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ramet.errors import DeadlineError, PeerError

START_S = 60.0
"""A first start may have to make directories, a namespace, and to look for a working accelerator."""
_LOST_RACE_S = 10.0


PROGRAM = (sys.executable, "-P", "-m", "ramet.serve")


def start_daemon(state_dir: Path, answers: Callable[[], bool], program: Sequence[str] = PROGRAM) -> None:
    """Start the daemon in a session of its own; returns when it is ready, or `answers()` says that another serves.

    Its log is S/run/daemon.log. PeerError with the daemon's first word of error; DeadlineError when it says nothing.
    """
    run = state_dir / "run"
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise PeerError(f"The state folder {state_dir} cannot be made: {exc.strerror}.", hint="Use --state.") from exc
    log_path = run / "daemon.log"
    log_size = log_path.stat().st_size if log_path.exists() else 0
    if _spawn([*program, "--state", str(state_dir)], log_path) or _wait_until(
        answers, _LOST_RACE_S
    ):  # another's daemon may have been first
        return
    raise PeerError(f"The daemon did not start: {_first_error(log_path, log_size)}", hint=f"Its log is {log_path}.")


def _spawn(command: list[str], log_path: Path) -> bool:
    """True when the daemon said that it is ready; False when it ended before."""
    ready_r, ready_w = os.pipe()
    try:
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path), log_flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, ready_w, 3),
        ]
        # `--detach` forks once more: the child that is ours ends at once, so nobody is left with a zombie.
        pid = _posix_spawn([*command, "--detach", "--ready-fd", "3"], actions)
        os.close(ready_w)
        ready_w = -1
        os.waitpid(pid, 0)
        return _wait_ready(ready_r, log_path)
    finally:
        os.close(ready_r)
        if ready_w >= 0:
            os.close(ready_w)


def _posix_spawn(command: list[str], actions: list[tuple[int | str, ...]]) -> int:
    try:
        return os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    except OSError as exc:  # that of its log, most likely
        raise PeerError(f"The daemon cannot be started: {exc.strerror}.", hint="Use sudo, or --state.") from exc


def _wait_ready(fd: int, log_path: Path) -> bool:
    readable, _, _ = select.select([fd], [], [], START_S)
    if not readable:
        raise DeadlineError(f"The daemon was not ready within {START_S:.0f} s.", hint=f"Its log is {log_path}.")
    return os.read(fd, 1) != b""


def _wait_until(true: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _first_error(log_path: Path, offset: int) -> str:
    """What the daemon wrote since `offset`: the line that begins with 'error:', else its last."""
    try:
        with log_path.open("rb") as file:
            file.seek(offset)
            lines = [line.strip() for line in file.read(1 << 20).decode(errors="replace").splitlines() if line.strip()]
    except OSError as exc:
        return f"its log cannot be read: {exc.strerror}."
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines[-1:] or ["it said nothing."])[0]
