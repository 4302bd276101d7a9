"""The service's description: whole, and without a name that leads nowhere."""

from __future__ import annotations

from functools import cache
from xml.etree import ElementTree

import pytest

from ramet.vsphere.types import NEWEST, Support
from ramet.vsphere.wire.versions import versions_xml
from ramet.vsphere.wire.wsdl import service_wsdl, vim_wsdl

XSD = "{http://www.w3.org/2001/XMLSchema}"
WSDL = "{http://schemas.xmlsoap.org/wsdl/}"
pytestmark = pytest.mark.slow


@cache
def description() -> ElementTree.Element:
    return ElementTree.fromstring(vim_wsdl())


def names(tag: str) -> list[str]:
    root = description().find(f"{WSDL}types/{XSD}schema") if tag.startswith(XSD) else description()
    assert root is not None
    return [element.attrib["name"] for element in root.findall(tag)]


def referred(attribute: str) -> set[str]:
    found = (element.attrib.get(attribute, "") for element in description().iter())
    return {value.removeprefix("vim25:") for value in found if value.startswith("vim25:")}


def test_no_name_stands_there_twice() -> None:
    types = names(f"{XSD}complexType") + names(f"{XSD}simpleType")
    for found in (types, names(f"{XSD}element"), names(f"{WSDL}message")):
        assert len(found) == len(set(found))


def test_every_name_that_is_referred_to_is_there() -> None:
    types = {*names(f"{XSD}complexType"), *names(f"{XSD}simpleType"), "VimPortType"}
    assert referred("type") <= types
    assert referred("base") <= types
    assert referred("element") <= set(names(f"{XSD}element"))
    assert referred("message") <= set(names(f"{WSDL}message"))


def test_every_method_of_the_advertised_version_is_there_and_no_newer_type() -> None:
    operations = {one.attrib["name"] for one in description().iter(f"{WSDL}operation")}
    assert {"InstantClone_Task", "RetrieveServiceContent", "Login", "WaitForUpdatesEx"} <= operations
    types = set(names(f"{XSD}complexType"))
    assert {"VirtualMachineInstantCloneSpec", "ArrayOfVirtualDevice", "LocalizedMethodFault", "ArrayOfAnyType"} <= types
    newer = [
        kind._wsdlName
        for name in Support.ListDataTypes()
        for kind in [Support.GetVmodlType(name)]
        if not Support.IsChildVersion(NEWEST, kind._version)
    ]
    assert newer
    assert not types & set(newer)


def test_where_the_service_is() -> None:
    root = ElementTree.fromstring(service_wsdl("https://h:1/sdk?a&b"))
    assert root.find(f"{WSDL}import") is not None
    address = root.find(f"{WSDL}service/{WSDL}port/{{http://schemas.xmlsoap.org/wsdl/soap/}}address")
    assert address is not None
    assert address.attrib["location"] == "https://h:1/sdk?a&b"


def test_versions_newest_first_and_back_to_the_first() -> None:
    (namespace,) = ElementTree.fromstring(versions_xml()).findall("namespace")
    assert [namespace.findtext("name"), namespace.findtext("version")] == ["urn:vim25", "8.0.3.0"]
    prior = [one.text for one in namespace.findall("priorVersions/version")]
    assert prior[0] == "8.0.2.0"
    assert {"7.0.0.0", "6.7.1", "6.7", "6.5", "6.0", "5.5"} <= set(prior)
    assert not any((one or "").startswith("9") for one in prior)
    assert len(prior) == len(set(prior))
