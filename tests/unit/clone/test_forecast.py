"""The forecast of a stun: cautious, monotonic, and led by the machine's own history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.clone.forecast import Load, check_bound, forecast_stun_ms
from ramet.errors import StunTooLongError
from ramet.model.machine import Stun

sizes = st.integers(min_value=0, max_value=1 << 40)


def stun(total_ms: float, fork_ms: float, resident_bytes: int) -> Stun:
    return Stun(
        at=0,
        total_ms=total_ms,
        stop_ms=1,
        snapshot_ms=2,
        state_ms=5,
        fork_ms=fork_ms,
        resume_ms=1,
        resident_bytes=resident_bytes,
    )


@given(sizes, sizes, sizes)
def test_more_memory_or_more_dirty_data_never_makes_it_shorter(resident: int, more: int, dirty: int) -> None:
    for recent in ((), (stun(20, 8, 1 << 28),)):
        small = forecast_stun_ms(Load(resident, dirty), recent)
        assert forecast_stun_ms(Load(resident + more, dirty), recent) >= small
        assert forecast_stun_ms(Load(resident, dirty + more), recent) >= small


def test_the_worst_recent_stun_leads() -> None:
    history = (stun(20, 8, 1 << 28), stun(200, 8, 1 << 28), stun(20, 8, 1 << 28))
    assert forecast_stun_ms(Load(1 << 28), history) >= 200


def test_a_bound_is_refused_beforehand_with_both_numbers() -> None:
    with pytest.raises(StunTooLongError) as refusal:
        check_bound(80.0, 50.0, "web")
    assert refusal.value.fields == {"forecast_ms": 80.0, "bound_ms": 50.0}
    check_bound(40.0, 50.0, "web")
    check_bound(40.0, None, "web")
