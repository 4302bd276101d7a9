"""A fault at every step of every workflow, and one judge of what is left. The suite runs some; see CONTRIBUTING.md."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.host.service import Host
from ramet.host.settings import Settings
from tests.guest.faults import unruly
from tests.guest.faults.stage import Stage
from tests.guest.faults.table import cases, perform
from tests.guest.faults.workflows import WORKFLOWS
from tests.guest.machine_kit import furnish, state_folder

ALL = os.environ.get("RAMET_TEST_FAULTS") == "all"
TABLE = os.environ.get("RAMET_TEST_FAULTS_TABLE")
"""Where what came of each case is written, a line of JSON each. Cases that stand in it already are passed over."""
DISK_MIB = 1024


def some() -> Iterator[tuple[str, str, str]]:
    """One case of each workflow: of those that it has, the fault that was least often taken, and the rarest first."""
    everywhere = Counter(fault for _, _, fault in cases())
    taken: Counter[str] = Counter()
    for name in WORKFLOWS:
        mine = [case for case in cases() if case[0] == name]
        order = {case: number * 7 % len(mine) for number, case in enumerate(mine)}
        chosen = min(mine, key=lambda case: (taken[case[2]], everywhere[case[2]], order[case]))
        taken[chosen[2]] += 1
        yield chosen


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of its own for `path`, that can be filled; where none may be mounted, the one that is there."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0755", "ramet-faults", str(path)]
    mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


class Theatre:
    """Builds a stage, and another one when a case has left it in ruins: one failure is not to bring down all others."""

    def __init__(self, host: Host, checker: Path) -> None:
        self._host = host
        self._checker = checker
        self._stack = contextlib.AsyncExitStack()
        self._stage: Stage | None = None

    async def stage(self) -> Stage:
        if self._stage is None:
            folder = self._stack.enter_context(state_folder())
            self._stack.enter_context(small_disk(folder))
            settings: Settings = (await furnish(self._host, folder)).changed(chain_bound=5)
            own = await self._stack.enter_async_context(Host.open(settings))
            self._stack.push_async_callback(own.stop_all_vms)
            self._stage = Stage(own, self._checker, folder)
            await self._stage.open()
        return self._stage

    async def close(self) -> None:
        self._stage = None
        await self._stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def theatre(host: Host, checker: Path) -> AsyncIterator[Theatre]:
    theatre = Theatre(host, checker)
    yield theatre
    await theatre.close()


def written() -> set[tuple[str, str, str]]:
    """The cases that stand in the table already."""
    rows = Path(TABLE).read_text().splitlines() if TABLE and Path(TABLE).exists() else []
    return {(row[0], row[1], row[2]) for row in map(json.loads, rows)}


def due() -> list[tuple[str, str, str]]:
    return [case for case in cases() if case not in written()] if ALL else list(some())


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("name", "step", "fault"), due(), ids=str)
@pytest.mark.asyncio(loop_scope="session")
async def test_a_fault(theatre: Theatre, name: str, step: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = await theatre.stage()
    try:
        outcome = await perform(stage, name, step, fault, monkeypatch)
    except BaseException as exc:
        note(name, step, fault, "failed", str(exc)[:500])
        with contextlib.suppress(Exception):
            await theatre.close()
        raise
    note(name, step, fault, outcome)


def unruly_cases() -> list[tuple[str, str]]:
    """Each behaviour once, each time in another workflow; or all."""
    every = list(unruly.cases())
    if not ALL:
        return [case for number, case in enumerate(every) if number % (len(unruly.BEHAVIOURS) + 1) == 0]
    return [case for case in every if (case[0], unruly.STEP, case[1]) not in written()]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("name", "behaviour"), unruly_cases(), ids=str)
@pytest.mark.asyncio(loop_scope="session")
async def test_a_guest_that_misbehaves(
    theatre: Theatre, name: str, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await theatre.stage()
    try:
        outcome = await unruly.perform(stage, name, behaviour, monkeypatch)
    except BaseException as exc:
        note(name, unruly.STEP, behaviour, "failed", str(exc)[:500])
        with contextlib.suppress(Exception):
            await theatre.close()
        raise
    note(name, unruly.STEP, behaviour, outcome)


def note(*row: str) -> None:
    if TABLE:
        with Path(TABLE).open("a") as file:
            file.write(json.dumps(row) + "\n")
