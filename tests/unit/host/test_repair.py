"""An inventory that is damaged, gone, old or foreign is refused, and put together again from what is whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.errors import ConflictError, DamagedError
from ramet.host.copies import Copies, newest_revision, read_copies
from ramet.host.daemon import single_instance
from ramet.host.inventory import Inventory
from ramet.host.refusing import open_inventory
from ramet.host.repair import repair, salvage
from ramet.machine.paths import StatePaths
from ramet.model.host import Image, JournalEntry, Network
from ramet.model.machine import Disk, Machine, Vm
from ramet.model.pool import PoolSpec
from ramet.storage.layers import LayerStore

NAMES = ("web", "db", "cache", "mail")


def vm(name: str, layer: str | None) -> Vm:
    disks = (Disk(id="disk0", layer=layer, size_bytes=1 << 20),) if layer else ()
    machine = Machine.model_validate({"name": name, "memory_mib": 64, "disks": disks})
    return Vm(id=name.ljust(12, "0"), machine=machine, lineage_id=name.ljust(12, "0"), created_at=1.0)


@asynccontextmanager
async def inventory_of(paths: StatePaths) -> AsyncIterator[Inventory]:
    store = await open_inventory(paths)
    try:
        async with Inventory.open(store) as inventory:
            yield inventory
            await Copies(store, paths.records).catch_up()
    finally:
        await store.aclose()


async def furnish(paths: StatePaths) -> None:
    """Four VMs over one base, a port group, an image, a pool, a folder of the vSphere surface."""
    paths.prepare()
    async with inventory_of(paths) as inventory:
        layers = LayerStore(paths.layers)
        layers.create_empty(1 << 20, layer_id="base")
        await inventory.networks.add(Network(name="lab", cidr="10.1.0.0/24"))
        await inventory.images.add(Image(name="plain", recipe="import", layers=("base",), sizes_bytes=(1 << 20,)))
        for name in NAMES:
            layers.create_overlay("base", layer_id=f"{name}-disk0")
            await inventory.put_vm(vm(name, f"{name}-disk0"))
        await inventory.pools.put(PoolSpec(vm_id=vm("web", None).id, size=2))
        await inventory.store.put("vsphere/folder/0123456789ab", {"id": "0123456789ab", "name": "lab"})


@contextmanager
def state_folder() -> Iterator[StatePaths]:
    with tempfile.TemporaryDirectory(prefix="ramet-test-") as folder:
        yield StatePaths(Path(folder))


@pytest.fixture
async def paths(tmp_path: Path) -> StatePaths:
    paths = StatePaths(tmp_path)
    await furnish(paths)
    return paths


async def names_in(paths: StatePaths) -> set[str]:
    async with inventory_of(paths) as inventory:
        return {one.name for one in inventory.vms()}


def files(paths: StatePaths) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in paths.root.rglob("*") if path.is_file() and "run" not in path.parts
    }


async def refused(paths: StatePaths) -> str:
    """The one sentence, and its hint."""
    with pytest.raises(DamagedError) as caught:
        async with inventory_of(paths):
            pass
    assert "ramet doctor --repair" in (caught.value.hint or "")
    return caught.value.message


async def test_what_is_whole_is_left_alone(paths: StatePaths) -> None:
    before = files(paths)
    view = repair(paths.root)
    assert (view.problem, view.aside, view.lost) == (None, None, ())
    assert files(paths) == before


@pytest.mark.parametrize("damage", ["nonsense", "cut", "empty", "gone", "foreign", "newer"])
async def test_every_damage_is_refused_and_repaired_without_a_loss(paths: StatePaths, damage: str) -> None:
    path = paths.inventory
    data = path.read_bytes()
    match damage:
        case "nonsense":
            path.write_bytes(b"no database at all" * 1000)
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "foreign":
            path.unlink()
            with closing(sqlite3.connect(path)) as database:
                database.executescript("CREATE TABLE recipes (name TEXT);")
        case "newer":
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA user_version=99")
    await refused(paths)
    view = repair(paths.root)
    assert view.problem
    assert view.aside
    assert view.lost == ()
    assert view.vms == tuple(sorted(NAMES))
    assert (view.kept["network"], view.kept["image"], view.kept["pool"], view.kept["vsphere"]) == (1, 1, 1, 1)
    assert await names_in(paths) == set(NAMES)
    if damage not in ("gone", "empty"):
        assert (Path(view.aside) / path.name).exists()


async def test_looking_changes_nothing(paths: StatePaths) -> None:
    paths.inventory.write_bytes(b"nonsense" * 4096)
    before = files(paths)
    assert salvage(paths).problem
    assert files(paths) == before


async def test_an_inventory_that_lost_its_last_writes_is_refused(paths: StatePaths) -> None:
    """Its start would remove, as nobody's, the VMs that it does not know of."""
    older = paths.inventory.read_bytes()
    async with inventory_of(paths) as inventory:
        LayerStore(paths.layers).create_overlay("base", layer_id="late-disk0")
        await inventory.put_vm(vm("late", "late-disk0"))
    for file in paths.root.glob("inventory.db*"):
        file.unlink()
    paths.inventory.write_bytes(older)
    assert "lost its last writes" in await refused(paths)
    assert "late" in repair(paths.root).vms
    assert await names_in(paths) == {*NAMES, "late"}


async def test_a_log_that_was_cut_off_loses_no_record(paths: StatePaths) -> None:
    store = await open_inventory(paths)
    async with Inventory.open(store) as inventory:
        LayerStore(paths.layers).create_overlay("base", layer_id="late-disk0")
        await inventory.put_vm(vm("late", "late-disk0"))
        await Copies(store, paths.records).catch_up()
        files_then = {p.name: p.read_bytes() for p in paths.root.glob("inventory.db*") if not p.name.endswith("-shm")}
    await store.aclose()
    for file in paths.root.glob("inventory.db*"):
        file.unlink()
    for name, data in files_then.items():  # as a kill left it, and a disk that lost the end of the log
        (paths.root / name).write_bytes(data[: len(data) // 3] if name.endswith("-wal") else data)
    await refused(paths)
    repair(paths.root)
    assert await names_in(paths) == {*NAMES, "late"}


async def test_a_record_that_is_not_valid_is_taken_from_its_copy(paths: StatePaths) -> None:
    with closing(sqlite3.connect(paths.inventory)) as database:
        database.execute("UPDATE entries SET value = '{\"id\": 1}' WHERE key LIKE 'vm/web%'")
        database.commit()
    assert "vm/web" in await refused(paths)
    assert repair(paths.root).lost == ()
    assert await names_in(paths) == set(NAMES)


async def test_what_cannot_be_kept_is_named(paths: StatePaths) -> None:
    """A VM without its layers, and one whose record is nowhere whole; what referred to them goes as well."""
    (paths.layers / "db-disk0.qcow2").unlink()
    shutil.rmtree(paths.records)
    (paths.root / "inventory.db.bak").unlink(missing_ok=True)
    with closing(sqlite3.connect(paths.inventory)) as database:
        database.execute("UPDATE entries SET value = '[1]' WHERE key LIKE 'vm/web%'")
        database.execute("UPDATE entries SET value = '{}' WHERE key LIKE 'vm/cache%'")
        database.commit()
    view = repair(paths.root)
    assert view.vms == ("mail",)
    assert any("'db'" in sentence and "layers" in sentence for sentence in view.lost)
    assert any("cache" in sentence for sentence in view.lost)
    assert view.kept["pool"] == 0
    assert set(view.layers_aside) == {"web-disk0", "cache-disk0"}
    assert (Path(str(view.aside)) / "layers" / "web-disk0.qcow2").exists()
    assert await names_in(paths) == {"mail"}


async def test_an_old_record_never_writes_to_what_others_stand_on(paths: StatePaths) -> None:
    """Of a VM that was cloned after the last copy of its record."""
    layers = LayerStore(paths.layers)
    layers.create_overlay("web-disk0", layer_id="moment-disk0")
    paths.inventory.unlink()
    view = repair(paths.root)
    assert any("'web'" in sentence for sentence in view.altered)
    async with inventory_of(paths) as inventory:
        [disk] = inventory.find_vm("web").machine.disks
    assert disk.layer not in ("web-disk0", "moment-disk0")
    assert layers.layer(disk.layer).parent == "web-disk0"
    assert "moment-disk0" in view.layers_aside


async def test_two_of_one_name_are_told_apart(paths: StatePaths) -> None:
    text = json.dumps(vm("web", "db-disk0").changed(id="f" * 12).model_dump(mode="json"))
    with closing(sqlite3.connect(paths.inventory)) as database:
        database.execute("INSERT INTO entries VALUES ('vm/ffffffffffff', ?, 5000)", (text,))
        database.execute("PRAGMA user_version=99")
        database.commit()
    view = repair(paths.root)
    assert [name for name in view.vms if name.startswith("web")] == ["web", "web-web000"]


async def test_a_record_of_a_copy_that_was_being_made_is_kept(paths: StatePaths) -> None:
    """It may be finished since, and only this record too old to say so: a start would remove it."""
    async with inventory_of(paths) as inventory:
        await inventory.change_vm(vm("web", None).id, provisional=True)
    paths.inventory.unlink()
    assert any("'web'" in sentence for sentence in repair(paths.root).altered)
    async with inventory_of(paths) as inventory:
        assert {one.name for one in inventory.users_vms()} == set(NAMES)


async def test_the_journal_of_a_damaged_inventory_is_not_carried_out(paths: StatePaths) -> None:
    """An entry that was erased, and shows again, could remove a VM."""
    entry = JournalEntry(kind="remove", vm_id="x", at=1.0, detail={"clones": [vm("web", None).id]})
    async with inventory_of(paths) as inventory:
        await inventory.journal.add(entry)
    with closing(sqlite3.connect(paths.inventory)) as database:
        database.execute("UPDATE entries SET value = 'x' WHERE key LIKE 'vm/db%'")
        database.commit()
    repair(paths.root)
    async with inventory_of(paths) as inventory:
        assert inventory.journal.all() == []


async def test_no_repair_under_a_running_daemon(paths: StatePaths) -> None:
    with single_instance(paths.root), pytest.raises(ConflictError):
        repair(paths.root)


async def test_the_copies_follow_the_inventory(paths: StatePaths) -> None:
    store = await open_inventory(paths)
    task = asyncio.create_task(Copies(store, paths.records).run())
    async with Inventory.open(store) as inventory:
        await asyncio.sleep(0)
        await inventory.put_setting("../strange name", 1)
        await inventory.remove_vm(vm("db", None).id)
        await inventory.change_vm(vm("web", None).id, request_key="k")
        for _ in range(1000):
            found = read_copies(paths.records)
            if newest_revision(paths.records) == await store.revision() and f"vm/{vm('db', None).id}" not in found:
                break
            await asyncio.sleep(0.02)
    await store.aclose()
    await asyncio.wait([task])
    found = read_copies(paths.records)
    assert found[f"vm/{vm('web', None).id}"].value["request_key"] == "k"
    assert found["setting/../strange name"].value["value"] == 1


async def test_a_copy_that_is_right_is_not_written_again(paths: StatePaths) -> None:
    files = {path: path.stat().st_ino for path in (paths.records / "vm").iterdir()}
    wrong, gone, *right = sorted(files)
    damaged = json.loads(wrong.read_text())
    damaged["value"]["request_key"] = "another"  # of the right revision
    wrong.write_text(json.dumps(damaged))
    gone.unlink()
    (paths.records / "vm" / "stranger.json").write_text("{}")
    store = await open_inventory(paths)
    await Copies(store, paths.records).catch_up()
    await store.aclose()
    assert set((paths.records / "vm").iterdir()) == set(files)
    assert {path: path.stat().st_ino for path in right} == {path: files[path] for path in right}
    assert json.loads(wrong.read_text())["value"]["request_key"] is None
    assert len(read_copies(paths.records)) >= len(NAMES)


async def test_what_is_no_copy_is_passed_over(paths: StatePaths) -> None:
    for name, text in (("a.json", "nonsense"), ("b.json", "[]"), ("c.json", '{"key": "vm/x", "revision": 1}')):
        (paths.records / "vm" / name).write_text(text)
    assert len([key for key in read_copies(paths.records) if key.startswith("vm/")]) == len(NAMES)


@given(
    damage=st.lists(st.tuples(st.integers(0, 1 << 17), st.binary(min_size=1, max_size=64)), min_size=1, max_size=6),
    where=st.sampled_from(("inventory.db", "records", "both")),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damage_anywhere_is_refused_or_harmless_and_always_repaired(
    damage: list[tuple[int, bytes]], where: str
) -> None:
    """Whatever bytes change: the daemon starts or says what to do, and after a repair it starts."""

    async def case(paths: StatePaths) -> None:
        await furnish(paths)
        targets = [paths.inventory] if where != "records" else []
        targets += sorted(paths.records.rglob("*.json"))[:2] if where != "inventory.db" else []
        for target in targets:
            data = bytearray(target.read_bytes())
            for offset, junk in damage:
                at = offset % len(data)
                data[at : at + len(junk)] = junk[: len(data) - at]
            target.write_bytes(data)
        await starts_or_says_why(paths)
        view = repair(paths.root)
        assert await names_in(paths) == set(view.vms) if view.aside else True
        if where == "inventory.db" and view.aside:
            assert {*view.vms} == set(NAMES)

    with state_folder() as paths:
        asyncio.run(case(paths))


async def starts_or_says_why(paths: StatePaths) -> None:
    with contextlib.suppress(DamagedError):
        async with inventory_of(paths):
            return
    await refused(paths)
