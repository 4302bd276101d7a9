"""What is promised to VMs, and when a further one is refused, by either policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import CapacityError
from ramet.memory.admission import (
    CLONE_OVERHEAD_BYTES,
    DIVERGENCE,
    HORIZON_S,
    SETTLED_GROWTH,
    Admission,
    Policy,
    Tenant,
    clone_need,
    growth,
)
from ramet.model.units import GIB, MIB

WEB = Tenant(
    id="web", lineage_id="web", configured=GIB, unique=200 * MIB, proportional=300 * MIB, resident=400 * MIB, age_s=1e4
)
CLONE = Tenant(id="c", lineage_id="web", configured=GIB, unique=10 * MIB, is_clone=True, age_s=5.0)


def admission(policy: Policy, *tenants: Tenant, available: int = 4 * GIB) -> Admission:
    made = Admission(policy, reserve_bytes=GIB, available=lambda: available)
    made.tenants = lambda: tenants
    return made


def test_the_worst_case_is_all_memory_of_all_guests() -> None:
    assert growth(Policy.WORST_CASE, WEB) == GIB - 300 * MIB
    assert growth(Policy.WORST_CASE, CLONE) == GIB
    assert clone_need(Policy.WORST_CASE, GIB) == GIB + CLONE_OVERHEAD_BYTES


def test_a_frozen_vm_writes_nothing_but_may_be_left_alone_with_its_pages() -> None:
    frozen = replace(WEB, writes=False)
    assert growth(Policy.WORST_CASE, frozen) == 100 * MIB
    assert growth(Policy.MEASURED, frozen) == 0


def test_measured_growth_is_drawn_on_between_a_floor_and_what_the_guest_has() -> None:
    assert growth(Policy.MEASURED, WEB) == int(SETTLED_GROWTH * GIB)
    assert growth(Policy.MEASURED, replace(WEB, growth_per_s=MIB)) == HORIZON_S * MIB
    assert growth(Policy.MEASURED, replace(WEB, growth_per_s=100 * MIB)) == GIB - 200 * MIB
    assert growth(Policy.MEASURED, CLONE) == int(DIVERGENCE * GIB) - 10 * MIB
    assert growth(Policy.MEASURED, replace(CLONE, age_s=HORIZON_S)) == int(SETTLED_GROWTH * GIB)


def test_a_clone_is_expected_to_do_what_its_siblings_do() -> None:
    assert clone_need(Policy.MEASURED, GIB) == CLONE_OVERHEAD_BYTES + int(DIVERGENCE * GIB)
    busy = replace(CLONE, unique=300 * MIB, growth_per_s=MIB)
    assert clone_need(Policy.MEASURED, GIB, (WEB, CLONE, busy)) == CLONE_OVERHEAD_BYTES + (155 + 300) * MIB


sizes = st.integers(0, 64 * GIB)


@given(configured=sizes, unique=sizes, shared=sizes, rate=st.floats(0, 1e9), age=st.floats(0, 1e6), ice=st.booleans())
def test_what_is_expected_is_never_more_than_the_worst(
    configured: int, unique: int, shared: int, rate: float, age: float, ice: bool
) -> None:
    unique = min(unique, configured)
    tenant = Tenant(
        "a", "a", configured, unique=unique, proportional=unique, resident=min(configured, unique + shared),
        writes=not ice, is_clone=True, age_s=age, growth_per_s=rate,
    )  # fmt: skip
    assert 0 <= growth(Policy.MEASURED, tenant) <= growth(Policy.WORST_CASE, tenant) <= configured


def test_a_start_must_fit_beside_what_was_promised_and_the_reserve() -> None:
    host = admission(Policy.WORST_CASE, WEB)
    host.check_start("db", 2 * GIB)
    with pytest.raises(CapacityError) as refused:
        host.check_start("db", 3 * GIB)
    assert refused.value.message == (
        "'db' needs 3 GiB of memory, and 724 MiB is missing: 4 GiB is available, the VMs that run may come to want "
        "724 MiB, and 1 GiB stays free."
    )
    assert refused.value.fields["missing_bytes"] == 724 * MIB
    assert 'admission = "measured"' in (refused.value.hint or "")


def test_clones_are_counted_together() -> None:
    host = admission(Policy.MEASURED, available=2 * GIB)
    host.check_clones("web", "web", GIB, 5)
    with pytest.raises(CapacityError, match=r"6 clones of 'web' need about 1\.2 GiB of memory, and .* is missing: "):
        host.check_clones("web", "web", GIB, 6)
    with pytest.raises(CapacityError, match="A clone of 'web' needs about 1"):
        host.check_clones("web", "web", GIB, 1, merged_bytes=GIB)


def test_the_same_clones_fit_measured_and_not_at_worst() -> None:
    clones = [replace(CLONE, id=str(n), age_s=1e4) for n in range(20)]
    admission(Policy.MEASURED, *clones).check_clones("web", "web", GIB, 1)
    with pytest.raises(CapacityError):
        admission(Policy.WORST_CASE, *clones).check_clones("web", "web", GIB, 1)


def test_a_frozen_vm_is_let_go_on_unless_the_worst_case_would_not_fit() -> None:
    frozen = replace(WEB, configured=4 * GIB, writes=False)
    admission(Policy.MEASURED, frozen).check_thaw("web", "web")
    admission(Policy.WORST_CASE, frozen).check_thaw("gone", "gone")
    with pytest.raises(CapacityError, match=r"'web' may want 3\.6 GiB more"):
        admission(Policy.WORST_CASE, frozen).check_thaw("web", "web")


def test_unmerging_says_how_much_is_missing() -> None:
    host = admission(Policy.MEASURED, CLONE, available=2 * GIB)
    host.check_unmerge(GIB)
    host.check_unmerge(0)
    with pytest.raises(CapacityError, match=r"Unmerging takes up to 1\.5 GiB of memory, and 512 MiB is missing"):
        host.check_unmerge(GIB + 512 * MIB)


def test_a_host_below_its_reserve_still_unmerges_nothing_for_nothing() -> None:
    admission(Policy.MEASURED, available=0).check_unmerge(0)
