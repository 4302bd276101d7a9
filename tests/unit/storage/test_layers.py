"""The layer store: what it makes, what it follows, what it deletes."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ramet.errors import CapacityError, ConflictError, DamagedError, NotFoundError, UsageError
from ramet.storage import LayerStore, set_backing_name
from tests.unit.storage.storage_kit import MIB, Change, contents, files, write


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "layers")


def test_an_overlay_reads_as_its_parent(store: LayerStore) -> None:
    base = store.create_empty(4 * MIB)
    write(store.path(base.id), Change("write", MIB, MIB, 5))
    top = store.create_overlay(base.id)
    assert (top.parent, top.size_bytes) == (base.id, 4 * MIB)
    assert contents(store.path(top.id)) == contents(store.path(base.id))
    assert [layer.id for layer in store.chain(top.id)] == [top.id, base.id]
    assert store.depth(top.id) == 2
    assert store.is_pristine(top.id)
    assert not store.is_pristine(base.id)
    assert store.children(base.id) == (top.id,)
    assert store.layer(base.id).bytes_on_disk >= MIB


def test_an_overlay_may_be_larger(store: LayerStore) -> None:
    base = store.create_empty(MIB)
    write(store.path(base.id), Change("write", 0, MIB, 5))
    top = store.create_overlay(base.id, 2 * MIB, layer_id="given")
    assert top.id == "given"
    assert contents(store.path(top.id)) == bytes([5]) * MIB + bytes(MIB)


def test_modes_and_owner(store: LayerStore) -> None:
    layer = store.create_empty(MIB)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o711
    assert stat.S_IMODE(store.path(layer.id).stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_are_given_to_the_qemu_user(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "layers", owner=(12345, 23456))
    status = store.path(store.create_empty(MIB).id).stat()
    assert (status.st_uid, status.st_gid) == (12345, 23456)


def test_refusals_leave_nothing(store: LayerStore) -> None:
    layer = store.create_empty(MIB)
    before = files(store)
    with pytest.raises(NotFoundError, match="no layer missing"):
        store.create_overlay("missing", MIB)
    with pytest.raises(NotFoundError):
        store.create_overlay("missing")
    with pytest.raises(ConflictError, match=layer.id):
        store.create_empty(MIB, layer_id=layer.id)
    with pytest.raises(UsageError, match="no size"):
        store.create_empty(1000)
    for bad in ("../x", "", "a/b", ".hidden", "a.qcow2", "a\n"):
        with pytest.raises(UsageError, match="no id of a layer"):
            store.path(bad)
    assert files(store) == before


def test_a_missing_ancestor_is_named(store: LayerStore) -> None:
    base = store.create_empty(MIB)
    top = store.create_overlay(base.id)
    store.path(base.id).unlink()
    with pytest.raises(DamagedError, match=f"{base.id}.qcow2 is missing"):
        store.chain(top.id)
    with pytest.raises(NotFoundError):
        store.chain(base.id)


def test_a_cycle_is_named(store: LayerStore) -> None:
    first = store.create_empty(MIB)
    second = store.create_overlay(first.id)
    set_backing_name(store.path(first.id), f"{second.id}.qcow2")
    with pytest.raises(DamagedError, match=f"{first.id}.qcow2 is damaged: it is among its own ancestors"):
        store.chain(second.id)


@pytest.mark.parametrize("name", ["/etc/shadow", "../secret.qcow2", "json:{}", "nbd://host/x", "x.raw", ".tmp-1.qcow2"])
def test_parents_outside_the_store_are_damage(name: str, store: LayerStore) -> None:
    layer = store.create_empty(MIB)
    set_backing_name(store.path(layer.id), name)
    with pytest.raises(DamagedError, match=f"{layer.id}.qcow2 is damaged: its parent"):
        store.chain(layer.id)


def test_layers_are_no_symbolic_links(store: LayerStore, tmp_path: Path) -> None:
    layer = store.create_empty(MIB)
    store.path("link").symlink_to(store.path(layer.id))
    with pytest.raises(OSError, match="symbolic links"):
        store.layer("link")


def test_collect_keeps_what_roots_reach(store: LayerStore) -> None:
    base = store.create_empty(MIB).id
    left, right = (store.create_overlay(base).id for _ in range(2))
    tip = store.create_overlay(left).id
    assert store.collect([tip, right, "not-yet-made"]) == ()
    assert store.collect([tip]) == (right,)
    assert store.collect([left]) == (tip,)
    assert set(store.collect([])) == {left, base}
    assert store.ids() == ()


def test_collect_deletes_children_first(store: LayerStore) -> None:
    chain = [store.create_empty(MIB).id]
    for _ in range(5):
        chain.append(store.create_overlay(chain[-1]).id)
    assert store.collect(()) == tuple(reversed(chain))


def test_collect_asks_for_roots_after_it_looked(store: LayerStore) -> None:
    """A layer that is made while the roots are gathered is not garbage, though no root names it yet."""
    made = []

    def roots() -> Iterator[str]:
        made.append(store.create_empty(MIB).id)
        yield from ()

    assert store.collect(roots) == ()
    assert store.exists(made[0])


def test_collect_keeps_what_is_held(store: LayerStore) -> None:
    base = store.create_empty(MIB).id
    top = store.create_overlay(base).id
    with store.hold(top), store.hold(top):
        assert store.collect([]) == ()
    assert store.collect([]) == (top, base)


def test_collect_deletes_nothing_when_a_root_is_damaged(store: LayerStore) -> None:
    lost, base = store.create_empty(MIB).id, store.create_empty(MIB).id
    top = store.create_overlay(base).id
    store.path(base).unlink()
    with pytest.raises(DamagedError):
        store.collect([top])
    assert set(store.ids()) == {lost, top}


def test_collect_clears_damaged_garbage(store: LayerStore) -> None:
    kept = store.create_empty(MIB).id
    store.path("junk").write_bytes(b"\0" * 100)
    (store.root / "README").write_text("not a layer")
    assert store.collect([kept]) == ("junk",)
    assert (store.root / "README").exists()


def test_remove(store: LayerStore) -> None:
    base = store.create_empty(MIB).id
    top = store.create_overlay(base).id
    with pytest.raises(ConflictError, match=top):
        store.remove(base)
    store.remove(top)
    store.remove(top)
    store.remove(base)
    assert files(store) == set()


def test_users_count_owners(store: LayerStore) -> None:
    base = store.create_empty(MIB).id
    left, right = (store.create_overlay(base).id for _ in range(2))
    count = store.users({"vm-1": [left], "vm-2": [right, left], "image": [base], "gone": ["nowhere"]})
    assert count == {base: 3, left: 2, right: 1}
    assert count["unused"] == 0


def test_temporaries_of_the_dead_are_removed(store: LayerStore) -> None:
    kept = store.create_empty(MIB).id
    (store.root / ".tmp-0123.qcow2").write_bytes(b"half")
    assert store.ids() == (kept,)
    assert store.remove_temporaries() == 1
    assert files(store) == {f"{kept}.qcow2"}


def test_sync_reaches_the_files(store: LayerStore) -> None:
    store.sync(store.create_empty(MIB, sync=True).id)
    with pytest.raises(FileNotFoundError):
        store.sync("missing")


@contextmanager
def files_no_larger_than(limit_bytes: int) -> Iterator[None]:
    """The kernel's word for 'too large' (EFBIG) takes the same way as 'disk full'."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_no_room_is_told_and_leaves_nothing(store: LayerStore) -> None:
    with files_no_larger_than(1000), pytest.raises(CapacityError, match="full") as caught:
        store.create_empty(MIB)
    assert caught.value.fields["free_bytes"] == pytest.approx(store.free_bytes(), rel=0.5)
    assert files(store) == set()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages, so full that no block is left."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(full_disk: Path) -> None:
    store = LayerStore(full_disk / "layers")
    base = store.create_empty(MIB)
    with (full_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    assert store.free_bytes() == 0
    before = files(store)
    with pytest.raises(CapacityError, match=r"disk under .* is full"):
        store.create_overlay(base.id)
    assert files(store) == before
    (full_disk / "filler").unlink()
    store.create_overlay(base.id)
