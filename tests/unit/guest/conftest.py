"""An agent as in a guest, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.guest.agent import Agent
from ramet.testing.fake_agent import FakeAgent


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(tmp_path / "agent") as fake:
        yield fake


@pytest.fixture
async def agent(fake: FakeAgent) -> AsyncIterator[Agent]:
    agent = Agent(fake.path, timeout_s=5)
    yield agent
    await agent.close()
