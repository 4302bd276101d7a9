"""The ledger of memory: who is in it, what is known, and whose turn it is. And the record of what was."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ramet.host.memory_history import HOST, MemoryRecord, Span
from ramet.host.memory_ledger import MemoryLedger
from ramet.memory.holdings import Holding
from ramet.memory.ledger import Place
from ramet.memory.reading import PAGE, Pulse, Reading
from ramet.memory.turns import Standing
from ramet.model.memory import MemoryCounters, MemoryKind
from ramet.model.units import MIB
from ramet.model.views import MemoryView

WEB = Holding("web-id", "web", MemoryKind.VM, "web-id", 10, 1, 256 * MIB)
ONE = Holding("one-id", "one", MemoryKind.VM, "web-id", 11, 1, 256 * MIB)
TWO = Holding("two-id", "two", MemoryKind.POOL, "web-id", 12, 1, 256 * MIB)
HOLDER = Holding("holder", "holder of web", MemoryKind.HOLDER, "web-id", 13, 1, 256 * MIB)
OTHER = Holding("other-id", "other", MemoryKind.VM, "other-id", 14, 1, 128 * MIB)


def reading(at: float, *, unique: int = 0, common: int = 0, users: int = 1, faults: int = 0) -> Reading:
    """MiB; what is common is shared by so many."""
    view = MemoryView(
        configured_bytes=256 * MIB,
        resident_bytes=(unique + common * users) * MIB,
        unique_bytes=unique * MIB,
        shared_bytes=common * users * MIB,
        proportional_bytes=(unique + common) * MIB,
        process_overhead_bytes=20 * MIB,
        page_tables_bytes=MIB,
    )
    return Reading(view, Place(0, 1), Pulse(faults, 0), at, at, 0, 0.001)


@pytest.fixture
def ledger() -> MemoryLedger:
    ledger = MemoryLedger()
    ledger.sync([WEB, ONE, HOLDER, OTHER])
    ledger.note(WEB, reading(1, unique=10, common=30, users=3))
    ledger.note(ONE, reading(2, unique=5, common=30, users=3))
    ledger.note(HOLDER, reading(3, common=30, users=3))
    ledger.note(OTHER, reading(4, unique=64))
    return ledger


def standing(ledger: MemoryLedger, one: str, now: float = 10.0) -> Standing:
    return next(found for found in ledger.standings(now) if found.id == one)


def test_rows_stand_by_lineage_and_lineages_add_up_to_the_host(ledger: MemoryLedger) -> None:
    rows = ledger.rows()
    assert [row.name for row in rows] == ["other", "holder of web", "one", "web"]
    other, web = ledger.lineages(rows)
    assert (other.name, other.processes, web.name, web.processes, web.measured_at) == ("other", 1, "web", 3, 1)
    assert (web.unique_bytes, web.shared_bytes) == (15 * MIB, 270 * MIB)
    assert (web.common_bytes, web.saved_bytes) == (90 * MIB, 180 * MIB)
    assert web.configured_bytes == 512 * MIB
    assert web.spent_bytes == (15 + 90 + 3 * 21) * MIB


def test_one_that_was_never_read_is_in_no_sum_and_first_in_turn(ledger: MemoryLedger) -> None:
    ledger.sync([WEB, ONE, TWO, HOLDER, OTHER])
    assert ledger.unread() == [TWO]
    assert len(ledger.rows()) == 4
    assert standing(ledger, TWO.id).age_s == math.inf


def test_those_that_are_gone_leave_with_their_rows(ledger: MemoryLedger) -> None:
    ledger.sync([WEB, ONE])
    assert [row.name for row in ledger.rows()] == ["one", "web"]
    assert standing(ledger, ONE.id).came_or_went == 1
    assert ledger.sample("other-id") is None
    ledger.note(OTHER, reading(9, unique=1))  # read while it went
    assert len(ledger.rows()) == 2


def test_a_new_process_of_a_vm_does_not_have_its_former_ones_memory(ledger: MemoryLedger) -> None:
    ledger.sync([WEB, replace(ONE, pid=99), HOLDER, OTHER])
    assert ONE.id not in {row.id for row in ledger.rows()}
    ledger.note(ONE, reading(9, unique=1))  # of the process that was
    assert ONE.id not in {row.id for row in ledger.rows()}


def test_one_that_is_taken_from_its_pool_keeps_its_row(ledger: MemoryLedger) -> None:
    taken = replace(ONE, name="mine")
    ledger.sync([WEB, taken, HOLDER, OTHER])
    assert [row.name for row in ledger.rows() if row.id == ONE.id] == ["mine"]


def test_a_lineage_whose_founder_is_gone_keeps_its_name(ledger: MemoryLedger) -> None:
    ledger.sync([ONE])
    assert ledger.family_name("web-id") == "web"


def test_an_older_reading_does_not_undo_a_newer_one(ledger: MemoryLedger) -> None:
    ledger.note(ONE, reading(1.5, unique=99))
    assert next(row for row in ledger.rows() if row.id == ONE.id).unique_bytes == 5 * MIB


def test_faults_are_counted_for_oneself_and_for_the_family(ledger: MemoryLedger) -> None:
    ledger.note_pulses({WEB.id: Pulse(7, 3 * PAGE), ONE.id: Pulse(100, 0)})
    web, one, other = (standing(ledger, holding.id) for holding in (WEB, ONE, OTHER))
    assert (web.faults, web.others_faults, web.resident_change, web.members) == (7, 100, 3 * PAGE, 3)
    assert (one.faults, one.others_faults) == (100, 7)
    assert (other.faults, other.others_faults) == (0, 0)
    ledger.note(WEB, reading(11, unique=10, common=30, users=3, faults=7))
    assert standing(ledger, WEB.id).error_bytes == 0


def test_what_was_not_read_again_is_scaled_to_the_new_number(ledger: MemoryLedger) -> None:
    """Three shared 90 MiB; then four share them, of whom two were read again."""
    ledger.sync([WEB, ONE, TWO, HOLDER, OTHER])
    new = reading(5, common=90 // 4, users=4)
    ledger.note(WEB, new)
    ledger.note(TWO, new)
    sample = ledger.sample("web-id", fresh={WEB.id, TWO.id})
    assert sample is not None
    assert sample.estimated
    assert sample.common_bytes == pytest.approx(90 * MIB, rel=0.02)
    whole = ledger.sample("web-id")
    assert whole is not None
    assert not whole.estimated


def row(mib: int) -> MemoryCounters:
    return MemoryCounters(resident_bytes=mib * MIB, unique_bytes=mib * MIB, overhead_bytes=MIB, page_tables_bytes=MIB)


def test_a_record_holds_so_many_points_and_no_more() -> None:
    record = MemoryRecord({"hour": Span(10, 4), "day": Span(30, 4)})
    for n in range(1, 11):
        record.add(1000.0 + 10 * n, {HOST: row(n), "a": row(2 * n)})
    points = record.points("a", "hour")
    assert [point.unique_bytes // MIB for point in points] == [14, 16, 18, 20]
    assert [point.at for point in record.points(HOST, "day")] == [1010, 1040, 1070, 1100]
    assert points[0].overhead_bytes == 2 * MIB


def test_times_at_which_a_vm_was_not_there_are_left_out() -> None:
    record = MemoryRecord({"hour": Span(10, 10)})
    for n in range(6):
        record.add(1000.0 + 10 * n, {HOST: row(1), **({"a": row(1)} if n in (1, 2, 4) else {})})
    assert [point.at for point in record.points("a", "hour")] == [1010, 1020, 1040]
    assert record.points("b", "hour") == []


def test_the_vms_that_went_first_are_forgotten_and_the_host_never() -> None:
    record = MemoryRecord({"hour": Span(10, 100)}, most=3)
    for n in range(10):
        record.add(1000.0 + 10 * n, {HOST: row(1), f"vm{n}": row(1)})
    assert [name for n in range(10) if record.points(name := f"vm{n}", "hour")] == ["vm8", "vm9"]
    assert len(record.points(HOST, "hour")) == 10


def test_a_clock_that_is_set_back_does_not_end_the_record() -> None:
    record = MemoryRecord({"hour": Span(10, 10)})
    for at in (1000.0, 500.0, 503.0, 510.0):
        record.add(at, {HOST: row(1)})
    assert [point.at for point in record.points(HOST, "hour")] == [1000, 500, 510]
