"""The soak in short: a few steps of a walk, with a daemon and a VM killed on the way. See `make soak` for the whole."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from ramet.host.service import Host
from ramet.soak import report
from ramet.soak.__main__ import read_steps, soak
from ramet.soak.world import ANCHOR, Action, Fault, Manner, Step
from tests.guest.machine_kit import furnish, state_folder

STEPS = [
    Step(number=1, action=Action.CLONE, vm=ANCHOR, names=("a", "b")),
    Step(number=2, action=Action.CLONE, vm="b", names=("c",), fault=Fault.KILL_VM, after_ms=40),
    Step(number=3, action=Action.FREEZE, vm="a"),
    Step(number=4, action=Action.SET_POOL, vm="a", size=1, fault=Fault.SECOND, second=Action.REMOVE, after_ms=1000),
    Step(number=5, action=Action.CLONE, vm=ANCHOR, names=("d",), manner=Manner.IDENTITY, fault=Fault.KILL_DAEMON),
]


@pytest.mark.timeout(200)
@pytest.mark.asyncio(loop_scope="session")
async def test_a_short_walk_leaves_nothing_and_loses_nothing(host: Host, tmp_path: Path) -> None:
    with state_folder() as made:
        await furnish(host, made)
        said: list[str] = []
        found = await asyncio.to_thread(
            soak, said.append, tmp_path / "log", 1, replay=STEPS, furnish=lambda folder: _move(made, folder)
        )
    assert not found.problems, (found.problems, said)
    assert found.ok, "\n".join(report.text(found))
    assert sum(counts.done + counts.refused + counts.cut_off for counts in found.actions.values()) == len(STEPS)
    assert found.faults == {Fault.KILL_VM: 1, Fault.SECOND: 1, Fault.KILL_DAEMON: 1}
    assert found.guests_checked >= len(STEPS)
    assert len(found.samples) == 2
    assert read_steps(tmp_path / "log") == STEPS


def _move(made: Path, folder: Path) -> None:
    shutil.copytree(made, folder, symlinks=True)
