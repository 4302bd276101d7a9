"""The connection to a guest's agent is kept open between commands; what happens to it meanwhile costs no command."""

from __future__ import annotations

from ramet.errors import StateError
from ramet.guest.agent import Agent
from ramet.testing.fake_agent import FakeAgent


async def test_a_guest_that_stood_still_is_reached_on_the_same_connection(fake: FakeAgent, agent: Agent) -> None:
    await agent.ping()
    agent.hold(lambda: StateError("It froze."))
    agent.release()
    await agent.ping()
    assert fake.connections == 1


async def test_a_guest_that_froze_in_its_stun_is_reached_again(fake: FakeAgent, agent: Agent) -> None:
    await agent.ping()
    async with agent.quiet():
        agent.hold(lambda: StateError("It froze."))
    agent.release()
    await agent.ping()
    assert fake.connections == 1


async def test_a_connection_that_the_other_side_closed_is_opened_again(fake: FakeAgent, agent: Agent) -> None:
    await agent.ping()
    await fake.hang_up()
    await agent.ping()
    assert fake.connections == 2
