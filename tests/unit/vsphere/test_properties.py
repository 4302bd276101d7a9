"""Paths of properties, and values made to fit what is declared."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.vsphere.core.properties import check_path, read_all, reader, split, value_at
from ramet.vsphere.types import Support, vim, vmodl
from tests.unit.vsphere.soap_kit import FakeVm, make_world, vm

InvalidProperty = vmodl.query.InvalidProperty
NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
KEY = st.one_of(st.none(), st.text(st.characters(exclude_characters='"'), max_size=6))


@given(st.lists(st.tuples(NAME, KEY), min_size=1, max_size=6))
def test_a_path_is_split_into_the_names_and_keys_that_it_is_made_of(parts: list[tuple[str, str | None]]) -> None:
    path = ".".join(name if key is None else f'{name}["{key}"]' for name, key in parts)
    assert split(path) == parts


@given(st.lists(st.tuples(NAME, st.one_of(st.none(), st.integers(-9, 9999).map(str))), min_size=1, max_size=6))
def test_keys_that_are_numbers_need_no_quotes(parts: list[tuple[str, str | None]]) -> None:
    assert split(".".join(name if key is None else f"{name}[{key}]" for name, key in parts)) == parts


@given(st.text(max_size=20))
def test_any_text_is_a_path_or_an_invalid_property(text: str) -> None:
    with contextlib.suppress(InvalidProperty):
        assert "".join(name for name, _ in split(text)).isidentifier()


NO_PATHS = ["", ".", "a.", ".a", "a..b", "a[", "a[]", "a]b", "a b", "a[3][4]", 'a["x', "é", "a-b", "a" * 1001]


@pytest.mark.parametrize("path", NO_PATHS)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(InvalidProperty):
        split(path)


@pytest.mark.parametrize(
    "path",
    [
        "name",
        "config.hardware.device[4000].backing",
        "config.hardware.device[4000].backing.deviceName",
        'config.extraConfig["guestinfo.a.b"].value',
        "runtime.powerState",
        "recentTask",
    ],
)
def test_paths_that_the_schema_has(path: str) -> None:
    check_path(vim.VirtualMachine, path)


UNKNOWN = ["nope", "parent.name", "name[3]", "config.hardware.device.key", "runtime.powerState.x"]


@pytest.mark.parametrize("path", UNKNOWN)
def test_paths_that_the_schema_has_not(path: str) -> None:
    with pytest.raises(InvalidProperty) as caught:
        check_path(vim.VirtualMachine, path)
    assert caught.value.name == path


@pytest.mark.parametrize("path", ["runtime.__class__", "runtime.GetPowerState", "runtime.__dict__", "runtime.nope"])
def test_nothing_but_fields_is_read(path: str) -> None:
    world = make_world()
    assert value_at(vm(world, 1), path) is None


def test_values_get_the_declared_type() -> None:
    one = vm(make_world(), 1)
    assert isinstance(value_at(one, "runtime.powerState"), vim.VirtualMachine.PowerState)
    assert isinstance(value_at(one, "parent"), vim.Folder)
    assert value_at(one, "datastore") == vim.Datastore.Array()
    assert isinstance(value_at(one, "datastore"), vim.Datastore.Array)
    assert value_at(one, "guest.ipAddress") is None
    assert value_at(one, "summary.config.name") is None


def test_elements_of_arrays_are_found_by_their_keys() -> None:
    one = vm(make_world(), 1)
    one.devices = [vim.vm.device.VirtualDisk(key=2000, capacityInKB=4), vim.vm.device.VirtualVmxnet3(key=4000)]
    assert value_at(one, "config.hardware.device[2000].capacityInKB") == 4
    assert value_at(one, "config.hardware.device[4000].capacityInKB") is None
    assert value_at(one, "config.hardware.device[1]") is None
    assert isinstance(value_at(one, "config.hardware.device"), vim.vm.device.VirtualDevice.Array)


def test_the_class_is_asked_for_the_longest_part_of_a_path() -> None:
    one = vm(make_world(), 1)
    value_at(one, "runtime.powerState")
    assert one.reads == 1
    assert value_at(one, "runtime.connectionState") == "connected"
    assert one.reads == 1
    assert reader(FakeVm, "runtime.powerState") is reader(FakeVm, "runtime.powerState")


async def test_what_is_unset_is_left_out() -> None:
    one = vm(make_world(), 1)
    assert await read_all(one, ("name", "guest.ipAddress")) == {"name": "guest 1"}
    with pytest.raises(InvalidProperty):
        await read_all(one, ("name", "nope"))
    assert isinstance((await read_all(one, ("name",)))["name"], str)
    assert Support.ManagedObject.Array([one.ref])[0]._moId == "vm-1"
