"""What people are shown of a soak."""

from __future__ import annotations

from ramet.soak.growth import Point, judge
from ramet.soak.report import Counts, Problem, Report, text


def report(*problems: Problem, leaking: bool = False) -> Report:
    values = [float(n) if leaking else 7.0 for n in range(30)]
    growth = judge("daemon descriptors", [Point(n, value) for n, value in enumerate(values)], 3)
    assert growth is not None
    return Report(
        version="1", kind="mixed", seed=5, steps=30, took_s=60.0, guests_checked=9, problems=problems,
        actions={"clone": Counts(done=20, refused=3)}, faults={"kill -9 of the daemon": 2},
        growth=(growth,), samples=(), log="/tmp/x",
    )  # fmt: skip


def test_a_good_soak_says_so() -> None:
    found = report()
    assert found.ok
    lines = "\n".join(text(found))
    assert "seed 5" in lines
    assert "steady" in lines
    assert "Nothing leaked, nothing was lost." in lines


def test_a_leak_and_a_problem_are_told_and_neither_is_well() -> None:
    leak, lost = report(leaking=True), report(Problem(step="4: clone a", what="a is not there"))
    assert not leak.ok
    assert "GROWS" in "\n".join(text(leak))
    assert not lost.ok
    assert "PROBLEM after 4: clone a: a is not there" in "\n".join(text(lost))
