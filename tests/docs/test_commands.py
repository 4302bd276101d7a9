"""Every command in the pages is run, page by page and in order, as a reader would type it."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guest.leaks import left_behind

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page for page in (ROOT / "docs").rglob("*.md") if "```console" in page.read_text() and "reference" not in page.parts
)
PAGE_TIMEOUT_S = 400

pytestmark = [pytest.mark.guest, pytest.mark.timeout(PAGE_TIMEOUT_S + 60)]


def commands(page: Path) -> list[str]:
    """Lines that begin with '$ ' in blocks marked console."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def state_of(page: Path) -> Path:
    found = re.search(r"export RAMET_STATE=(\S+)", page.read_text())
    assert found, "a page with commands names a state folder of its own"
    return Path(found[1])


@pytest.fixture
def state(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The page's folder, empty before and gone after; its daemon ended, and nothing left of either."""
    folder = state_of(request.getfixturevalue("page"))
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    _remove_machines(folder)
    _end_daemon(folder)
    left = left_behind(folder)
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, left


def _remove_machines(folder: Path) -> None:
    """What a page that failed half way has left."""
    ramet = [str(Path(sys.executable).with_name("ramet")), "--state", str(folder), "-q"]
    names = subprocess.run([*ramet, "vm", "ls"], capture_output=True, text=True, timeout=60).stdout.split()
    if names:
        subprocess.run([*ramet, "vm", "rm", "--force", *names], capture_output=True, timeout=120)


def _end_daemon(folder: Path) -> None:
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int((folder / "run" / "daemon.lock").read_text())
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        select.select([pidfd], [], [], 60)
        os.close(pidfd)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work(page: Path, state: Path) -> None:
    script = "set -eu\n" + "\n".join(f"echo '+ {n}' >&2\n{line}" for n, line in enumerate(commands(page)))
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = ["bash", "-c", script]
    done = subprocess.run(
        shell, env=env, capture_output=True, text=True, timeout=PAGE_TIMEOUT_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
