"""Values as XML: what is written, and that pyVmomi's own parser and ours read the same out of it."""

from __future__ import annotations

import datetime
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import SoapAdapter

from ramet.vsphere.types import NEWEST, Support, fields_of, make, vim, vmodl
from ramet.vsphere.wire import leaves
from ramet.vsphere.wire.soap_request import parse_request
from ramet.vsphere.wire.soap_values import escape, to_xml, unset_fields

NAMES = (
    'xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
)
OLD = "vim.version.version10"  # 6.0


def as_pyvmomi_reads(value: Any) -> Any:
    xml = to_xml("val", value, object, NEWEST).replace("<val ", f"<val {NAMES} ", 1)
    return SoapAdapter.Deserialize(xml.encode(), object)


def as_we_read(value: Any) -> Any:
    """As a parameter that may be anything: the value of an OptionValue."""
    xml = to_xml("val", value, object, NEWEST).replace("<val ", "<value ", 1)
    xml = f"{xml[: xml.rindex('</val>')]}</value>"
    body = (
        f'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" {NAMES}><e:Body><UpdateOptions>'
        f'<_this type="OptionManager">o</_this><changedValue><key>k</key>{xml}</changedValue></UpdateOptions></e:Body>'
        "</e:Envelope>"
    )
    return parse_request(body.encode()).arguments["changedValue"][0].value


def plain(value: Any) -> Any:
    """Comparable: types by their names, and what is unset left out."""
    if isinstance(value, vmodl.MethodFault):
        inner = value.fault if isinstance(value, vmodl.LocalizedMethodFault) else value
        return type(inner)._wsdlName, inside(inner)
    if isinstance(value, Support.DataObject):
        return type(value)._wsdlName, inside(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Support.ManagedObject):
        return type(value)._wsdlName, value._moId
    if isinstance(value, bool | float | datetime.datetime):
        return value
    if isinstance(value, int):
        return int(value)
    return bytes(value) if isinstance(value, bytes) else str.__str__(value)


def inside(value: Any) -> dict[str, Any]:
    found = {name: getattr(value, name) for name in fields_of(type(value)) if name != "msg"}
    is_unset = {name for name, one in found.items() if one is None or (isinstance(one, list) and not one)}
    return {name: plain(one) for name, one in found.items() if name not in is_unset}


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=8)
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    str: TEXT,
    int: st.integers(-(1 << 31), (1 << 31) - 1),
    Support.long: st.integers(-(1 << 63), (1 << 63) - 1).map(Support.long),
    Support.short: st.integers(-(1 << 15), (1 << 15) - 1).map(Support.short),
    Support.byte: st.integers(-128, 127).map(Support.byte),
    float: st.floats(-1e6, 1e6),
    Support.double: st.floats(-1e6, 1e6).map(Support.double),
    Support.binary: st.binary(max_size=8).map(Support.binary),
    Support.URI: st.just(Support.URI("ds:///x")),
    Support.PropertyPath: st.just(Support.PropertyPath("config.name")),
    datetime.datetime: st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(2100, 1, 1)).map(
        lambda when: when.replace(microsecond=0, tzinfo=datetime.UTC)
    ),
}
KINDS = (
    vim.vm.ConfigSpec,
    vim.vm.CloneSpec,
    vim.vm.InstantCloneSpec,
    vim.TaskInfo,
    vim.vm.GuestInfo,
    vim.vm.device.VirtualDisk,
    vim.vm.customization.Specification,
    vim.fault.DuplicateName,
    vim.event.VmClonedEvent,
    vim.option.OptionValue,
)


@st.composite
def values(draw: st.DrawFn, kind: Any, depth: int = 2) -> Any:
    if kind in LEAVES:
        return draw(LEAVES[kind])
    if leaves.is_enum(kind):
        return kind(str.__str__(draw(st.sampled_from(kind.values))))
    if leaves.is_reference(kind):
        return kind(f"moid-{draw(st.integers(1, 9))}")
    if leaves.is_array(kind):
        return kind([draw(values(kind.Item, depth)) for _ in range(draw(st.integers(0, 2)))])
    if kind is object:
        return draw(st.sampled_from(["text", 5, True]))
    if kind is type:
        return vim.VirtualMachine
    made = make(kind)
    for name, info in fields_of(kind).items():
        is_needed = not info.flags & Support.F_OPTIONAL
        is_plain = info.type in LEAVES or leaves.is_enum(info.type)
        if name in ("msg", "dynamicType", "dynamicProperty", "faultCause", "faultMessage"):
            continue
        if info.type is Support.ManagedMethod or not Support.IsChildVersion(NEWEST, info.version):
            continue
        if is_needed or (is_plain and draw(st.integers(0, 3)) == 0) or (depth and draw(st.integers(0, 7)) == 0):
            if leaves.is_fault(info.type):
                made.__dict__[name] = vim.fault.NotFound()
            elif info.type is not Support.Link and not (leaves.is_array(info.type) and info.type.Item is Support.Link):
                made.__dict__[name] = draw(values(info.type, depth - 1 if depth else 0))
    return made


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS).flatmap(values))
def test_what_is_written_is_what_pyvmomi_and_we_read(value: Any) -> None:
    assert plain(as_pyvmomi_reads(value)) == plain(value)
    if not unset_fields(value):
        assert plain(as_we_read(value)) == plain(value)


@given(st.sampled_from(list(LEAVES)).flatmap(lambda kind: LEAVES[kind]))
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    read = as_pyvmomi_reads(value)
    assert plain(read) == plain(value)
    if not isinstance(value, Support.PropertyPath):
        assert isinstance(read, type(value))


@pytest.mark.parametrize(
    ("value", "xml"),
    [
        ("a<b>&\r", '<val xsi:type="xsd:string">a&lt;b&gt;&amp;&#13;</val>'),
        (5, '<val xsi:type="xsd:int">5</val>'),
        (5 << 40, '<val xsi:type="xsd:long">5497558138880</val>'),
        (True, '<val xsi:type="xsd:boolean">true</val>'),
        (math.inf, '<val xsi:type="xsd:float">INF</val>'),
        (vim.VirtualMachine, '<val xsi:type="xsd:string">VirtualMachine</val>'),
        (vim.VirtualMachine.InstantClone, '<val xsi:type="xsd:string">InstantClone_Task</val>'),
        (
            vim.VirtualMachine("vm-1"),
            '<val xsi:type="ManagedObjectReference" type="VirtualMachine">vm-1</val>',
        ),
        (
            Support.ManagedObject.Array([vim.Task("task-1")]),
            '<val xsi:type="ArrayOfManagedObjectReference"><ManagedObjectReference xsi:type="ManagedObjectReference" '
            'type="Task">task-1</ManagedObjectReference></val>',
        ),
        (vim.VirtualMachine.Array(), '<val xsi:type="ArrayOfManagedObjectReference"></val>'),
        (
            Support.GetVmodlType("string[]")(["a"]),
            '<val xsi:type="ArrayOfString"><string xsi:type="xsd:string">a</string></val>',
        ),
        (Support.GetVmodlType("int[]")([]), '<val xsi:type="ArrayOfInt"></val>'),
        (
            vim.option.OptionValue.Array([vim.option.OptionValue(key="k", value=1)]),
            '<val xsi:type="ArrayOfOptionValue"><OptionValue xsi:type="OptionValue"><key>k</key>'
            '<value xsi:type="xsd:int">1</value></OptionValue></val>',
        ),
        (
            vim.fault.NotFound(msg="gone"),
            '<val xsi:type="LocalizedMethodFault"><fault xsi:type="NotFound"></fault>'
            "<localizedMessage>gone</localizedMessage></val>",
        ),
        (vim.VirtualMachine.PowerState("poweredOn"), '<val xsi:type="VirtualMachinePowerState">poweredOn</val>'),
    ],
)
def test_where_anything_may_stand_everything_says_its_type(value: Any, xml: str) -> None:
    assert to_xml("val", value, object, NEWEST) == xml


def test_a_kind_of_the_declared_type_says_which_and_the_type_itself_says_nothing() -> None:
    disk = vim.vm.device.VirtualDisk(key=2000, capacityInKB=4)
    xml = to_xml("device", vim.vm.device.VirtualDevice.Array([disk]), vim.vm.device.VirtualDevice.Array, NEWEST)
    assert xml == '<device xsi:type="VirtualDisk"><key>2000</key><capacityInKB>4</capacityInKB></device>'
    assert to_xml("a", vim.Description(label="l", summary="s"), vim.Description, NEWEST).startswith("<a><label>")


def test_an_old_client_gets_no_field_and_no_type_that_it_does_not_know() -> None:
    runtime = vim.vm.RuntimeInfo(powerState="poweredOn", connectionState="connected", instantCloneFrozen=False)
    assert "instantCloneFrozen" in to_xml("r", runtime, vim.vm.RuntimeInfo, NEWEST)
    assert "instantCloneFrozen" not in to_xml("r", runtime, vim.vm.RuntimeInfo, OLD)
    nvme = vim.vm.device.VirtualNVMEController(key=31000, busNumber=0)
    assert 'xsi:type="VirtualNVMEController"' in to_xml("d", nvme, vim.vm.device.VirtualDevice, NEWEST)
    assert 'xsi:type="VirtualController"' in to_xml("d", nvme, vim.vm.device.VirtualDevice, OLD)


@given(st.text())
def test_any_text_makes_well_formed_xml(text: str) -> None:
    root = ElementTree.fromstring(f"<a>{escape(text)}</a>".encode())
    assert len(root.text or "") <= max(len(text), 1)


def test_control_characters_of_a_guests_do_not_break_clients() -> None:
    assert escape("web\x00\x1b[31m\ud800") == "web\ufffd\ufffd[31m\ufffd"


def test_required_fields_that_are_unset_are_found() -> None:
    assert unset_fields(make(vim.TaskInfo, key="k")) == [".task", ".state", ".reason", ".queueTime"]
