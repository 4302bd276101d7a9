import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import ConflictError, DamagedError, NotFoundError
from ramet.host.inventory import Inventory
from ramet.host.sqlite_store import SqliteStore
from ramet.model.host import Image
from ramet.model.machine import Machine, Vm, VmState


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Inventory]:
    store = await SqliteStore.open(path / "inventory.db")
    try:
        async with Inventory.open(store) as inventory:
            yield inventory
    finally:
        await store.aclose()


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    async with opened(tmp_path) as inventory:
        yield inventory


def make_vm(name: str, vm_id: str | None = None) -> Vm:
    machine = Machine(name=name)
    return Vm(machine=machine) if vm_id is None else Vm(id=vm_id, machine=machine)


async def test_a_vm_is_found_by_name_id_and_beginning_of_its_id(inventory: Inventory) -> None:
    web = await inventory.put_vm(make_vm("web", "abcdef012345"))
    assert inventory.find_vm("web") is inventory.find_vm("abcdef012345") is inventory.find_vm("abcd")
    assert inventory.vm(web.id) == web
    for ref in ("abc", "nope", ""):
        with pytest.raises(NotFoundError):
            inventory.find_vm(ref)


async def test_a_name_wins_over_an_id(inventory: Inventory) -> None:
    await inventory.put_vm(make_vm("web", "abcdef012345"))
    named = await inventory.put_vm(make_vm("abcdef012345"))
    assert inventory.find_vm("abcdef012345") == named


@pytest.mark.parametrize(
    ("hidden", "shown"), [({"pool_of": "web"}, {"pool_of": None}), ({"registered": False}, {"registered": True})]
)
async def test_what_is_not_shown_cannot_be_named_until_it_is(
    inventory: Inventory, hidden: dict[str, Any], shown: dict[str, Any]
) -> None:
    pooled = await inventory.put_vm(make_vm("pool-1", "abcdef000001").changed(**hidden))
    for ref in ("pool-1", "abcdef000001", "abcd"):
        with pytest.raises(NotFoundError):
            inventory.find_vm(ref)
    assert (inventory.users_vms(), inventory.vms()) == ([], [pooled])
    other = await inventory.put_vm(make_vm("pool-1"))  # the name is free
    with pytest.raises(ConflictError):
        await inventory.put_vm(pooled.changed(**shown))
    taken = await inventory.put_vm(pooled.changed(**shown, machine=Machine(name="desk")))
    assert inventory.find_vm("desk") == inventory.find_vm("abcd") == taken
    assert inventory.find_vm("pool-1") == other
    await inventory.remove_vm(taken.id)
    await inventory.put_vm(make_vm("desk"))  # its name is free again


async def test_an_ambiguous_beginning_names_the_candidates(inventory: Inventory) -> None:
    await inventory.put_vm(make_vm("web", "abcdef000001"))
    await inventory.put_vm(make_vm("db", "abcdef000002"))
    with pytest.raises(NotFoundError, match=r"several VMs' ids: abcdef000001 \(web\), abcdef000002 \(db\)"):
        inventory.find_vm("abcdef")


async def test_an_unknown_name_gets_a_suggestion(inventory: Inventory) -> None:
    await inventory.put_vm(make_vm("web-server"))
    with pytest.raises(NotFoundError, match=r"There is no VM 'web-sever'\. Did you mean 'web-server'\?"):
        inventory.find_vm("web-sever")


async def test_a_taken_name_is_refused_and_changes_nothing(inventory: Inventory) -> None:
    web = await inventory.put_vm(make_vm("web"))
    db = await inventory.put_vm(make_vm("db"))
    with pytest.raises(ConflictError, match="'web' exists already"):
        inventory.check_name_is_free("web")
    with pytest.raises(ConflictError, match="'web' exists already"):
        await inventory.put_vm(make_vm("web"))
    with pytest.raises(ConflictError):
        await inventory.change_vm(db.id, machine=db.machine.changed(name="web"))
    assert inventory.vms() == [db, web]


async def test_of_several_who_want_a_name_at_once_one_gets_it(inventory: Inventory) -> None:
    results = await asyncio.gather(*(inventory.put_vm(make_vm("web")) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(result, ConflictError) for result in results) == 5
    assert len(inventory.vms()) == 1


async def test_renaming_and_removing_free_the_name(inventory: Inventory) -> None:
    web = await inventory.put_vm(make_vm("web"))
    await inventory.change_vm(web.id, machine=web.machine.changed(name="www"))
    second = await inventory.put_vm(make_vm("web"))
    assert [inventory.find_vm(name).id for name in ("www", "web")] == [web.id, second.id]
    await inventory.remove_vm(web.id)
    await inventory.remove_vm(web.id)
    inventory.check_name_is_free("www")
    with pytest.raises(NotFoundError, match="gone"):
        await inventory.change_vm(web.id, state=VmState.RUNNING)


async def test_changes_of_one_vm_at_once_are_all_kept(inventory: Inventory) -> None:
    vm = await inventory.put_vm(make_vm("web"))
    await asyncio.gather(
        inventory.change_vm(vm.id, state=VmState.RUNNING),
        inventory.change_vm(vm.id, started_at=5.0),
        inventory.change_vm(vm.id, pause_reason="io-error"),
    )
    now = inventory.vm(vm.id)
    assert (now.state, now.started_at, now.pause_reason) == (VmState.RUNNING, 5.0, "io-error")


async def test_memory_follows_a_write_that_was_cancelled(inventory: Inventory) -> None:
    vm = await inventory.put_vm(make_vm("web"))
    rename = asyncio.ensure_future(inventory.change_vm(vm.id, machine=vm.machine.changed(name="www")))
    await asyncio.sleep(0)
    rename.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rename
    await inventory.change_vm(vm.id, started_at=1.0)
    assert inventory.find_vm("www") == inventory.vm(vm.id)
    inventory.check_name_is_free("web")


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as inventory:
        vm = await inventory.put_vm(make_vm("web"))
        gone = await inventory.put_vm(make_vm("gone"))
        await inventory.remove_vm(gone.id)
        await inventory.images.add(Image(name="micro", recipe="micro"))
        await inventory.put_setting("page_sharing", "off")
    async with opened(tmp_path) as inventory:
        assert inventory.vms() == [vm]
        assert inventory.images.find("micro").recipe == "micro"
        assert inventory.setting("page_sharing") == "off"
        assert inventory.setting("other") is None


async def test_memory_follows_what_others_write(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "inventory.db")
    async with Inventory.open(store) as inventory:
        vm = make_vm("web")
        revision = await store.put(f"vm/{vm.id}", vm.model_dump(mode="json"))
        changes = store.watch("vm/", revision - 1)
        await anext(changes)
        assert inventory.find_vm("web") == vm
        await store.delete(f"vm/{vm.id}")
        await anext(changes)
        assert inventory.vms() == []
    await store.aclose()


async def test_tables_refuse_a_taken_key_and_suggest_for_an_unknown_one(inventory: Inventory) -> None:
    image = Image(name="debian", recipe="debian")
    await inventory.images.add(image)
    with pytest.raises(ConflictError, match="The image 'debian' exists already"):
        await inventory.images.add(image)
    with pytest.raises(NotFoundError, match="Did you mean 'debian'"):
        inventory.images.find("debain")
    await inventory.images.remove("debian")
    await inventory.images.remove("debian")
    assert inventory.images.all() == []
    await inventory.images.add(image)


async def test_an_error_in_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        async with opened(tmp_path) as inventory:
            inventory.find_vm("web")


async def test_a_record_that_is_not_valid_is_damage(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "inventory.db")
    await store.put("vm/abc", {"machine": {"name": "web"}, "surprise": 1})
    with pytest.raises(DamagedError, match="vm/abc is not valid: surprise"):
        async with Inventory.open(store):
            pass
    await store.aclose()
