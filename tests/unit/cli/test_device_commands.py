"""``ramet vm disk`` and ``ramet vm nic``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ramet.model.requests import AddDisk, ExportDisk, GrowDisk, NicChange, NicRequest
from tests.unit.cli.cli_kit import FakeClient, run, vm_view


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")})


@pytest.mark.parametrize(
    ("args", "call"),
    [
        ("disk add web 10G", ("add_disk", "web", AddDisk(size_mib=10240))),
        ("disk grow web disk0 20G", ("grow_disk", "web", "disk0", GrowDisk(size_mib=20480))),
        ("disk rm web disk1", ("remove_disk", "web", "disk1")),
        ("disk export web disk0 /tmp/x", ("export_disk", "web", "disk0", ExportDisk(path="/tmp/x"))),
        (
            "disk export web disk0 x --format raw",
            ("export_disk", "web", "disk0", ExportDisk(path=str(Path("x").absolute()), format="raw")),
        ),
        ("nic add web", ("add_nic", "web", NicRequest())),
        ("nic add web lab,model=vmxnet3", ("add_nic", "web", NicRequest(network="lab", model="vmxnet3"))),
        ("nic set web net0 --network lab", ("change_nic", "web", NicChange(id="net0", network="lab"))),
        ("nic set web net0 --network none", ("change_nic", "web", NicChange(id="net0", network=""))),
        ("nic set web net0 --disconnect", ("change_nic", "web", NicChange(id="net0", connected=False))),
        ("nic rm web net1", ("remove_nic", "web", "net1")),
    ],
)
def test_what_is_asked(client: FakeClient, args: str, call: tuple[object, ...]) -> None:
    result = run(client, "vm", *args.split())
    assert result.exit_code == 0, result.output
    assert call in client.calls
    assert result.stdout.startswith("web: ")


def test_json_shows_the_vm(client: FakeClient) -> None:
    assert json.loads(run(client, "vm", "disk", "add", "web", "1G", "--json").stdout)["name"] == "web"


@pytest.mark.parametrize(
    "args",
    ["disk add web huge", "disk grow web disk0 0", "nic set web net0", "nic set web eth0 --connect", "disk frob web"],
)
def test_usage_errors(client: FakeClient, args: str) -> None:
    result = run(client, "vm", *args.split())
    assert (result.exit_code, client.calls) == (2, [])
    assert result.stderr.startswith("error: ")
