"""``ramet host``: page sharing switched and shown, and what a VM is left of its memory."""

from __future__ import annotations

import json

import pytest

from ramet.model.sharing import MergedMemory, PageSharing, PageSharingView
from ramet.model.units import MIB
from ramet.model.views import BalloonView
from tests.unit.cli.cli_kit import NOW, FakeClient, run, vm_view


@pytest.mark.parametrize("value", ["host", "off"])
def test_page_sharing_is_switched(value: str) -> None:
    client = FakeClient()
    result = run(client, "host", "set", "page-sharing", value)
    assert client.asked("set_page_sharing") == [(PageSharing(value),)]
    assert result.stdout == f"page sharing is {value}\n"


def test_a_slip_in_the_name_is_put_right() -> None:
    client = FakeClient()
    result = run(client, "host", "set", "page-sharin", "host")
    assert result.exit_code == 2
    assert "Did you mean 'page-sharing'?" in result.stderr
    assert "There is: page-sharing." in run(client, "host", "set", "colour", "red").stderr
    assert client.calls == []


def test_there_is_nothing_between_off_and_host() -> None:
    result = run(FakeClient(), "host", "set", "page-sharing", "lineage")
    assert result.exit_code == 2
    assert "off or host, not 'lineage'" in result.stderr
    assert "no domains" in result.stderr


def test_the_host_is_shown_with_gain_and_cost() -> None:
    client = FakeClient()
    assert "mode  off" in run(client, "host", "show").stdout
    client.sharing = PageSharingView(
        mode=PageSharing.HOST,
        running=True,
        since=NOW - 60,
        shared_bytes=44 * MIB,
        saved_bytes=70 * MIB,
        profit_bytes=67 * MIB,
        cpu_s=1.5,
        cpu_percent=2.5,
        full_scans=4,
        pages_to_scan=500,
        sleep_ms=20,
        vms=(MergedMemory(id="1", name="web", merged_bytes=53 * MIB, profit_bytes=51 * MIB),),
        unmerge_bytes=53 * MIB,
    )
    shown = run(client, "host", "show").stdout
    for text in ("70 MiB saved by 44 MiB", "67 MiB", "1.5 s of processor, 2.5 %", "web   53 MiB  51 MiB", "500 pages"):
        assert text in shown
    assert json.loads(run(client, "host", "show", "--json").stdout)["page_sharing"]["saved_bytes"] == 70 * MIB


def test_a_host_that_cannot_says_why() -> None:
    problem = "This host's kernel has no page merging (CONFIG_KSM)."
    client = FakeClient(sharing=PageSharingView(mode=PageSharing.OFF, problem=problem))
    assert problem in run(client, "host", "show").stdout


def test_a_vm_tells_what_it_is_to_have_and_has() -> None:
    client = FakeClient(vms={"web": vm_view("web")})
    assert "memory target" not in run(client, "vm", "show", "web").stdout
    web = client.vms["web"]
    target = web.machine.changed(memory_target_mib=256)
    balloon = BalloonView(target_bytes=256 * MIB, actual_bytes=260 * MIB, asked_by_host=128 * MIB)
    client.vms["web"] = web.changed(machine=target, balloon=balloon)
    shown = run(client, "vm", "show", "web").stdout
    assert "256 MiB, the guest has 260 MiB, the host is short of memory and asks it to do with 128 MiB" in shown
