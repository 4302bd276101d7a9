"""Whose memory is read next."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.memory.reading import PAGE
from ramet.memory.turns import LONGEST_S, TOLERANCE, TOLERANCE_BYTES, Standing, in_turn

GIB = 1 << 30


def test_a_row_to_which_nothing_happened_is_not_read() -> None:
    assert in_turn([Standing("a", LONGEST_S / 2, resident_bytes=GIB)]) == []


def test_nor_is_one_of_which_the_ledger_can_be_wrong_by_little() -> None:
    few = int(TOLERANCE * GIB) // PAGE
    assert in_turn([Standing("a", 10, faults=few, resident_bytes=GIB)]) == []
    assert in_turn([Standing("a", 10, faults=few + 1, resident_bytes=GIB)]) == ["a"]


def test_after_a_while_all_are_read_and_the_longest_unread_goes_first() -> None:
    standings = [Standing("a", LONGEST_S), Standing("b", LONGEST_S + 1), Standing("c", LONGEST_S - 1)]
    assert in_turn(standings) == ["b", "a"]


def test_one_that_was_never_read_goes_before_all() -> None:
    standings = [Standing("a", 59, faults=GIB // PAGE), Standing("new", math.inf), Standing("b", LONGEST_S)]
    assert in_turn(standings) == ["new", "b", "a"]


def test_faults_of_others_count_by_the_share_one_has_in_a_page() -> None:
    faults = 8 * TOLERANCE_BYTES // PAGE
    assert in_turn([Standing("two", 10, others_faults=faults, members=2)]) == ["two"]
    assert in_turn([Standing("many", 10, others_faults=faults, members=200)]) == []


def test_in_a_small_family_a_birth_changes_much() -> None:
    family = {"common_bytes": 100 << 20, "resident_bytes": 100 << 20, "came_or_went": 1}
    assert in_turn([Standing("a", 1, members=2, **family)]) == ["a"]
    assert in_turn([Standing("b", 1, members=1000, **family)]) == []


def test_memory_that_went_without_a_fault_is_seen() -> None:
    """A balloon takes pages away; nobody faults for that."""
    assert in_turn([Standing("a", 1, resident_change=64 << 20, resident_bytes=GIB)]) == ["a"]


standing = st.builds(
    Standing,
    id=st.uuids().map(str),
    age_s=st.floats(0, 200) | st.just(math.inf),
    faults=st.integers(0, 1 << 20),
    resident_change=st.integers(0, GIB),
    others_faults=st.integers(0, 1 << 20),
    came_or_went=st.integers(0, 50),
    members=st.integers(1, 200),
    resident_bytes=st.integers(0, GIB),
    common_bytes=st.integers(0, GIB),
)


@settings(deadline=None)
@given(st.lists(standing, max_size=20, unique_by=lambda one: one.id))
def test_whoever_waits_too_long_gets_its_turn(standings: list[Standing]) -> None:
    order = in_turn(standings)
    overdue = [one.id for one in standings if one.age_s >= LONGEST_S]
    assert set(order[: len(overdue)]) == set(overdue)
    assert set(order) == {one.id for one in standings if one.is_due}
