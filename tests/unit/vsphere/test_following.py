"""Whatever happens, a client that applies what it is told ends with what there is."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.vsphere.core.properties import value_at
from ramet.vsphere.core.world import World
from ramet.vsphere.types import vim
from tests.unit.vsphere.soap_kit import FakeVm, make_world, property_spec, view_spec
from tests.unit.vsphere.test_collector import Client

PATHS = ("name", "runtime.powerState", "guest.ipAddress", "runtime")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5)),
        st.tuples(st.just("remove"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["on", "off", "address", "none"]), st.integers(1, 5)),
        st.tuples(st.just("ask"), st.sampled_from([None, 1, 2])),
        st.tuples(st.just("ask again"), st.just(0)),
    ),
    max_size=30,
)


class Follower:
    """What a client knows by what it was told, and no more."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.version = ""
        self.known: dict[str, dict[str, Any]] = {}
        self.before: tuple[str, dict[str, dict[str, Any]]] = ("", {})

    async def ask(self, most: int | None = None) -> bool:
        update = await self.client.wait(self.version, seconds=0, most=most)
        if update is None:
            return False
        self.before, self.version = (self.version, deepcopy(self.known)), update.version
        told = [one for found in update.filterSet for one in found.objectSet]
        assert most is None or len(told) <= most
        for one in told:
            self._apply(str(one.kind), one.obj._moId, one.changeSet)
        return True

    def _apply(self, kind: str, moid: str, changes: Any) -> None:
        if kind == "leave":
            self.known.pop(moid, None)
            return
        if kind == "enter":
            self.known[moid] = {}
        assert moid in self.known, f"{moid} was changed before it was met"
        for change in changes:
            path, value = str(change.name), change.val
            assert path in PATHS
            self.known[moid][path] = plain(value)
            if path == "runtime.powerState" and "runtime" in self.known[moid]:  # told as a part of `runtime`, too
                self.known[moid]["runtime"]["powerState"] = plain(value)


def plain(value: Any) -> Any:
    if isinstance(value, vim.vm.RuntimeInfo):
        return {"powerState": str.__str__(value.powerState)}
    return None if value is None else str.__str__(value)


def there_is(world: World) -> dict[str, dict[str, Any]]:
    vms = world.of_kind(vim.VirtualMachine)
    return {mo.moid: {path: plain(value_at(mo, path)) for path in PATHS} for mo in vms}


def happens(world: World, what: str, number: int) -> None:
    moid = f"vm-{number}"
    found = world.get(moid)
    if what == "add" and found is None:
        world.add(FakeVm(world, moid, f"guest {number}"))
    elif what == "remove":
        world.remove(moid)
    elif isinstance(found, FakeVm) and what in ("on", "off"):
        found.set_power({"on": "poweredOn", "off": "poweredOff"}[what])
    elif isinstance(found, FakeVm):
        found.address = "10.0.0.1" if what == "address" else None
        world.updates.touch(moid)


async def follow(steps: list[tuple[str, Any]], is_partial: bool) -> None:
    world = make_world(2)
    client = Client(world)
    spec = view_spec(await client.view(vim.VirtualMachine), property_spec(vim.VirtualMachine, *PATHS))
    await client.filter(spec, partial=is_partial)
    follower = Follower(client)
    for what, how in steps:
        if what == "ask":
            await follower.ask(how)
        elif what == "ask again":  # its answer was lost on the way: it begins where it was
            follower.version, follower.known = deepcopy(follower.before)
            await follower.ask()
        else:
            happens(world, what, how)
    while await follower.ask(2):
        pass
    known = {moid: {path: said.get(path) for path in PATHS} for moid, said in follower.known.items()}
    assert known == there_is(world)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(STEPS, st.booleans())
def test_a_client_that_applies_what_it_is_told_knows_what_there_is(
    steps: list[tuple[str, Any]], is_partial: bool
) -> None:
    asyncio.run(follow(steps, is_partial))


async def test_a_client_whose_answers_were_lost_hears_that_what_came_back_is_gone() -> None:
    steps: list[tuple[str, Any]] = [("ask", None), ("remove", 1), ("ask", None), ("add", 1), ("ask again", 0)]
    await follow([*steps, ("remove", 1), ("ask again", 0)], is_partial=False)
