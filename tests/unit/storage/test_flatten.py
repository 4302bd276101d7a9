"""Flattening: the same bytes from fewer layers, and nothing else touched."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import CapacityError, ToolError, UsageError
from ramet.storage import DEFAULT_BOUND, Layer, LayerStore, flatten, plan_flatten, read_header
from tests.unit.storage.storage_kit import CLUSTER, MIB, Change, changes, contents, files, fresh_store, tool, write

SIZE = 16 * CLUSTER


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "layers")


def stack(store: LayerStore, *layers: list[Change], size_bytes: int = SIZE) -> list[str]:
    """A chain with these changes, lowest first; returns ids, topmost first."""
    ids: list[str] = []
    for done in layers:
        layer = store.create_overlay(ids[0]) if ids else store.create_empty(size_bytes)
        write(store.path(layer.id), *done)
        ids.insert(0, layer.id)
    return ids


@settings(max_examples=15, deadline=None)
@given(layers=st.lists(changes(SIZE), min_size=2, max_size=5), keep=st.integers(0, 3), growth=st.booleans())
def test_same_bytes_as_the_model(layers: list[list[Change]], keep: int, growth: bool) -> None:
    """Writes, zero-writes and discards in any layer; zeroes over a base must hide it, without being written out."""
    model, keep = bytearray(SIZE), min(keep, len(layers) - 1)
    for change in (change for done in layers for change in done):
        change.apply(model)
    with fresh_store() as store:
        ids = stack(store, *layers)
        if growth:
            ids.insert(0, store.create_overlay(ids[0], 2 * SIZE).id)
            model += bytes(SIZE)
        assert contents(store.path(ids[0])) == model
        base = ids[-keep] if keep else None
        merged = asyncio.run(flatten(store, ids[: len(ids) - keep], base))
        assert merged.parent == base
        assert contents(store.path(merged.id)) == model
        assert "No errors were found" in tool("qemu-img", "check", str(store.path(merged.id)))
        assert files(store) == {f"{layer_id}.qcow2" for layer_id in (*ids, merged.id)}


async def test_what_stands_above_reads_the_same(store: LayerStore) -> None:
    ids = stack(
        store,
        [Change("write", 0, SIZE, 1)],
        [Change("write", 0, 8 * CLUSTER, 2)],
        [Change("zero", CLUSTER, 4 * CLUSTER)],
        [Change("discard", 7 * CLUSTER, CLUSTER)],
        [Change("write", 2 * CLUSTER, 512, 3)],
    )
    before = contents(store.path(ids[0]))
    told: list[float] = []
    merged = await flatten(store, ids[1:4], ids[4], told.append, layer_id="merged")
    assert (merged.id, merged.parent) == ("merged", ids[4])
    tool("qemu-img", "rebase", "-u", "-b", "merged.qcow2", "-F", "qcow2", str(store.path(ids[0])))
    assert contents(store.path(ids[0])) == before
    assert [layer.id for layer in store.chain(ids[0])] == [ids[0], "merged", ids[4]]
    assert told == sorted(told)
    assert told[-1] == 100.0


async def test_zeroed_ranges_stay_holes(store: LayerStore) -> None:
    """A guest that discards a large file must not make a layer of zeros out of it."""
    ids = stack(
        store, [Change("write", 0, 64 * MIB, 1)], [Change("zero", 0, 60 * MIB)], [Change("write", 0, 512, 2)],
        size_bytes=64 * MIB,
    )  # fmt: skip
    merged = await flatten(store, ids[:2], ids[2])
    assert merged.bytes_on_disk < MIB
    assert contents(store.path(merged.id)) == contents(store.path(ids[0]))


def test_layers_in_use_by_a_vm_can_be_flattened(store: LayerStore) -> None:
    """A running QEMU has the chain open, its own layer for writing; locks must not get in the way."""
    ids = stack(store, [Change("write", 0, MIB, 1)], [Change("write", 0, CLUSTER, 2)], [Change("zero", CLUSTER, 512)])
    top = store.create_overlay(ids[0])
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(store.path(top.id))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as vm:
        assert vm.stdin is not None
        assert vm.stdout is not None
        vm.stdin.write("write -P 9 0 512\n")
        vm.stdin.flush()
        while "ops" not in vm.stdout.readline():
            pass
        try:
            merged = asyncio.run(flatten(store, ids[:2], ids[2]))
        finally:
            vm.communicate("quit\n", timeout=30)
    assert contents(store.path(merged.id)) == contents(store.path(ids[0]))


async def test_cancelling_leaves_nothing(store: LayerStore) -> None:
    ids = stack(store, *([Change("write", 0, 64 * MIB, fill)] for fill in (1, 2, 3)), size_bytes=64 * MIB)
    before = files(store)
    for base, count in ((ids[2], 2), (None, 3)):
        begun = asyncio.Event()
        task = asyncio.create_task(flatten(store, ids[:count], base, lambda _, begun=begun: begun.set()))  # type: ignore[misc]
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert files(store) == before


async def test_failure_leaves_nothing(store: LayerStore) -> None:
    ids = stack(store, [], [Change("write", 0, MIB, 1)], [Change("write", 0, CLUSTER, 2)])
    with store.path(ids[1]).open("r+b") as file:  # an L1 entry between two clusters
        file.seek(read_header(store.path(ids[1])).l1_offset)
        file.write(b"\x80\x00\x00\x00\x00\x01\x02\x00")
    before = files(store)
    with pytest.raises(ToolError, match="qemu-img failed"):
        await flatten(store, ids[:2], ids[2])
    assert files(store) == before


async def test_inputs_are_held_meanwhile(store: LayerStore) -> None:
    ids = stack(store, [Change("write", 0, MIB, 1)], [Change("write", 0, MIB, 2)], [Change("write", 0, MIB, 3)])
    collected: list[str] = []
    merged = await flatten(store, ids[:2], ids[2], lambda _: collected.extend(store.collect([])))
    assert collected == []
    assert store.chain(merged.id)[-1].id == ids[2]


async def test_refusals(store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = stack(store, [], [], [], [])
    before = files(store)
    for chain_ids, base in (([], None), (ids[:2], ids[3]), ([ids[1], ids[0]], ids[2]), (ids[:2], None)):
        with pytest.raises(UsageError):
            await flatten(store, chain_ids, base)
    monkeypatch.setattr(store, "free_bytes", lambda: 1000)
    with pytest.raises(CapacityError, match="are needed"):
        await flatten(store, ids[:2], ids[2])
    assert files(store) == before


def layers(*sizes: int) -> list[Layer]:
    """A chain, topmost first, of layers with these sizes."""
    ids = [f"l{index}" for index in range(len(sizes))]
    return [Layer(*row) for row in zip(ids, [*ids[1:], None], [SIZE] * len(ids), sizes, strict=True)]


def test_short_chains_are_left_alone() -> None:
    assert plan_flatten(layers(*[1] * 8), 1) is None
    assert plan_flatten(layers(1, 1), 1, bound=1) is None
    assert plan_flatten(layers(*[1] * 9), 8) is None


def test_the_plan_keeps_top_and_base() -> None:
    plan = plan_flatten(layers(5, *[1] * 7, 100), 1)
    assert plan is not None
    assert plan.layers == ("l1", "l2", "l3", "l4", "l5", "l6", "l7")
    assert plan.base == "l8"
    assert plan.bytes_to_copy == 7


def test_a_large_old_layer_is_not_copied_each_time() -> None:
    plan = plan_flatten(layers(0, 1, 1, 1, 1, 1, 1, 1000, 5000), 1)
    assert plan is not None
    assert plan.base == "l7"


@given(
    sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    base_depth=st.integers(0, 12),
    bound=st.integers(3, 12),
)
def test_plans_meet_the_bound(sizes: list[int], base_depth: int, bound: int) -> None:
    chain, base_depth = layers(*sizes), min(base_depth, len(sizes) - 1)
    plan = plan_flatten(chain, base_depth, bound)
    if plan is None:
        assert len(chain) <= bound or len(chain) - base_depth < 3
        return
    ids = [layer.id for layer in chain]
    assert list(plan.layers) == ids[1 : 1 + len(plan.layers)]
    rest = ids[1 + len(plan.layers) :]
    assert plan.base == (rest[0] if rest else None)
    assert len(rest) >= base_depth
    assert 2 + len(rest) <= max(bound, base_depth + 2)


def test_copying_stays_cheap_over_many_clones() -> None:
    """A source that writes as much between any two clones: each byte is copied a few times, not once a clone."""
    clones, chain_sizes, copied = 1000, [0, 1_000_000], 0
    for _ in range(clones):
        chain_sizes = [0, 1, *chain_sizes[1:]]
        plan = plan_flatten(layers(*chain_sizes), 1)
        if plan is not None:
            copied += plan.bytes_to_copy
            merged = sum(chain_sizes[1 : 1 + len(plan.layers)])
            chain_sizes = [0, merged, *chain_sizes[1 + len(plan.layers) :]]
        assert len(chain_sizes) <= DEFAULT_BOUND
    assert copied < clones * 8


async def test_cancelling_at_the_last_moment_leaves_nothing(store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result gets its name while the cancellation is on its way: nobody would ever learn of it."""
    ids = stack(store, [], [Change("write", 0, CLUSTER, 1)], [])
    before, publish = files(store), LayerStore.publish
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slowly(self: LayerStore, temporary: Path, layer_id: str, *, sync: bool = False) -> Layer:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(30)
        return publish(self, temporary, layer_id, sync=sync)

    monkeypatch.setattr(LayerStore, "publish", slowly)
    task = asyncio.create_task(flatten(store, ids[:2], ids[2]))
    await begun.wait()
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(store) == before
