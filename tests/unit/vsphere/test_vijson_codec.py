"""Values of the schema as JSON, and back."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest

from ramet.vsphere.types import Support, vim, vmodl
from ramet.vsphere.vijson.codec import fault_to_json, from_json, to_json
from ramet.vsphere.wire.bounded_json import JsonError, parse_json

REFERENCE = {"_typeName": "ManagedObjectReference", "type": "VirtualMachine", "value": "vm-1"}
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_a_data_object_carries_its_type() -> None:
    spec = vim.vm.InstantCloneSpec(
        name="kid", location=vim.vm.RelocateSpec(), config=[vim.option.OptionValue(key="guestinfo.a", value="1")]
    )
    data = to_json(spec, vim.vm.InstantCloneSpec)
    assert data == {
        "_typeName": "VirtualMachineInstantCloneSpec",
        "name": "kid",
        "location": {"_typeName": "VirtualMachineRelocateSpec"},
        "config": [
            {
                "_typeName": "OptionValue",
                "key": "guestinfo.a",
                "value": {"_typeName": "string", "_value": "1"},
            }
        ],
    }
    again = from_json(data, vim.vm.InstantCloneSpec, "spec")
    assert to_json(again, vim.vm.InstantCloneSpec) == data


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("x", {"_typeName": "string", "_value": "x"}),
        (True, {"_typeName": "boolean", "_value": True}),
        (7, {"_typeName": "int", "_value": 7}),
        (Support.long(1 << 40), {"_typeName": "long", "_value": 1 << 40}),
        (NOON, {"_typeName": "dateTime", "_value": "2026-01-31T12:00:00Z"}),
        (Support.binary(b"\x00\xff"), {"_typeName": "binary", "_value": "AP8="}),
        (
            vim.VirtualMachine.PowerState("poweredOn"),
            {"_typeName": "VirtualMachinePowerState", "_value": "poweredOn"},
        ),
        (vim.VirtualMachine("vm-1"), REFERENCE),
        (Support.GetVmodlType("string[]")(["a"]), {"_typeName": "ArrayOfString", "_value": ["a"]}),
        (
            vim.VirtualMachine.Array([vim.VirtualMachine("vm-1")]),
            {
                "_typeName": "ArrayOfManagedObjectReference",
                "_value": [REFERENCE],
            },
        ),
    ],
)
def test_where_anything_may_stand_a_value_tells_its_type(value: Any, data: Any) -> None:
    assert to_json(value) == data
    assert to_json(from_json(data, object, "value")) == data


def test_a_fault_in_a_field_is_localized_and_one_that_is_the_answer_is_not() -> None:
    fault = vim.fault.DuplicateName(name="kid", object=vim.VirtualMachine("vm-1"), msg="The name is taken.")
    error = to_json(vim.TaskInfo(error=fault))["error"]
    assert (error["_typeName"], error["localizedMessage"]) == ("LocalizedMethodFault", "The name is taken.")
    assert error["fault"]["_typeName"] == "DuplicateName"
    assert fault_to_json(fault)["faultstring"] == "The name is taken."
    assert isinstance(from_json(error, vmodl.MethodFault, "error"), vim.fault.DuplicateName)


def test_names_of_types_and_methods_are_strings() -> None:
    data = {"type": "VirtualMachine", "pathSet": ["name"]}
    spec = from_json(data, vmodl.query.PropertyCollector.PropertySpec, "spec")
    assert spec.type is vim.VirtualMachine
    assert to_json(spec)["type"] == "VirtualMachine"
    info = vim.TaskInfo(name=Support.GetWsdlMethod("urn:vim25", "PowerOnVM_Task"))
    assert to_json(info)["name"] == "PowerOnVM_Task"


def test_a_field_newer_than_the_release_is_left_out() -> None:
    newer = [
        info.name
        for info in vim.vm.ConfigSpec._GetPropertyList()
        if not Support.IsChildVersion("vim.version.v8_0_1_0", info.version) and info.type is str
    ]
    assert newer
    spec = vim.vm.ConfigSpec(**{newer[0]: "x"})
    assert newer[0] in to_json(spec)
    assert newer[0] not in to_json(spec, object, "vim.version.v8_0_1_0")


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"name": "kid"}, "spec.location"),
        ({"name": "kid", "location": {}, "x": 1}, "spec.x"),
        ({"name": 7, "location": {}}, "spec.name"),
        ({"name": "kid", "location": {"_typeName": "VirtualMachineConfigSpec"}}, "spec.location"),
        ({"name": "kid", "location": {"_typeName": "Nothing"}}, "spec.location"),
        ({"name": "kid", "location": {"pool": "resgroup-8"}}, "spec.location.pool"),
        ({"name": "kid", "location": {}, "config": {}}, "spec.config"),
        ({"name": "kid", "location": {}, "config": [None]}, "spec.config[0]"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, where: str) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        from_json(data, vim.vm.InstantCloneSpec, "spec")
    assert caught.value.invalidProperty == where


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", 1 << 31), ("short", 70000), ("byte", 300), ("int", 1.5), ("int", True), ("boolean", 2),
        ("dateTime", "x"), ("double", "nan"), ("VirtualMachinePowerState", "on"), ("string", 1), ("binary", 7),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_type_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument):
        from_json({"_typeName": kind, "_value": value}, object, "value")


@pytest.mark.parametrize(
    "data", [b"{", b"[" * 65 + b"]" * 65, b"NaN", b"[Infinity]", b"\xff", b"9" * 5000, b'{"a": "\xff"}', b"1 2"]
)
def test_bad_json_is_refused(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse_json(data)


@pytest.mark.parametrize(
    "data",
    [
        ("[" * 65 + "]" * 65).encode("utf-16-le"), '{"a": 1}'.encode("utf-16"), '{"a": 1}'.encode("utf-32-be"),
        b"]" * (1 << 20), b"[" + b"[],{}," * 30_000 + b"1]",
    ],
    ids=["deep UTF-16", "UTF-16", "UTF-32", "only closed", "many parts"],
)  # fmt: skip
def test_json_that_is_made_to_cost_is_refused(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse_json(data)


@pytest.mark.parametrize("piece", [b"x", b"\\\\"], ids=["plain", "escaped"])
def test_a_long_string_takes_little_more_than_itself(piece: bytes) -> None:
    text = b'"' + piece * ((4 << 20) // len(piece) - 2) + b'"'
    tracemalloc.start()
    try:
        parse_json(text)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()


def test_json_may_begin_with_a_mark_of_its_order() -> None:
    assert parse_json('\ufeff{"a": "é"}'.encode()) == {"a": "é"}


def test_brackets_in_strings_are_not_depth() -> None:
    assert parse_json(b'{"a": "' + b"[" * 100 + b'\\"["}') == {"a": "[" * 100 + '"['}
    assert parse_json(b"  ") is None


@pytest.mark.parametrize("name", ["ArrayOfstring", "ArrayOf" * 2000 + "String", "", ":", "ArrayOf"])
def test_a_type_that_there_is_not(name: str) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument):
        from_json({"_typeName": name, "_value": []}, object, "value")


def test_an_empty_array_may_stand_where_one_is_required() -> None:
    spec = from_json({"propSet": [], "objectSet": []}, vmodl.query.PropertyCollector.FilterSpec, "spec")
    assert list(spec.propSet) == []
