"""The fuzzer's targets, each for a moment: they take their real bytes, and what is almost right."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_what_is_almost_right(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)
    for seed in target.seeds():
        target.call(seed)
        target.call(b"")
        for _ in range(20 if target.is_slow else 150):
            target.call(mutated(seed, chance))


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.is_slow and name != "agent"])
def test_a_target_takes_anything(name: str) -> None:
    @given(st.binary(max_size=4096))
    @settings(max_examples=50, deadline=None, database=None)
    def run(data: bytes) -> None:
        TARGETS[name].call(data)

    run()
