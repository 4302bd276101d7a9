"""``ramet memory``: what is asked, and how it is shown."""

from __future__ import annotations

import io
import json

import pytest

from ramet.cli.memory import _table as memory_table
from ramet.cli.memory import sparkline
from ramet.cli.output import Output
from ramet.model.memory import (
    HostMemory,
    LineageMemory,
    MemoryCounters,
    MemoryKind,
    MemoryPoint,
    MemoryRow,
    MemorySample,
)
from ramet.model.units import MIB
from tests.unit.cli.cli_kit import NOW, FakeClient, run, vm_view


def counters(**mib: int) -> dict[str, int]:
    return {f"{name}_bytes": value * MIB for name, value in mib.items()}


WEB = MemoryRow(
    id="id-web", name="web", lineage_id="id-web", measured_at=NOW - 3,
    **counters(configured=256, resident=90, unique=10, shared=80, common=40, saved=40, overhead=20, spent=70),
)  # fmt: skip
HOLDER = MemoryRow(
    id="holder-7", name="holder of web", kind=MemoryKind.HOLDER, lineage_id="id-web", measured_at=NOW - 1,
    **counters(resident=80, shared=80, common=40, saved=40, spent=40),
)  # fmt: skip
FAMILY = LineageMemory(
    id="id-web", name="web", processes=2, measured_at=NOW - 3,
    **counters(configured=256, resident=170, unique=10, shared=160, common=80, saved=80, overhead=20, spent=110),
)  # fmt: skip
VIEW = HostMemory(
    at=NOW,
    total_bytes=8192 * MIB,
    available_bytes=4096 * MIB,
    totals=MemoryCounters(**{name: getattr(FAMILY, name) for name in MemoryCounters.model_fields}),
    lineages=(FAMILY,),
    rows=(HOLDER, WEB),
    unread=1,
)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")}, host_memory=VIEW)


def test_rows_their_lineage_and_the_host_are_shown(client: FakeClient) -> None:
    result = run(client, "memory")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        "NAME KIND CONFIGURED RESIDENT UNIQUE SHARED COMMON SAVED OVERHEAD TABLES SPENT AGE",
        "holder of web holder 0 B 80 MiB 0 B 80 MiB 40 MiB 40 MiB 0 B 0 B 40 MiB 1 s",
        "web vm 256 MiB 90 MiB 10 MiB 80 MiB 40 MiB 40 MiB 20 MiB 0 B 70 MiB 3 s",
        "lineage of web 2 256 MiB 170 MiB 10 MiB 160 MiB 80 MiB 80 MiB 20 MiB 0 B 110 MiB -",
        "all 2 256 MiB 170 MiB 10 MiB 160 MiB 80 MiB 80 MiB 20 MiB 0 B 110 MiB -",
    ]
    assert "1 not measured yet" in result.stderr


def test_of_some_vms_the_host_is_not_summed_up(client: FakeClient) -> None:
    client.host_memory = VIEW.changed(rows=(WEB,))
    result = run(client, "memory", "web", "--now")
    assert client.asked("memory") == [(("web",), True)]
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["NAME", "web", "lineage"]


def test_on_a_narrow_terminal_some_columns_are_left_out() -> None:
    written = io.StringIO()
    memory_table(Output(terminal=True, width=80, stdout=written), VIEW)
    assert "spent" in written.getvalue()
    assert "configured" not in written.getvalue()
    wide = io.StringIO()
    memory_table(Output(terminal=True, width=160, stdout=wide), VIEW)
    assert "configured" in wide.getvalue()


def test_as_json_all_of_it_is_there(client: FakeClient) -> None:
    shown = json.loads(run(client, "memory", "--json").stdout)
    assert shown["totals"]["saved_bytes"] == 80 * MIB
    assert shown["rows"][0]["kind"] == "holder"


def test_quiet_prints_names(client: FakeClient) -> None:
    assert run(client, "memory", "-q").stdout == "holder of web\nweb\n"


def test_a_host_without_vms_is_told_so(client: FakeClient) -> None:
    client.host_memory = HostMemory(at=NOW, total_bytes=1, available_bytes=1)
    result = run(client, "memory")
    assert (result.stdout, result.stderr) == ("", "No VM is on.\n")


def test_a_wrong_name_is_told_with_what_was_meant(client: FakeClient) -> None:
    result = run(client, "memory", "wep")
    assert result.exit_code != 0
    assert "Did you mean 'web'?" in result.stderr


@pytest.mark.parametrize(
    "options", [("--history", "--watch"), ("--history", "--now"), ("--day",), ("--history", "web", "db")]
)
def test_options_that_do_not_go_together_are_refused(client: FakeClient, options: tuple[str, ...]) -> None:
    assert run(client, "memory", *options).exit_code == 2
    assert client.calls == []


def test_watching_asks_again_and_ends_with_ctrl_c(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    rests = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("ramet.cli.memory.time.sleep", rest)
    result = run(client, "memory", "--watch", "--json")
    assert len(client.asked("memory")) == 2
    assert [json.loads(line)["at"] for line in result.stdout.splitlines()] == [NOW, NOW]


def point(at: float, mib: int) -> MemoryPoint:
    return MemoryPoint(at=at, **counters(resident=mib, unique=mib, common=0, saved=0, overhead=1))


def test_a_history_is_drawn_and_listed(client: FakeClient) -> None:
    client.points = tuple(point(NOW + 10 * n, n) for n in range(1, 101))
    result = run(client, "memory", "--history", "web", "--day")
    assert client.asked("memory_history") == [("web", "day")]
    assert "▁" in result.stdout
    assert "█" in result.stdout
    rows = result.stdout.splitlines()
    assert rows[-1].split()[-2:] == ["101", "MiB"]
    assert len(rows) < 30


def test_a_history_without_a_past_is_told_so(client: FakeClient) -> None:
    assert "Nothing is remembered of host yet" in run(client, "memory", "--history").stderr


def test_sparks() -> None:
    assert sparkline([0, 7]) == "▁█"
    assert sparkline([5, 5, 5]) == "▁▁▁"
    assert len(sparkline(list(range(1000)))) <= 60


def test_what_a_clone_cost_is_told(client: FakeClient) -> None:
    client.after = MemorySample(processes=2, measured_at=NOW, **counters(spent=31, saved=80))
    result = run(client, "clone", "web", "web-2")
    assert (
        "The lineage takes 31 MiB of the host's memory now, 30 MiB more than before, in 2 processes; "
        "sharing saves 80 MiB." in result.stderr
    )
    shown = json.loads(run(client, "clone", "web", "web-3", "--json").stdout)
    assert shown[0]["memory"]["after"]["saved_bytes"] == 80 * MIB
