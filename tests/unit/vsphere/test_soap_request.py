"""SOAP requests: what real clients send is understood; whatever else comes is answered with the API's own faults."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import SoapAdapter

from ramet.vsphere.types import NEWEST, Support, vim, vmodl
from ramet.vsphere.wire.soap_request import SoapRequest, parse_request
from ramet.vsphere.wire.xml_tree import MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS

fault = vmodl.fault
START = (
    '<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns="urn:vim25">'
)


def envelope(body: str, header: str = "") -> bytes:
    return f"{START}{header}<e:Body>{body}</e:Body></e:Envelope>".encode()


def call(name: str, inside: str, kind: str = "VirtualMachine", moid: str = "vm-1") -> SoapRequest:
    return parse_request(envelope(f'<{name}><_this type="{kind}">{moid}</_this>{inside}</{name}>'))


def sent_by_pyvmomi(reference: Any, method: str, *arguments: Any) -> SoapRequest:
    stub = SoapAdapter.SoapStubAdapter(host="nowhere", version=NEWEST)
    body = stub.SerializeRequest(reference, type(reference)._GetMethodInfo(method), arguments)
    return parse_request(body if isinstance(body, bytes) else body.encode())


def test_an_instant_clone_as_pyvmomi_sends_it() -> None:
    spec = vim.vm.InstantCloneSpec(
        name="kid & co",
        location=vim.vm.RelocateSpec(
            folder=vim.Folder("group-v3"),
            deviceChange=[
                vim.vm.device.VirtualDeviceSpec(
                    operation="edit", device=vim.vm.device.VirtualVmxnet3(key=4000, macAddress="00:50:56:00:00:01")
                )
            ],
        ),
        config=[vim.option.OptionValue(key="guestinfo.a", value="b"), vim.option.OptionValue(key="n", value=5)],
    )
    asked = sent_by_pyvmomi(vim.VirtualMachine("vm-3"), "InstantClone", spec)
    assert (asked.moid, asked.name) == ("vm-3", "InstantClone_Task")
    read = asked.arguments["spec"]
    assert read.name == "kid & co"
    assert read.location.folder._moId == "group-v3"
    (change,) = read.location.deviceChange
    assert isinstance(change.device, vim.vm.device.VirtualVmxnet3)
    assert change.device.key == 4000
    assert [(one.key, one.value) for one in read.config] == [("guestinfo.a", "b"), ("n", 5)]
    assert isinstance(read.location.disk, list)


def test_lists_are_repeated_elements() -> None:
    asked = sent_by_pyvmomi(
        vim.view.ViewManager("v"), "CreateContainerView", vim.Folder("f"), [vim.VirtualMachine, vim.HostSystem], True
    )
    assert asked.arguments["type"] == [vim.VirtualMachine, vim.HostSystem]
    assert asked.arguments["recursive"] is True


def test_fetch_is_understood_though_the_registry_has_it_not() -> None:
    assert call("Fetch", "<prop>config.name</prop>").arguments == {"prop": "config.name"}


def test_a_session_may_stand_in_the_header() -> None:
    body = envelope(
        '<CurrentTime><_this type="ServiceInstance">ServiceInstance</_this></CurrentTime>',
        "<e:Header><operationID>x</operationID><vcSessionCookie> abc </vcSessionCookie></e:Header>",
    )
    assert parse_request(body).cookie == "abc"


def test_prefixes_and_encodings_and_nil_are_of_no_account() -> None:
    text = (
        '<?xml version="1.0" encoding="{}"?><S:Envelope xmlns:S="http://schemas.xmlsoap.org/soap/envelope/"'
        ' xmlns:v="urn:vim25" xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><S:Body><v:Rename_Task>'
        '<v:_this type="Folder" i:type="v:ManagedObjectReference">f</v:_this><v:newName>Käse</v:newName>'
        "</v:Rename_Task></S:Body></S:Envelope>"
    )
    for encoding in ("UTF-8", "ISO-8859-1", "UTF-16"):
        assert parse_request(text.format(encoding).encode(encoding)).arguments == {"newName": "Käse"}
    nothing = call("PowerOnVM_Task", '<host xsi:nil="true"/>')
    assert nothing.arguments == {}


def test_values_where_anything_may_stand_come_with_their_types() -> None:
    inside = "".join(
        f'<changedValue><key>k</key><value xsi:type="{kind}">{text}</value></changedValue>'
        for kind, text in (("xsd:long", "7"), ("xsd:boolean", "1"), ("xsd:string", " x "), ("xsd:double", "0.5"))
    )
    read = [one.value for one in call("UpdateOptions", inside, "OptionManager").arguments["changedValue"]]
    assert read == [7, True, " x ", 0.5]
    assert isinstance(read[0], Support.long)
    array = '<changedValue><key>k</key><value xsi:type="ArrayOfString"><string>a</string></value></changedValue>'
    assert call("UpdateOptions", array, "OptionManager").arguments["changedValue"][0].value == ["a"]


def test_a_fault_in_a_field_has_its_message_beside_it() -> None:
    inside = (
        '<state>error</state><fault><fault xsi:type="InvalidState"/><localizedMessage>no</localizedMessage></fault>'
    )
    read = call("SetTaskState", inside, "Task").arguments["fault"]
    assert isinstance(read, vim.fault.InvalidState)
    assert read.msg == "no"


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><l>&c;</l>'
)
EXTERNAL = '<!DOCTYPE l SYSTEM "file:///etc/passwd"><l/>'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"<",
        b"no xml",
        b"{}",
        b"<a/>",
        b"<a></b>",
        b"\xff\xfe<\0",
        BILLION_LAUGHS.encode(),
        EXTERNAL.encode(),
        envelope(""),
        envelope("&unknown;"),
        envelope("<CurrentTime/>"),
        b'<?xml version="1.0" encoding="rot13"?><a/>',
        b'<?xml version="1.0" encoding="zlib_codec"?><a/>',
        envelope("<a>" * 100 + "</a>" * 100),
        envelope("<a/>" * (MAX_ELEMENTS + 1)),
        b" " * (MAX_BYTES + 1),
        envelope('<PowerOnVM_Task><_this type="VirtualMachine">v</_this><surprise/></PowerOnVM_Task>'),
        envelope('<Rename_Task><_this type="Folder">v</_this><newName>a</newName><newName>b</newName></Rename_Task>'),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_no_call_is_an_invalid_request(body: bytes) -> None:
    with pytest.raises(fault.InvalidRequest) as caught:
        parse_request(body)
    assert caught.value.msg


def test_as_deep_as_allowed_is_allowed() -> None:
    nested = "<selectSet>" * (MAX_DEPTH - 8) + "</selectSet>" * (MAX_DEPTH - 8)
    with pytest.raises(vmodl.MethodFault) as caught:
        call("CreateFilter", f"<spec><objectSet><obj type='Task'>t</obj>{nested}</objectSet></spec>")
    assert "deep" not in caught.value.msg


@pytest.mark.parametrize(
    ("name", "inside", "expected"),
    [
        ("NoSuchMethod", "", fault.MethodNotFound),
        ("RetrieveInternalContent", "", fault.MethodNotFound),
        ("CloneVM_Task", '<folder type="VirtualMachine">x</folder>', fault.InvalidType),
        ("CloneVM_Task", '<folder type="NoSuchType">x</folder>', fault.InvalidType),
        ("CloneVM_Task", '<folder type="Folder"></folder>', fault.InvalidArgument),
        ("ReconfigVM_Task", '<spec xsi:type="NoSuchType"/>', fault.InvalidType),
        ("ReconfigVM_Task", '<spec xsi:type="VirtualMachineCloneSpec"/>', fault.InvalidType),
        ("ReconfigVM_Task", "<spec>text</spec>", fault.InvalidType),
        ("ReconfigVM_Task", "<spec><numCPUs>many</numCPUs></spec>", fault.InvalidArgument),
        ("ReconfigVM_Task", "<spec><numCPUs>99999999999</numCPUs></spec>", fault.InvalidArgument),
        ("ReconfigVM_Task", "<spec><memoryMB><a/></memoryMB></spec>", fault.InvalidType),
        ("ReconfigVM_Task", "<spec><nosuch/></spec>", fault.InvalidRequest),
        ("UpdateOptions", "<changedValue><value xsi:type='xsd:int'>x</value></changedValue>", fault.InvalidArgument),
        ("UpdateOptions", "<changedValue><value>1</value></changedValue>", fault.InvalidArgument),
        ("MarkAsVirtualMachine", "<pool type='ResourcePool'><x/></pool>", fault.InvalidArgument),
        ("MigrateVM_Task", "<priority>whatever</priority>", fault.InvalidArgument),
        ("CreateFilter", "<spec><propSet><type>NoSuchType</type></propSet></spec>", fault.InvalidType),
    ],
)
def test_what_is_wrong_is_said_and_where(name: str, inside: str, expected: Any) -> None:
    with pytest.raises(expected) as caught:
        call(name, inside)
    assert caught.value.msg
    if isinstance(caught.value, fault.InvalidArgument):
        assert caught.value.invalidProperty
    if isinstance(caught.value, fault.MethodNotFound):
        assert caught.value.receiver._moId == "vm-1"
        assert isinstance(caught.value.receiver, vim.VirtualMachine)


def test_a_field_of_a_newer_client_is_known() -> None:
    """The registry is newer than what is advertised: nothing that pyVmomi 9 can send is a surprise."""
    assert call("ReconfigVM_Task", "<spec><tdxEnabled>true</tdxEnabled></spec>").arguments["spec"].tdxEnabled is True


_SEED = envelope(
    '<InstantClone_Task><_this type="VirtualMachine">vm-1</_this><spec><name>k</name><location><deviceChange>'
    '<device xsi:type="VirtualVmxnet3"><key>4000</key></device></deviceChange></location><config><key>a</key>'
    '<value xsi:type="xsd:string">b</value></config></spec></InstantClone_Task>'
)


@given(st.binary(max_size=200))
def test_any_bytes_are_answered_with_a_fault(data: bytes) -> None:
    with contextlib.suppress(vmodl.MethodFault):
        parse_request(data)


@given(st.integers(0, len(_SEED)), st.integers(0, 40), st.binary(max_size=20))
def test_a_request_with_anything_in_it_is_answered(start: int, length: int, other: bytes) -> None:
    with contextlib.suppress(vmodl.MethodFault):
        parse_request(_SEED[:start] + other + _SEED[start + length :])


_NAMES = st.sampled_from(
    ["spec", "name", "location", "folder", "config", "key", "value", "_this", "device", "fault", "propSet", "type", "x"]
)
_TYPES = st.sampled_from(
    [
        *("xsd:int", "xsd:dateTime", "ArrayOfInt", "ArrayOfX", "TypeName", "MethodName", "void", "ManagedObject"),
        *("LocalizedMethodFault", "MethodFault", "VirtualDisk", "VirtualMachinePowerState", "anyType", "Link"),
        *("PropertyPath", "xsd:base64Binary", "xsd:void", "ArrayOfAnyType", "ArrayOfManagedObjectReference"),
        *("VirtualMachine", "DataObject", "DynamicData"),
    ]
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 3) -> str:
    name = draw(_NAMES)
    attributes = "".join(f' {key}="{draw(_TYPES)}"' for key in ("xsi:type", "type") if draw(st.integers(0, 2)) == 0)
    inside = [draw(elements(depth - 1)) for _ in range(draw(st.integers(0, 3)))] if depth else []
    text = draw(st.sampled_from(["", "", "1", "x", "true", "vm-1", "2026-13-45T99:00:00Z", "%%%", "-", "1e999"]))
    return f"<{name}{attributes}>{text}{''.join(inside)}</{name}>"


@given(
    st.sampled_from(["InstantClone_Task", "ReconfigVM_Task", "CreateFilter", "UpdateOptions", "SetTaskState", "Fetch"]),
    st.lists(elements(), max_size=4),
)
def test_any_elements_are_answered(name: str, inside: list[str]) -> None:
    with contextlib.suppress(vmodl.MethodFault):
        call(name, "".join(inside))
