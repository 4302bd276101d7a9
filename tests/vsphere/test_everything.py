"""Every property of every object can be read, and put on the wire: nothing that the schema requires is missing."""

from __future__ import annotations

import io
from typing import Any

import pytest
from pyVmomi import SoapAdapter

from ramet.host.service import Host
from ramet.model.machine import Display, Firmware, Nic, NicModel
from ramet.vsphere.core.objects import Mo
from ramet.vsphere.core.properties import read_all
from ramet.vsphere.core.world import World
from ramet.vsphere.inventory import shape
from ramet.vsphere.types import NEWEST, Support, property_info
from tests.vsphere.kit import record_vm, seen


def _on_the_wire(value: Any, info: Any) -> str:
    """pyVmomi's own serialiser refuses what lacks a required field."""
    writer = io.StringIO()
    namespaces = dict(SoapAdapter.SOAP_NSMAP)
    namespaces["urn:vim25"] = ""
    SoapAdapter.SoapSerializer(writer, NEWEST, namespaces).Serialize(value, info)
    return writer.getvalue()


def _required(mo: Mo) -> set[str]:
    return {info.name for info in mo.wire._GetPropertyList() if not info.flags & Support.F_OPTIONAL}


async def test_every_property_of_every_object_is_whole(
    host: Host, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are made by constructors here, which check what is made unchecked for clients."""
    monkeypatch.setattr(shape, "make", lambda kind, **fields: kind(**fields))
    cards = tuple(Nic(id=f"net{n}", model=model, network="user") for n, model in enumerate(NicModel))
    vm = await record_vm(
        host, "whole", nics=cards, display=Display.VGA, firmware=Firmware.UEFI, vcpus=2,
        extra_config={"guestinfo.a": "b"}, cdroms=("/tmp/x.iso",), cpu_limit_percent=50,
    )  # fmt: skip
    await seen(world, vm)
    problems = []
    for mo in world.of_kind(Support.ManagedObject):
        names = [info.name for info in mo.wire._GetPropertyList()]
        values = await read_all(mo, names)
        problems += [f"{mo}: {name} is not set" for name in _required(mo) - values.keys()]
        for name, value in values.items():
            try:
                _on_the_wire(value, property_info(mo.wire, name))
            except TypeError as exc:
                problems.append(f"{mo}: {name}: {exc}")
    assert not problems, "\n".join(problems)
