"""What a pool decides to drop and to grow: never too much, never what it cannot afford, and it comes to rest."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ramet.host.pool_plan import Member, Situation, decide
from ramet.model.pool import PoolState

COST = 20
members = st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=8).map(
    lambda found: tuple(Member(f"m{n}", cost, fit) for n, (cost, fit) in enumerate(found))
)
situations = st.builds(
    Situation,
    size=st.integers(0, 8),
    frozen=st.booleans(),
    members=members,
    next_cost=st.integers(1, 60),
    next_need=st.integers(60, 120),
    available=st.integers(0, 1000),
    reserve=st.integers(0, 500),
    budget=st.none() | st.integers(0, 200),
)


def kept(now: Situation) -> list[Member]:
    drop = set(decide(now).drop)
    return [member for member in now.members if member.id not in drop]


@given(situations)
def test_what_stays_is_fit_and_affordable(now: Situation) -> None:
    left = kept(now)
    assert all(member.fit for member in left)
    assert not left or now.frozen
    assert len(left) <= now.size
    cost = sum(member.cost_bytes for member in left)
    assert now.budget is None or cost <= now.budget
    freed = sum(member.cost_bytes for member in now.members) - cost
    assert not left or now.available + freed >= now.reserve


@given(situations)
def test_growth_keeps_to_size_budget_and_reserve(now: Situation) -> None:
    decision = decide(now)
    left = kept(now)
    assert decision.grow >= 0
    assert len(left) + decision.grow <= max(now.size, len(left))
    if decision.grow:
        assert now.frozen
        assert now.available - decision.grow * now.next_need >= now.reserve
        assert now.budget is None or sum(m.cost_bytes for m in left) + decision.grow * now.next_cost <= now.budget
        assert decision.state is PoolState.FILLING


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(situations)
def test_no_one_is_dropped_without_a_reason(now: Situation) -> None:
    assume(now.frozen and len(now.members) <= now.size and all(member.fit for member in now.members))
    assume(now.available >= now.reserve)
    assume(now.budget is None or sum(member.cost_bytes for member in now.members) <= now.budget)
    assert decide(now).drop == ()


@given(situations, st.integers(1, 60))
def test_it_comes_to_rest(now: Situation, cost: int) -> None:
    """Done as decided, with members that cost what is expected, a pool asks for nothing more and takes nothing back."""
    now = replace(now, next_cost=cost, next_need=max(cost, now.next_need))
    for _ in range(4):
        decision, left = decide(now), kept(now)
        freed = sum(m.cost_bytes for m in now.members) - sum(m.cost_bytes for m in left)
        grown = tuple(Member(f"g{len(now.members)}-{n}", cost) for n in range(decision.grow))
        now = replace(now, members=(*left, *grown), available=now.available + freed - cost * len(grown))
    decision = decide(now)
    assert (decision.drop, decision.grow > 0 and decision.state is not PoolState.FILLING) == ((), False)
    resting = decide(now)
    assert resting.grow == 0 or now.available - now.reserve >= now.next_need


@given(situations)
def test_the_state_says_why(now: Situation) -> None:
    state = decide(now).state
    assert (state is PoolState.WAITING) == (not now.frozen)
    if state is PoolState.FULL:
        assert len(kept(now)) == now.size
