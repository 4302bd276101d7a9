"""Sessions: how they begin and end, whatever happens in whatever order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.host.audit import Audit
from ramet.host.users import LoginLimits
from ramet.model.access import Role
from ramet.vsphere.access.sessions import MOST_TICKETS, Sessions, UserSession
from ramet.vsphere.types import vim, vmodl
from tests.unit.host.test_users import Clock, made, request

PASSWORD = "correct horse"


class Desk:
    """Sessions over users without a store, with a clock that tests turn."""

    def __init__(self, idle_s: float = 100.0, most: int = 5, most_each: int = 100) -> None:
        self.clock = Clock()
        self.users = made(self.clock, LoginLimits(failures=3, lock_s=50))
        self.audit = Audit(Path("/dev/null"), 1 << 20)
        self.woken = 0
        self.sessions = Sessions(
            self.users, self.audit, lambda session, privilege: session.role is Role.ADMINISTRATOR,
            idle_s=idle_s, most=most, most_each=most_each, now=self.clock, on_end=self._wake,
        )  # fmt: skip
        self.users.watch(self.sessions.end_of)

    def _wake(self) -> None:
        self.woken += 1

    async def with_users(self, *names: str) -> Desk:
        for name in names or ("eve", "mal"):
            await self.users.add(request(name))
        return self

    async def login(self, name: str = "eve", password: str = PASSWORD) -> UserSession:
        return await self.sessions.login(name, password, peer="10.0.0.7", user_agent="test")


async def test_a_session_is_found_by_its_secret_alone() -> None:
    desk = await Desk().with_users()
    one, two = await desk.login(), await desk.login()
    assert desk.sessions.find(one.secret) is one
    assert desk.sessions.find(two.secret) is two
    assert one.key != two.key
    assert desk.sessions.find(one.key) is desk.sessions.find(None) is desk.sessions.find("") is None
    assert len(one.secret) == 40
    assert one.secret not in one.key


@pytest.mark.parametrize(("name", "password"), [("eve", "wrong"), ("nobody", PASSWORD), ("", ""), ("eve", "x" * 1000)])
async def test_every_reason_for_a_refusal_looks_the_same(name: str, password: str) -> None:
    desk = await Desk().with_users()
    with pytest.raises(vim.fault.InvalidLogin) as caught:
        await desk.login(name, password)
    assert caught.value.msg == "Cannot complete login due to an incorrect user name or password."


async def test_a_locked_user_is_refused_in_the_same_words() -> None:
    desk = await Desk().with_users()
    for _ in range(3):
        with pytest.raises(vim.fault.InvalidLogin):
            await desk.login(password="wrong")
    with pytest.raises(vim.fault.InvalidLogin) as caught:
        await desk.login()
    assert "incorrect user name or password" in caught.value.msg
    desk.clock.now += 50
    assert await desk.login()


async def test_a_session_that_waits_does_not_grow_old() -> None:
    desk = await Desk().with_users()
    session = await desk.login()
    desk.sessions.enter(session)
    desk.clock.now += 10_000
    assert desk.sessions.all() == [session]
    desk.sessions.leave(session)
    desk.clock.now += 99
    assert desk.sessions.all() == [session]
    desk.clock.now += 1
    assert desk.sessions.all() == []
    assert session.is_over
    assert desk.woken == 1


async def test_what_belongs_to_a_session_goes_with_it() -> None:
    desk = await Desk().with_users()
    session = await desk.login()
    session.objects["view"] = session.state["x"] = None  # type: ignore[assignment]
    desk.sessions.end(session)
    desk.sessions.end(session)
    assert session.objects == session.state == {}
    assert desk.woken == 1
    assert not session.may("System.View")


async def test_a_user_who_changes_or_goes_loses_all_sessions_and_tickets() -> None:
    desk = await Desk().with_users()
    eves, mals = [await desk.login(), await desk.login()], await desk.login("mal")
    ticket = desk.sessions.ticket(eves[0])
    await desk.users.set_password("eve", "another horse")
    assert desk.sessions.all() == [mals]
    assert all(session.is_over for session in eves)
    with pytest.raises(vim.fault.InvalidLogin):
        desk.sessions.redeem(ticket)
    await desk.users.remove("mal")
    assert desk.sessions.all() == []


async def test_a_ticket_opens_one_further_session_in_time() -> None:
    desk = await Desk().with_users()
    session = await desk.login()
    ticket, late = desk.sessions.ticket(session), desk.sessions.ticket(session)
    clone = desk.sessions.redeem(ticket)
    assert clone.user_name == "eve"
    assert clone.secret != session.secret
    desk.clock.now += 300
    for spent in (ticket, late, "cst-guess"):
        with pytest.raises(vim.fault.InvalidLogin):
            desk.sessions.redeem(spent)


async def test_too_many_sessions_push_out_the_users_own_that_was_left_alone() -> None:
    desk = await Desk(idle_s=1000, most=3).with_users()
    left_alone, mals = await desk.login(), await desk.login("mal")
    desk.clock.now += 30
    await desk.login()
    with pytest.raises(vmodl.fault.SystemError, match="sessions already"):
        await desk.login()  # none was left alone for a minute
    desk.clock.now += 31
    assert await desk.login()
    assert left_alone.is_over
    assert not mals.is_over


async def test_a_user_has_so_many_sessions_and_leaves_room_for_others() -> None:
    desk = await Desk(idle_s=1000, most=10, most_each=2).with_users()
    left_alone, mals = await desk.login(), await desk.login("mal")
    desk.clock.now += 30
    newer = await desk.login()
    with pytest.raises(vmodl.fault.SystemError, match="'eve' has 2 sessions already"):
        await desk.login()
    assert await desk.login("mal")
    desk.clock.now += 31
    newest = await desk.login()
    assert left_alone.is_over
    assert not any(one.is_over for one in (newer, mals, newest))


async def test_where_there_are_too_many_in_all_whoever_has_the_most_gives_way() -> None:
    desk = await Desk(idle_s=1000, most=3).with_users()
    first, second = await desk.login("mal"), await desk.login("mal")
    own = await desk.login()
    desk.sessions.enter(first)
    desk.clock.now += 60
    assert await desk.login()
    assert second.is_over, "the other one is in use"
    assert not own.is_over
    assert not first.is_over
    assert await desk.login("mal")
    assert own.is_over, "eve has the most now"
    with pytest.raises(vmodl.fault.SystemError, match="There are 3 sessions already"):
        await desk.login()


async def test_tickets_of_a_user_are_so_many_and_the_oldest_goes() -> None:
    desk = await Desk(most=50).with_users()
    session, mals = await desk.login(), await desk.login("mal")
    others = desk.sessions.ticket(mals)
    tickets = [desk.sessions.ticket(session) for _ in range(MOST_TICKETS + 2)]
    for gone in tickets[:2]:
        with pytest.raises(vim.fault.InvalidLogin):
            desk.sessions.redeem(gone)
    for good in (*tickets[2:], others):
        assert desk.sessions.redeem(good)


step = st.one_of(
    st.tuples(st.just("wait"), st.integers(0, 150)),
    st.tuples(st.sampled_from(["login", "logout", "find", "enter", "leave", "password", "remove"]), st.integers(0, 3)),
)


@given(st.lists(step, max_size=40))
@settings(deadline=None)
def test_sessions_are_as_a_simple_model_says(steps: list[tuple[str, int]]) -> None:
    """The model: for each session when it was last used, and how many calls run in it."""

    async def play() -> None:
        desk = await Desk(idle_s=100.0, most=1000).with_users()
        known: list[UserSession] = []
        alive: dict[str, float] = {}
        running: dict[str, int] = {}
        names = {"eve", "mal"}

        def expire() -> None:
            for secret, last in list(alive.items()):
                if not running[secret] and desk.clock.now - last >= 100.0:
                    del alive[secret]

        for kind, number in steps:
            expire()
            session = known[number % len(known)] if known else None
            if kind == "wait":
                desk.clock.now += number
            elif kind == "login":
                name = ("eve", "mal")[number % 2]
                if name not in names:
                    with pytest.raises(vim.fault.InvalidLogin):
                        await desk.login(name)
                    continue
                known.append(await desk.login(name, PASSWORD))
                alive[known[-1].secret], running[known[-1].secret] = desk.clock.now, 0
            elif kind in ("password", "remove"):
                name = ("eve", "mal")[number % 2]
                if name in names:
                    await (
                        desk.users.set_password(name, PASSWORD) if kind == "password" else desk.users.remove(name)
                    )
                    names -= {name} if kind == "remove" else set()
                    for gone in known:
                        if gone.user_name == name:
                            alive.pop(gone.secret, None)
            elif session is None:
                continue
            elif kind == "logout":
                desk.sessions.end(session)
                alive.pop(session.secret, None)
            elif kind == "find":
                found = desk.sessions.find(session.secret)
                assert (found is session) is (session.secret in alive)
                if found is not None:
                    alive[session.secret] = desk.clock.now
            elif kind == "enter" and session.secret in alive:
                desk.sessions.enter(session)
                running[session.secret] += 1
            elif kind == "leave" and running[session.secret]:
                desk.sessions.leave(session)
                running[session.secret] -= 1
                if session.secret in alive:
                    alive[session.secret] = desk.clock.now
        expire()
        assert {one.secret for one in desk.sessions.all()} == set(alive)
        assert {one.secret for one in known if not one.is_over} == set(alive)

    asyncio.run(play())
