"""Where the pages' commands are run: one daemon for all of them, a shell and a folder for each page."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guest.leaks import left_behind

CLIENTS = Path(__file__).parents[2] / ".venv-clients"
"""Ansible, where tools/clients.sh has put it."""
KEPT_IMAGES = {"micro"}
"""Built once for all pages."""
END_S = 60.0


class Shell:
    """A bash that runs commands one after the other, background jobs included, as a reader's does."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder = folder
        self.path = env["PATH"]
        self._done_r, done_w = os.pipe()
        self._process = subprocess.Popen(
            ["bash", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=folder, env=env, pass_fds=[done_w], start_new_session=True, text=True,
        )  # fmt: skip
        os.close(done_w)
        self._done_w = done_w
        self._count = 0

    def run(self, command: str, timeout_s: float) -> tuple[int, str]:
        """Exit status, and what was printed to either stream. TimeoutError after `timeout_s`."""
        self._count += 1
        script, output = self._folder / f".{self._count}.sh", self._folder / f".{self._count}.out"
        script.write_text(command + "\n", encoding="utf-8")
        assert self._process.stdin is not None
        # Closed for the command: the daemon that it may start must not keep it.
        run = f". ./{script.name} >{output.name} 2>&1 </dev/null {self._done_w}>&-"
        self._process.stdin.write(f"{run}; echo $? >&{self._done_w}\n")
        self._process.stdin.flush()
        readable, _, _ = select.select([self._done_r], [], [], timeout_s)
        printed = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        if not readable:
            raise TimeoutError(f"{command!r} has not ended after {timeout_s:.0f} s: {printed[-2000:]}")
        status = os.read(self._done_r, 16).decode().strip()
        return int(status or 255), output.read_text(encoding="utf-8", errors="replace")

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """End the shell and every job that it still has."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self._done_r)


class Workshop:
    """The state folder that all pages share, and the daemon that their first command starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "s"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAMET_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:{CLIENTS / 'bin'}",
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(CLIENTS / "collections"),
            "HOME": str(folder / "home"),
            "RAMET_STATE": str(self.state_dir),
        }
        (folder / "home").mkdir()

    def ramet(self, *arguments: str) -> list[str]:
        """Run a command quietly; the words it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "ramet.cli", *arguments, "-q"],
            env=self.env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout.split()

    def clear(self) -> None:
        """What a page has left, whether it succeeded or not: the next one finds the host as a new user does."""
        self.ramet("vsphere", "off")
        if users := self.ramet("user", "ls"):
            self.ramet("user", "rm", *users)
        if vms := self.ramet("vm", "ls"):
            self.ramet("vm", "rm", "--force", *vms)
        if networks := set(self.ramet("network", "ls")) - {"default"}:
            self.ramet("network", "rm", *networks)
        self.ramet("vsphere", "off")
        if users := self.ramet("user", "ls"):
            self.ramet("user", "rm", *users)
        if images := set(self.ramet("image", "ls")) - KEPT_IMAGES:
            self.ramet("image", "rm", *images)

    def end_daemon(self) -> None:
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pidfd = os.pidfd_open(int((self.state_dir / "run" / "daemon.lock").read_text()))
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            select.select([pidfd], [], [], END_S)
            os.close(pidfd)


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """Everything in one short folder (sockets live in it); afterwards nothing of it may be left on the machine."""
    workshop = Workshop(Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp")))
    workshop.folder.chmod(0o755)
    yield workshop
    workshop.clear()
    workshop.end_daemon()
    left = _settled(workshop.state_dir)
    shutil.rmtree(workshop.folder, ignore_errors=True)
    assert not left, left


def _settled(state_dir: Path) -> list[str]:
    """What is left once processes that were told to end had a moment to do so."""
    deadline = time.monotonic() + 5
    while (left := left_behind(state_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture
def shell(workshop: Workshop) -> Iterator[Shell]:
    folder = Path(tempfile.mkdtemp(prefix="page-", dir=workshop.folder))
    shell = Shell(folder, workshop.env)
    yield shell
    shell.close()
    workshop.clear()
