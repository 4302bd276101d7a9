"""``ramet clone`` and ``ramet tree``."""

from __future__ import annotations

import json

import pytest

from ramet.errors import StunTooLongError
from ramet.model.requests import CloneVm, NicChange
from ramet.model.views import TreeNode
from tests.unit.cli.cli_kit import FakeClient, run, task, vm_view


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")})


def test_clone_asks_for_everything(client: FakeClient) -> None:
    args = ["clone", "web", "a", "--connect", "--max-stun", "50", "--mac", "net0=52:54:00:00:00:07"]
    args += ["--nic", "net0=lab", "--nic", "net1=none"]
    uuid = "11111111-2222-3333-4444-555555555556"
    result = run(client, *args, "--uuid", uuid, "--set", "guestinfo.role=lab")
    assert result.exit_code == 0, result.output
    assert client.asked("clone_vm") == [
        (
            "web",
            CloneVm(
                names=("a",),
                connect=True,
                nics=(
                    NicChange(id="net0", network="lab", mac="52:54:00:00:00:07"),
                    NicChange(id="net1", network=""),
                ),
                uuid=uuid,
                extra_config={"guestinfo.role": "lab"},
                max_stun_ms=50,
            ),
        )
    ]


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_json_is_always_a_list_of_exactly_this(client: FakeClient, names: list[str]) -> None:
    data = json.loads(run(client, "clone", "web", *names, "--json").stdout)
    assert [clone["name"] for clone in data] == names
    for clone in data:
        assert set(clone) == {"name", "id", "task", "timings_ms"}
        steps = {"check", "prepare", "stun", "fork", "qemu", "load", "running", "total"}
        assert set(clone["timings_ms"]) == steps


def test_clone_prints_times(client: FakeClient) -> None:
    assert run(client, "clone", "web", "a").stdout == (
        "NAME  ID     STUN    FORK   QEMU   LOAD   TOTAL\na     id-a  14 ms  3.0 ms  60 ms  20 ms  120 ms\n"
    )


def test_warnings_go_to_stderr_once(client: FakeClient) -> None:
    client.warnings = ("10.9.0.5 would appear twice.",)
    result = run(client, "clone", "web", "a", "b", "--connect", "--json")
    assert result.stderr == "warning: 10.9.0.5 would appear twice.\n"
    json.loads(result.stdout)


def test_dry_run_asks_for_a_forecast_only(client: FakeClient) -> None:
    result = run(client, "clone", "web", "a", "--dry-run")
    assert client.asked("clone_vm") == []
    assert "Nothing was changed. a can be cloned (live).\n" in result.stdout
    assert "18 ms" in result.stdout
    data = json.loads(run(client, "clone", "web", "a", "--dry-run", "--json").stdout)
    assert (data["ok"], data["forecast_stun_ms"]) == (True, 18.0)


def test_a_stun_that_would_be_too_long(client: FakeClient) -> None:
    client.fails["clone_vm"] = StunTooLongError("It would take 80 ms.", forecast_ms=80, bound_ms=50)
    result = run(client, "clone", "web", "a", "--max-stun", "50")
    assert (result.exit_code, result.stderr) == (1, "error: It would take 80 ms.\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("web", "NAME"),
        ("", "SOURCE"),
        ("web -a-", "No such option"),
        ("web a..", "not a usable name"),
        ("web a --connect --disconnect-nics", "exclude each other"),
        ("web a b --uuid 11111111-2222-3333-4444-555555555556", "single clone"),
        ("web a --nic lab", "not NIC=VALUE"),
        ("web a --nic eth0=lab", "id: "),
        ("web a --mac net0=ff:ff:ff:ff:ff:ff", "unicast"),
        ("web a --max-stun soon", "--max-stun"),
        ("web a --max-stun 0", "--max-stun"),
    ],
)
def test_usage_errors_ask_nothing(client: FakeClient, args: str, says: str) -> None:
    result = run(client, "clone", *args.split())
    assert (result.exit_code, client.calls) == (2, [])
    assert says in result.stderr


def test_a_failed_clone_tells_the_tasks_error(client: FakeClient) -> None:
    failed = task("clone", state="error", error={"code": "fork", "message": "The fork failed.", "hint": "Look."})
    client.clone_vm = lambda ref, request: failed  # type: ignore[method-assign]
    result = run(client, "clone", "web", "a")
    assert (result.exit_code, result.stderr) == (1, "error: The fork failed.\nhint: Look.\n")


def test_tree_is_drawn_by_indentation_in_plain_text(client: FakeClient) -> None:
    assert run(client, "tree").stdout == (
        "web  running\n  web-2  running  live clone\n    web-2-1  frozen  live clone\n  web-3  off  frozen clone\n"
    )


def test_tree_is_drawn_by_lines_on_a_terminal(client: FakeClient) -> None:
    assert run(client, "tree", terminal=True, env={"NO_COLOR": "1", "TERM": "xterm"}).stdout.count("─") == 3


def test_tree_for_programs(client: FakeClient) -> None:
    assert run(client, "tree", "-q").stdout == "web\nweb-2\nweb-2-1\nweb-3\n"
    nodes = [TreeNode.model_validate(node) for node in json.loads(run(client, "tree", "--json").stdout)]
    assert nodes == client.tree()
