"""XML that is typed into a form."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.vsphere.types import Support, operation_info, vim, vmodl
from ramet.vsphere.wire.fragments import FragmentError, argument, parse_fragment


def parameter(wire: Any, method: str, name: str) -> Any:
    return next(one for one in operation_info(wire, method).params if one.name == name)


SPEC = parameter(vim.VirtualMachine, "InstantClone_Task", "spec")
ENTITY = parameter(vim.AuthorizationManager, "RetrieveEntityPermissions", "entity")
CLONES = parameter(vim.VirtualMachine, "ReconfigVM_Task", "spec")


def made(text: str, info: Any = SPEC) -> Any:
    return argument(parse_fragment(text), info)


def test_the_short_spec_of_an_instant_clone() -> None:
    spec = made("<spec><name>kid</name><location/></spec>")
    assert spec.name == "kid"
    assert isinstance(spec.location, vim.vm.RelocateSpec)


def test_an_undeclared_prefix_names_a_type() -> None:
    entity = made('<entity type="VirtualMachine" xsi:type="ManagedObjectReference">vm-1</entity>', ENTITY)
    assert isinstance(entity, vim.VirtualMachine)
    assert entity._moId == "vm-1"


def test_an_array_is_its_element_repeated() -> None:
    text = """<spec><name>kid</name><location/>
      <config><key>guestinfo.a</key><value xsi:type="xsd:string">1</value></config>
      <config><key>guestinfo.b</key><value>&lt;2&gt;</value></config></spec>"""
    assert [(one.key, one.value) for one in made(text).config] == [("guestinfo.a", "1"), ("guestinfo.b", "<2>")]


def test_a_kind_of_what_is_declared_is_named() -> None:
    text = """<spec><deviceChange><operation>edit</operation><device xsi:type="VirtualVmxnet3"><key>4000</key>
      <connectable><migrateConnect>disconnect</migrateConnect><startConnected>true</startConnected>
      <allowGuestControl>true</allowGuestControl><connected>false</connected></connectable></device></deviceChange></spec>"""
    device = made(text, CLONES).deviceChange[0].device
    assert isinstance(device, vim.vm.device.VirtualVmxnet3)
    assert device.connectable is not None
    assert (device.key, device.connectable.migrateConnect) == (4000, "disconnect")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("<spec><name>kid</name></spec>", "spec.location"),
        ("<spec><name>kid</name><location/><colour>red</colour></spec>", "colour"),
        ("<spec><name>kid</name><location><pool type='Nothing'>x</pool></location></spec>", "spec.location.pool"),
        ("<spec><name>a</name><name>b</name><location/></spec>", "spec.name"),
    ],
)
def test_what_is_wrong_is_named(text: str, where: str) -> None:
    with pytest.raises(vmodl.MethodFault) as caught:
        made(text)
    assert where in caught.value.msg


@pytest.mark.parametrize(
    "text",
    [
        "<spec>",
        "</fragment><fragment>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><spec/>",
        "<spec>&b;</spec>",
        "kid",
        "<a>" * 80 + "</a>" * 80,
        "<a/>" * 400_000,
    ],
)
def test_what_is_no_fragment_is_refused(text: str) -> None:
    with pytest.raises(FragmentError):
        parse_fragment(text)


def test_nothing_is_no_argument() -> None:
    assert argument(parse_fragment(" \n"), SPEC) is None
    assert issubclass(type(argument([], parameter(vim.view.ViewManager, "CreateListView", "obj"))), Support.Array)
