"""The log of changes, and who is woken by what."""

from __future__ import annotations

import asyncio

from ramet.vsphere.core.updates import Updates


def test_what_changed_since() -> None:
    updates = Updates()
    updates.touch("a")
    stamp = updates.stamp
    updates.touch("b")
    updates.reshape("c", int)
    changes = updates.since(stamp)
    assert changes.touched == {"b", "c"}
    assert changes.reshaped
    assert not changes.everything
    assert changes.kinds == {int}
    assert updates.since(changes.stamp).touched == frozenset()


def test_a_reader_that_is_too_far_behind_looks_at_everything() -> None:
    updates = Updates(kept=3)
    for name in "abcd":
        updates.touch(name)
    assert updates.since(0).everything
    assert updates.since(1).touched == {"b", "c", "d"}


async def test_only_whom_it_concerns_is_woken() -> None:
    updates = Updates()
    with updates.watch(lambda moid, shape, kind: moid == "a") as mine, updates.watch(lambda *change: True) as all_of_it:
        updates.touch("b")
        assert (mine.is_set(), all_of_it.is_set()) == (False, True)
        updates.touch("a")
        assert mine.is_set()
    updates.touch("a")


async def test_a_session_that_ends_wakes_everybody() -> None:
    updates = Updates()
    with updates.watch(lambda *change: False) as event:
        waiting = asyncio.create_task(updates.wait(updates.stamp, 5.0))
        await asyncio.sleep(0)
        updates.wake()
        assert event.is_set()
        assert await waiting
    assert not await updates.wait(updates.stamp, 0.001)
