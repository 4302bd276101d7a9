"""Users: names, passwords, roles; locks, whatever comes in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from ramet.errors import BusyError, ConflictError, NotFoundError, StateError, UsageError
from ramet.host.inventory import Inventory, Table
from ramet.host.lockout import Lockout
from ramet.host.sqlite_store import SqliteStore
from ramet.host.users import Hasher, LoginLimits, Users, random_password
from ramet.model.access import AddUser, Role, User, parse_listen, user_name


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class PlainHasher(Hasher):
    """What Argon2 does, without its cost."""

    async def hash(self, password: str) -> str:
        return f"hash of {password}"

    async def verify(self, hashed: str, password: str) -> bool:
        for _ in range(3):
            await asyncio.sleep(0)
        return hashed == f"hash of {password}"


class Shelf(Table[User]):
    """A table without a store."""

    def __init__(self) -> None:
        self.items: dict[str, User] = {}
        self._items, self._what = self.items, "user"
        self.slowness = 0
        """Turns of the loop until a change is there, as with a store."""

    async def add(self, item: User) -> None:
        self.items[item.name] = item

    async def put(self, item: User) -> None:
        for _ in range(self.slowness):
            await asyncio.sleep(0)
        self.items[item.name] = item

    async def remove(self, key: str) -> None:
        self.items.pop(key, None)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Inventory]:
    store = await SqliteStore.open(path / "inventory.db")
    try:
        async with Inventory.open(store) as inventory:
            yield inventory
    finally:
        await store.aclose()


def made(clock: Clock | None = None, limits: LoginLimits | None = None) -> Users:
    return Users(Shelf(), limits or LoginLimits(), clock or Clock(), PlainHasher())


def request(name: str, role: Role = Role.OPERATOR, password: str | None = "correct horse") -> AddUser:
    return AddUser(name=name, role=role, password=SecretStr(password) if password else None)


async def test_a_user_outlives_the_daemon_and_only_a_hash_of_the_password_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as inventory:
        users = Users(inventory.users)
        assert (await users.add(request("Eve"))).password is None
    async with opened(tmp_path) as inventory:
        users = Users(inventory.users)
        found = await users.check("eve", "correct horse")
        assert found is not None
        assert found.role is Role.OPERATOR
        assert found.password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert await users.check("eve", "correct hors") is None
    assert b"correct horse" not in (tmp_path / "inventory.db").read_bytes()


async def test_a_random_password_is_told_once_and_lets_in() -> None:
    users = made()
    told = await users.add(request("eve", password=None))
    assert told.password is not None
    assert len(told.password) == 20
    assert await users.check("eve", told.password)
    assert all(told.password not in str(view) for view in users.views())


async def test_the_first_administrator_is_made_only_where_there_is_nobody() -> None:
    users = made()
    first = await users.first_administrator()
    assert first is not None
    assert first.name == "administrator"
    assert await users.first_administrator() is None
    assert users.views()[0].role is Role.ADMINISTRATOR


@pytest.mark.parametrize(
    "said", ["administrator", "Administrator@vsphere.local", "VSPHERE.LOCAL\\Administrator", " administrator "]
)
async def test_the_home_domain_may_be_left_off(said: str) -> None:
    users = made()
    await users.add(request("administrator@vsphere.local"))
    assert await users.check(said, "correct horse")


@pytest.mark.parametrize(
    "name", ["", "-eve", "eve ", "a b", "a/b", "a@b@c", "é", "a" * 70, "..", "a\nb", "@vsphere.local"]
)
def test_names_have_a_rule(name: str) -> None:
    if name.strip() == name:
        with pytest.raises(ValueError, match="usable name"):
            user_name(name)


@given(st.text(max_size=80))
def test_a_name_that_is_taken_is_its_own_canonical_form(text: str) -> None:
    try:
        name = user_name(text)
    except ValueError:
        return
    assert user_name(name) == name
    assert name.isascii()
    assert "/" not in name


async def test_names_are_unique_and_known() -> None:
    users = made()
    await users.add(request("eve"))
    with pytest.raises(ConflictError, match="'eve' already"):
        await users.add(request("EVE"))
    with pytest.raises(NotFoundError) as caught:
        await users.remove("evee")
    assert caught.value.hint == "Did you mean 'eve'?"
    with pytest.raises(UsageError, match="usable name"):
        await users.unlock("no such/name")


async def test_the_last_administrator_stays_while_there_are_others() -> None:
    users = made()
    await users.add(request("root", Role.ADMINISTRATOR))
    await users.add(request("eve"))
    with pytest.raises(StateError, match="last administrator"):
        await users.remove("root")
    with pytest.raises(StateError, match="last administrator"):
        await users.set_role("root", Role.OPERATOR)
    await users.set_role("eve", Role.ADMINISTRATOR)
    await users.remove("root")
    await users.remove("eve")
    assert users.views() == []


async def test_sessions_are_told_to_end_with_what_they_stood_on() -> None:
    users, gone = made(), list[str]()
    await users.add(request("root", Role.ADMINISTRATOR))
    await users.add(request("eve"))
    stop = users.watch(gone.append)
    await users.set_role("eve", Role.OPERATOR)
    assert gone == []  # it is one already
    await users.set_role("eve", Role.READ_ONLY)
    await users.set_password("eve", "another horse")
    await users.remove("eve")
    assert gone == ["eve"] * 3
    stop()
    await users.remove("root")
    assert len(gone) == 3


async def test_a_new_password_takes_the_old_ones_place_at_once() -> None:
    users = made()
    await users.add(request("eve"))
    assert await users.check("eve", "correct horse")  # and now it is known without hashing
    told = await users.set_password("eve", None)
    assert told.password is not None
    assert await users.check("eve", "correct horse") is None
    assert await users.check("eve", told.password)
    with pytest.raises(UsageError, match="8 to 256"):
        await users.set_password("eve", "short")


async def test_a_password_that_was_right_is_known_for_a_while_without_hashing() -> None:
    clock = Clock()
    users = made(clock)
    await users.add(request("eve"))
    verified = 0
    verify = users.hasher.verify

    async def counted(hashed: str, password: str) -> bool:
        nonlocal verified
        verified += 1
        return await verify(hashed, password)

    users.hasher.verify = counted  # type: ignore[method-assign]
    for _ in range(10):
        assert await users.check("eve", "correct horse")
    assert verified == 1
    assert await users.check("eve", "correct hors") is None
    clock.now += 301
    assert await users.check("eve", "correct horse")
    assert verified == 3


async def test_many_logins_of_one_user_at_once_cost_one_verification() -> None:
    users = made()
    await users.add(request("eve"))
    verified: list[str] = []
    verify = users.hasher.verify

    async def counted(hashed: str, password: str) -> bool:
        verified.append(password)
        return await verify(hashed, password)

    users.hasher.verify = counted  # type: ignore[method-assign]
    found = await asyncio.gather(*(users.check("eve", "correct horse") for _ in range(64)))
    assert all(found)
    assert verified == ["correct horse"]
    impatient = asyncio.ensure_future(users.check("eve", "wrong"))
    patient = asyncio.ensure_future(users.check("eve", "wrong"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient is None
    assert users._verifying == {}


async def test_wrong_passwords_lock_and_time_or_an_administrator_unlocks() -> None:
    clock = Clock()
    users = made(clock, LoginLimits(failures=3, window_s=60, lock_s=100))
    await users.add(request("eve"))
    for _ in range(3):
        assert await users.check("eve", "wrong") is None
    assert await users.check("eve", "correct horse") is None
    assert users.views()[0].locked_until == clock.now + 100
    clock.now += 99
    assert await users.check("eve", "correct horse") is None
    clock.now += 1
    assert await users.check("eve", "correct horse")
    for _ in range(3):
        assert await users.check("eve", "wrong") is None
    await users.unlock("eve")
    assert await users.check("eve", "correct horse")


async def test_a_lock_that_comes_while_a_right_password_is_verified_holds() -> None:
    users = made(limits=LoginLimits(failures=2, lock_s=100))
    await users.add(request("eve"))
    tries = [users.check("eve", word) for word in ("wrong", "wrong", "correct horse")]
    assert await asyncio.gather(*tries) == [None, None, None]


async def failed_twice(users: Users) -> asyncio.Future[object]:
    """The wrong passwords that lock; they are not done yet."""
    return asyncio.ensure_future(asyncio.gather(users.check("eve", "wrong one"), users.check("eve", "wrong two")))


async def test_a_lock_and_a_change_at_the_same_time_both_hold() -> None:
    users = made(limits=LoginLimits(failures=2, lock_s=100))
    await users.add(request("eve", Role.ADMINISTRATOR))
    await users.add(request("root", Role.ADMINISTRATOR))
    assert isinstance(users.table, Shelf)
    users.table.slowness = 9
    failing = await failed_twice(users)
    await asyncio.gather(users.set_role("eve", Role.READ_ONLY), failing)
    eve = users.get("eve")
    assert eve is not None
    assert eve.role is Role.READ_ONLY
    assert eve.locked_until == 1100.0


async def test_a_user_who_is_removed_while_being_locked_stays_away() -> None:
    users = made(limits=LoginLimits(failures=2, lock_s=100))
    await users.add(request("root", Role.ADMINISTRATOR))
    await users.add(request("eve"))
    assert isinstance(users.table, Shelf)
    users.table.slowness = 9
    failing = await failed_twice(users)
    await asyncio.gather(users.set_role("root", Role.ADMINISTRATOR), users.remove("eve"), failing)
    assert users.get("eve") is None
    await users.add(request("eve"))
    assert await users.check("eve", "correct horse")  # another user of that name has done nothing


async def test_a_lock_holds_before_it_is_written_and_when_it_cannot_be() -> None:
    users = made(limits=LoginLimits(failures=2, lock_s=100))
    await users.add(request("eve"))

    async def broken(item: User) -> None:
        raise OSError("the disk is full")

    users.table.put = broken  # type: ignore[method-assign]
    await asyncio.gather(await failed_twice(users), return_exceptions=True)
    assert await users.check("eve", "correct horse") is None
    assert users.views()[0].locked_until == 1100.0


async def test_an_unlock_ends_a_lock_that_is_being_written() -> None:
    users = made(limits=LoginLimits(failures=2, lock_s=100))
    await users.add(request("eve"))
    assert isinstance(users.table, Shelf)
    users.table.slowness = 9
    await asyncio.gather(users.unlock("eve"), await failed_twice(users))
    assert await users.check("eve", "correct horse")


async def test_halves_of_characters_are_wrong_passwords_and_no_more(tmp_path: Path) -> None:
    half = "\ud800" * 8
    users = Users(Shelf(), hasher=Hasher(time_cost=1, memory_kib=64))
    await users.add(request("eve"))
    assert await users.check("eve", half) is None
    assert await users.check("nobody", half) is None
    assert not await users.hasher.verify(await users.hasher.hash("correct horse"), half)
    with pytest.raises(UsageError, match="whole characters"):
        await users.set_password("eve", half)
    with pytest.raises(ValidationError, match=r"whole characters|valid string|unicode"):
        request("mal", password=half)
    with pytest.raises(UsageError, match="8 to 256"):
        await users.set_password("eve", "")


async def test_too_many_logins_at_a_time_are_refused() -> None:
    hasher = Hasher(time_cost=1, memory_kib=64)
    hasher._waiting = 256
    with pytest.raises(BusyError, match="Too many logins"):
        await hasher.hash("x")


async def test_a_name_that_nobody_has_costs_the_same_work() -> None:
    users = made()
    asked: list[str] = []

    async def noted(password: str) -> None:
        asked.append(password)

    users.hasher.verify_nobody = noted  # type: ignore[method-assign]
    assert await users.check("nobody", "guess") is None
    assert await users.check("no/name", "guess") is None
    assert asked == ["guess", "guess"]
    assert await users.check("nobody", "x" * 300) is None


def test_random_passwords_differ() -> None:
    assert len({random_password() for _ in range(100)}) == 100


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.floats(0, 200)),
            st.tuples(st.sampled_from(["right", "wrong", "unlock"]), st.just(0.0)),
        ),
        max_size=40,
    )
)
@settings(deadline=None)
def test_a_lock_is_as_the_rule_says(steps: list[tuple[str, float]]) -> None:
    """Against a model: a list of the failures since the last success."""

    async def play() -> None:
        clock = Clock()
        users = made(clock, LoginLimits(failures=3, window_s=60, lock_s=100))
        await users.add(request("eve"))
        failed: list[float] = []
        locked_until = 0.0
        for kind, seconds in steps:
            clock.now += seconds
            locked = clock.now < locked_until
            if kind == "unlock":
                await users.unlock("eve")
                failed, locked_until = [], 0.0
            elif kind == "right":
                assert (await users.check("eve", "correct horse") is not None) is not locked
                failed = failed if locked else []
            elif kind == "wrong":
                assert await users.check("eve", "wrong") is None
                if not locked:
                    failed = [at for at in failed if at > clock.now - 60] + [clock.now]
                    if len(failed) == 3:
                        failed, locked_until = [], clock.now + 100

    asyncio.run(play())


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(1, 6))
def test_a_lockout_needs_as_many_failures_within_the_window(gaps: list[float], most: int) -> None:
    lockout, now, recent = Lockout(most, 60.0, 100.0), 0.0, list[float]()
    for gap in gaps:
        now += gap
        recent = [at for at in recent if at > now - 60.0] + [now]
        until = lockout.failed("eve", now)
        assert (until is not None) is (len(recent) >= most)
        if until is not None:
            assert until == now + 100.0
            recent = []


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("0.0.0.0:443", "0.0.0.0", 443), ("[::1]:8443", "::1", 8443), (":9", "0.0.0.0", 9), ("8443", "0.0.0.0", 8443)],
)
def test_where_to_listen_is_understood(text: str, address: str, port: int) -> None:
    assert parse_listen(text) == (address, port)


@pytest.mark.parametrize("text", ["", "host:443", "1.2.3.4:", "1.2.3.4:x", "1.2.3.4:70000", "1.2.3:4"])
def test_where_not_to_listen(text: str) -> None:
    with pytest.raises(UsageError):
        parse_listen(text)
