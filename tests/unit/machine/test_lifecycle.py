"""The lifecycle table: complete where it must be, and closed elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import StateError
from ramet.machine.lifecycle import TRANSITIONS, Happening, Operation, allows, next_state
from ramet.model.machine import VmState


@given(st.lists(st.sampled_from([*Operation, *Happening])))
def test_a_walk_follows_the_table_or_is_refused_with_both_names(moves: list[Operation | Happening]) -> None:
    state = VmState.OFF
    for move in moves:
        if allows(state, move):
            state = next_state(state, move)
        else:
            with pytest.raises(StateError) as refusal:
                next_state(state, move, name="web")
            assert state.value in refusal.value.message
            assert move.value in refusal.value.message


def test_every_state_can_be_left_and_reached() -> None:
    left = {state for state, _ in TRANSITIONS}
    reached = set(TRANSITIONS.values())
    assert left == set(VmState)
    assert reached == set(VmState)


@pytest.mark.parametrize("state", [s for s in VmState if s not in (VmState.OFF, VmState.SUSPENDED)])
def test_a_vm_that_is_on_ends_off_when_its_qemu_ends(state: VmState) -> None:
    assert next_state(state, Happening.QEMU_ENDED) is VmState.OFF
    assert next_state(state, Operation.KILL) is VmState.OFF


def test_freezing_is_undone_by_thaw_and_lost_by_restart() -> None:
    assert next_state(VmState.RUNNING, Operation.FREEZE) is VmState.FROZEN
    assert next_state(VmState.FROZEN, Operation.THAW) is VmState.RUNNING
    assert next_state(VmState.FROZEN, Operation.RESTART) is VmState.RUNNING


def test_every_refused_operation_says_what_to_do() -> None:
    for state in VmState:
        for operation in Operation:
            if not allows(state, operation):
                with pytest.raises(StateError) as refusal:
                    next_state(state, operation, name="web")
                assert refusal.value.hint
