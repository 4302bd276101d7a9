"""The walk's choices, and the soak's own memory of what should exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.model.machine import VmState
from ramet.soak.__main__ import read_steps
from ramet.soak.chance import Chance
from ramet.soak.truth import differ, log_problems
from ramet.soak.world import ANCHOR, Action, Fault, Guest, Manner, Step, World, outcomes, settle


def walk(seed: int, steps: int, failing: bool = False) -> tuple[list[Step], World]:
    """As if every step succeeded, or as if every one was refused."""
    world = World({ANCHOR: Guest(ANCHOR, VmState.RUNNING, 0, False)})
    chance = Chance(seed)
    taken = []
    for _ in range(steps):
        step = chance.step(world)
        assert step.vm is None or step.vm in world.guests
        assert not (step.vm == ANCHOR and Action.REMOVE in (step.action, step.second))
        taken.append(step)
        for name, states in outcomes(world, step).items():
            settle(world, step, name, states[1 if failing else 0] if len(states) > 1 else states[0])
        if step.action is Action.SET_POOL and step.vm is not None:
            world.pools[step.vm] = step.size
        if step.action is Action.DROP_POOL and step.vm is not None:
            world.pools.pop(step.vm)
    return taken, world


@settings(deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_walk_never_has_more_guests_than_it_may_and_keeps_its_anchor(seed: int) -> None:
    _, world = walk(seed, 60)
    assert ANCHOR in world.guests
    assert world.weight <= Chance(seed).most + sum(world.pools.values())


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_the_same_seed_is_the_same_walk(seed: int, failing: bool) -> None:
    assert walk(seed, 30, failing)[0] == walk(seed, 30, failing)[0]


def test_a_long_walk_does_everything() -> None:
    steps = [step for seed in range(10) for step in walk(seed, 200)[0]]
    assert {step.action for step in steps} == set(Action)
    assert {step.fault for step in steps} == {*Fault, None}
    assert {step.manner for step in steps if step.action is Action.CLONE} == set(Manner)


def test_a_step_that_was_cut_off_may_have_happened_or_not() -> None:
    world = World({"a": Guest("a", VmState.RUNNING, 3, False)})
    step = Step(number=1, action=Action.FREEZE, vm="a", fault=Fault.KILL_VM)
    assert outcomes(world, step) == {"a": [VmState.FROZEN, VmState.RUNNING, VmState.OFF]}


def test_a_clone_has_its_source_s_disk_and_goes_on_in_its_memory() -> None:
    world = World({"a": Guest("a", VmState.RUNNING, 3, False)})
    step = Step(number=1, action=Action.CLONE, vm="a", names=("b",), manner=Manner.FENCED)
    settle(world, step, "b", VmState.RUNNING)
    assert world.guests["b"] == Guest("b", VmState.RUNNING, 3, False, True)


def test_what_was_off_has_booted_anew() -> None:
    world = World({"a": Guest("a", VmState.RUNNING, 3, False)})
    settle(world, Step(number=1, action=Action.KILL, vm="a"), "a", VmState.OFF)
    settle(world, Step(number=2, action=Action.START, vm="a"), "a", VmState.RUNNING)
    assert world.guests["a"] == Guest("a", VmState.RUNNING, 3, True)
    settle(world, Step(number=3, action=Action.REMOVE, vm="a"), "a", None)
    assert not world.guests


def test_a_walk_is_read_from_its_log(tmp_path: Path) -> None:
    step = Step(number=4, action=Action.CLONE, vm="a", names=("b",), fault=Fault.KILL_DAEMON, after_ms=5)
    log = tmp_path / "log"
    log.write_text('{"sample": {}}\n{"step": ' + step.model_dump_json() + "}\n")
    assert read_steps(log) == [step]


@pytest.mark.parametrize(
    ("line", "bugs"),
    [
        ('{"event": "ready", "level": "info"}', 0),
        ('{"event": "a request failed", "level": "warning", "exception": "T\\nOSError: x"}', 0),
        ('{"event": "it failed", "level": "error", "exception": "T\\nValueError: x"}', 1),
        ("Fatal Python error: Aborted", 1),
    ],
)
def test_bugs_are_read_from_the_daemon_s_log(tmp_path: Path, line: str, bugs: int) -> None:
    log = tmp_path / "log"
    log.write_text("old\n" + line + "\n")
    found, end = log_problems(log, 4)
    assert len(found) == bugs
    assert end == log.stat().st_size
    assert log_problems(log, end)[0] == []


def test_a_difference_says_both_sides() -> None:
    assert differ("layers", {"a", "b"}, {"b", "c"}) == ["layers: too many ['a'], missing ['c']"]
    assert differ("layers", {"a"}, {"a"}) == []
