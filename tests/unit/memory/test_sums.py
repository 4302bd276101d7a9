"""Whatever processes share with whom, the sums say what the host spends."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.memory.ledger import measure
from ramet.memory.sums import FIELDS, counters, total
from ramet.model.memory import MemoryCounters
from ramet.model.views import MemoryView
from tests.unit.memory.smaps_kit import PAGE, ram_texts

PROCESSES = 5
SIZE = 64 << 20
CUT = 1024 * PROCESSES
"""The kernel cuts each process's Pss to whole KiB."""

page_users = st.frozensets(st.integers(0, PROCESSES - 1), min_size=1)
worlds = st.lists(page_users, max_size=400)


def measured(pages: list[frozenset[int]]) -> list[MemoryView]:
    return [measure(text, SIZE) for text in ram_texts(SIZE, pages, PROCESSES).values()]


@settings(deadline=None)
@given(worlds)
def test_unique_and_common_are_the_pages_that_are_there(pages: list[frozenset[int]]) -> None:
    views = measured(pages)
    sums = MemoryCounters(**total(map(counters, views)))
    spent = PAGE * len(pages)
    assert spent - CUT <= sums.unique_bytes + sums.common_bytes <= spent
    assert sums.unique_bytes == PAGE * sum(len(users) == 1 for users in pages)
    assert sums.unique_bytes + sums.common_bytes <= sum(view.proportional_bytes for view in views) + CUT


@settings(deadline=None)
@given(worlds)
def test_saved_is_what_sharing_spares_the_host(pages: list[frozenset[int]]) -> None:
    sums = MemoryCounters(**total(map(counters, measured(pages))))
    spared = PAGE * sum(len(users) - 1 for users in pages)
    assert spared <= sums.saved_bytes <= spared + CUT
    assert sums.saved_bytes == sums.shared_bytes - sums.common_bytes
    assert sums.resident_bytes == sums.unique_bytes + sums.shared_bytes


@settings(deadline=None)
@given(worlds, st.integers(0, PROCESSES - 1))
def test_what_a_process_gives_back_when_it_goes_is_what_was_unique_to_it(
    pages: list[frozenset[int]], gone: int
) -> None:
    before = total(map(counters, measured(pages)))
    view = measured(pages)[gone]
    after = total(map(counters, measured([users - {gone} for users in pages if users != {gone}])))
    given_back = before["unique_bytes"] + before["common_bytes"] - after["unique_bytes"] - after["common_bytes"]
    assert abs(given_back - view.unique_bytes) <= CUT


@settings(deadline=None)
@given(st.lists(st.sampled_from([3, 17, 1 << 40]), max_size=6))
def test_sums_of_lineages_are_the_hosts(sizes: list[int]) -> None:
    parts = [MemoryCounters(**dict.fromkeys(FIELDS, size)) for size in sizes]
    halves = [MemoryCounters(**total(parts[:2])), MemoryCounters(**total(parts[2:]))]
    assert total(halves) == total(parts)


def test_one_that_runs_no_guest_shares_and_has_nothing_configured() -> None:
    """A moment's holder and its VM have all in common: nothing is unique, and everything is spent once."""
    both = frozenset({0, 1})
    vm, holder = measured([both] * 100)[:2]
    sums = MemoryCounters(**total([counters(vm), counters(holder, runs_guest=False)]))
    assert sums.configured_bytes == SIZE
    assert (sums.unique_bytes, sums.shared_bytes, sums.common_bytes) == (0, 200 * PAGE, 100 * PAGE)
    assert sums.saved_bytes == 100 * PAGE


def test_what_is_spent_has_the_process_and_its_page_tables_in_it() -> None:
    view = measured([frozenset({0})] * 10)[0].changed(page_tables_bytes=64 << 10)
    found = counters(view)
    assert found.overhead_bytes == (1 << 20) // 4
    assert found.spent_bytes == 10 * PAGE + (1 << 18) + (64 << 10)
