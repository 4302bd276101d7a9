"""What strangers send to the surface in JSON, and type into the forms of the object browser."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ramet.vsphere.rest.errors import ApiError
from ramet.vsphere.rest.operations import TABLE
from ramet.vsphere.rest.structs import Style, encode, plain
from ramet.vsphere.types import operation_info, vim, vmodl
from ramet.vsphere.vijson.codec import from_json, to_json
from ramet.vsphere.wire.bounded_json import JsonError, parse_json
from ramet.vsphere.wire.fragments import FragmentError, argument, parse_fragment

ERRORS = (JsonError, FragmentError, ApiError, vmodl.MethodFault)
_SPEC = operation_info(vim.VirtualMachine, "ReconfigVM_Task").params[0]


def vi_json(data: bytes) -> None:
    """What was taken can be said again, and is then the same."""
    value = parse_json(data)
    for kind in (vim.vm.InstantCloneSpec, vmodl.query.PropertyCollector.FilterSpec, object):
        with contextlib.suppress(vmodl.MethodFault):
            again = to_json(from_json(value, kind, "value"), kind)
            assert to_json(from_json(again, kind, "value"), kind) == again


def json_rpc(data: bytes) -> None:
    """Through every operation's parameters."""
    value = parse_json(data)
    with contextlib.suppress(ValueError):
        value = plain(value)
    if isinstance(value, dict):
        for operation in TABLE.operations:
            with contextlib.suppress(ApiError):
                json.dumps([encode(one, Style.RPC) for one in operation.parse(value).values()])


def fragment(data: bytes) -> Any:
    return argument(parse_fragment(data.decode("utf-8", "replace")), _SPEC)


def specs() -> list[bytes]:
    spec = {
        "_typeName": "VirtualMachineInstantCloneSpec",
        "name": "kid",
        "location": {"pool": {"type": "ResourcePool", "value": "resgroup-8"}},
        "config": [{"key": "guestinfo.a", "value": {"_typeName": "int", "_value": 7}}],
    }
    collected = {
        "propSet": [{"type": "VirtualMachine", "pathSet": ["name"], "all": False}],
        "objectSet": [{"obj": {"type": "Folder", "value": "group-d1"}, "selectSet": [{"_typeName": "TraversalSpec"}]}],
    }
    return [json.dumps(one).encode() for one in (spec, collected, {"_typeName": "ArrayOfString", "_value": ["a"]})]


def inputs() -> list[bytes]:
    fields = {"source": "vm-1", "name": "kid", "nics_to_update": {"OPTIONAL": [{"key": "4000", "value": {}}]}}
    asked = {"vm": "vm-1", "filter": {"OPTIONAL": {"STRUCTURE": {"f": {"names": {"OPTIONAL": ["a"]}}}}}}
    return [
        json.dumps({"STRUCTURE": {"operation-input": {"spec": {"STRUCTURE": {"s": fields}}}}}).encode(),
        json.dumps({"STRUCTURE": {"operation-input": asked}}).encode(),
    ]


def fragments() -> list[bytes]:
    return [
        b'<spec><name>kid</name><extraConfig><key>a</key><value xsi:type="xsd:int">7</value></extraConfig></spec>',
        b'<spec><deviceChange><operation>edit</operation><device xsi:type="VirtualVmxnet3"><key>4000</key></device>'
        b'</deviceChange><instanceUuid>&#65;&lt;</instanceUuid></spec>',
    ]
