"""The balloon over QMP, against a monitor that can be told what to answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ramet.hypervisor.arguments.memory import balloon
from ramet.hypervisor.qmp import QmpSession
from ramet.hypervisor.qmp_balloon import GuestStats
from tests.unit.hypervisor.qmp_kit import FakeMonitor

WAIT_S = 10.0


@pytest.fixture
def monitor() -> FakeMonitor:
    return FakeMonitor()


@pytest.fixture
async def session(monitor: FakeMonitor, tmp_path: Path) -> AsyncIterator[QmpSession]:
    async with monitor.serve(tmp_path / "qmp"), await QmpSession.connect(tmp_path / "qmp", WAIT_S) as session:
        yield session


async def test_what_the_guest_has_is_asked(monitor: FakeMonitor, session: QmpSession) -> None:
    monitor.answers["query-balloon"] = {"actual": 123 << 20}
    assert await session.balloon_actual_bytes() == 123 << 20


@pytest.mark.parametrize(
    ("available", "at", "told"),
    [
        (64 << 20, 5, GuestStats(64 << 20, 5.0)),
        (64 << 20, 0, None),  # it was asked, and has not answered yet
        ((1 << 64) - 1, 5, None),  # its driver does not know the field
        (-1, 5, None),
    ],
)
async def test_a_guest_says_what_it_could_do_without(
    monitor: FakeMonitor, session: QmpSession, available: int, at: int, told: GuestStats | None
) -> None:
    answer: dict[str, Any] = {"last-update": at, "stats": {"stat-available-memory": available}}
    monitor.answers["qom-get"] = answer
    assert await session.balloon_stats() == told


def test_the_device_gives_back_what_the_guest_freed() -> None:
    assert '"free-page-reporting":true' in balloon()[1]
    assert '"deflate-on-oom":true' in balloon()[1]
