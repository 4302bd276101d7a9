"""What strangers may send to the vSphere surface before anybody knows who they are."""

from __future__ import annotations

from xml.etree import ElementTree

from ramet.vsphere.collector.plan import plan_of
from ramet.vsphere.core.properties import check_path, split
from ramet.vsphere.types import NEWEST, vim, vmodl
from ramet.vsphere.wire.endpoint import _unpack
from ramet.vsphere.wire.soap_request import parse_request
from ramet.vsphere.wire.soap_values import to_xml

ERRORS = (vmodl.MethodFault,)
_NAMES = (
    'xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
)


def soap(data: bytes) -> None:
    """A request; what was understood of it can be said again, and a filter of it can be tried."""
    asked = parse_request(data)
    assert len(asked.moid) <= 200
    for value in asked.arguments.values():
        ElementTree.fromstring(f"<a {_NAMES}>{to_xml('val', value, object, NEWEST)}</a>")
    spec = asked.arguments.get("spec")
    if isinstance(spec, vmodl.query.PropertyCollector.FilterSpec):
        plan_of(spec, NEWEST)


def packed(data: bytes) -> None:
    assert len(_unpack(data, 1 << 16)) <= 1 << 16


def path(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert split(text)
    check_path(vim.VirtualMachine, text)


def requests() -> list[bytes]:
    clone = (
        '<InstantClone_Task><_this type="VirtualMachine">vm-1</_this><spec><name>kid</name><location><deviceChange>'
        '<operation>edit</operation><device xsi:type="VirtualVmxnet3"><key>4000</key></device></deviceChange>'
        '</location><config><key>guestinfo.a</key><value xsi:type="xsd:string">b</value></config></spec>'
        "</InstantClone_Task>"
    )
    made = (
        '<CreateFilter><_this type="PropertyCollector">propertyCollector</_this><spec><propSet>'
        "<type>VirtualMachine</type><pathSet>config.hardware.device[4000].backing</pathSet></propSet><objectSet>"
        '<obj type="Folder">group-d1</obj><selectSet xsi:type="TraversalSpec"><name>a</name><type>Folder</type>'
        "<path>childEntity</path><selectSet><name>a</name></selectSet></selectSet></objectSet></spec>"
        "<partialUpdates>true</partialUpdates></CreateFilter>"
    )
    start = f'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" {_NAMES}><e:Body>'
    return [f"{start}{call}</e:Body></e:Envelope>".encode() for call in (clone, made)]


def bodies() -> list[bytes]:
    import gzip
    import zlib

    return [gzip.compress(requests()[0]), zlib.compress(b" " * (1 << 16)), zlib.compress(b" " * (1 << 20))]


def paths() -> list[bytes]:
    return [b'config.extraConfig["guestinfo.a"].value', b"config.hardware.device[4000].backing.deviceName", b"name"]
