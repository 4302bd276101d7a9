"""What the reference says of operations: it is made from the classes, so that it is as true as what they say there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tools import vsphere_reference as reference

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, Operation, operation, prop
from ramet.vsphere.types import Support, operation_info, property_info, vim, vmodl, wire_name


def every_operation() -> Iterator[tuple[type[Mo], Operation]]:
    for classes in reference._kinds().values():
        for kind in classes:
            yield from ((kind, offered) for offered in kind.operations.values())


def test_what_is_said_to_be_refused_is_refused_with_that_fault_and_that_sentence() -> None:
    refused = [(kind, offered) for kind, offered in every_operation() if offered.refusal is not None]
    assert refused
    for kind, offered in refused:
        info = operation_info(kind.wire, offered.name)
        arguments = {parameter.name: None for parameter in info.params}
        with pytest.raises(vmodl.MethodFault) as raised:
            asyncio.run(offered.function(kind.__new__(kind), Call(None), **arguments))
        assert (wire_name(type(raised.value)), raised.value.msg) == (offered.fault, offered.refusal)


def test_every_operation_and_property_is_one_of_the_schemas() -> None:
    for kind, offered in every_operation():
        assert operation_info(kind.wire, offered.name) is not None, (kind, offered.name)
        for path in kind.getters:
            assert property_info(kind.wire, path.partition(".")[0]) is not None, (kind, path)


class Half(Mo):
    wire = vim.Datacenter

    @prop("name", partial="the first half")
    def get_name(self) -> str:
        return "half"

    @prop("parent")
    def get_parent(self) -> None:
        return None

    @operation("Rename_Task", partial="a little")
    async def rename(self, call: Call, newName: str) -> None: ...

    @operation("Destroy_Task", refusal="It stays.", fault="InvalidState")
    async def destroy(self, call: Call) -> None: ...

    @operation("Reload")
    async def reload(self, call: Call) -> None: ...


def test_rows_say_what_there_is() -> None:
    section = reference._section(vim.Datacenter, [Half])
    for row in (
        "| `Rename_Task` | partial | a little |",
        "| `Destroy_Task` | refused | InvalidState: It stays. |",
        "| `PowerOnMultiVM_Task` | refused | NotSupported |",
        "| `name` | partial | the first half | string |",
        "| `parent` | supported |  | ManagedObjectReference:ManagedEntity |",
        "| `network` | unset | an empty list | ManagedObjectReference:Network[] |",
    ):
        assert row in section
    assert issubclass(Half.wire, Support.ManagedObject)
