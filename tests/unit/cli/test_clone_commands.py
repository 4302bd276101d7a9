"""``ramet clone`` and ``ramet tree``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ramet.errors import StunTooLongError
from ramet.model.identity import Part, TcpPolicy
from ramet.model.requests import AddDisk, CloneVm, NicChange, NicRequest
from ramet.model.views import TreeNode
from tests.unit.cli.cli_kit import FakeClient, run, task, vm_view


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")})


def test_clone_asks_for_everything(client: FakeClient) -> None:
    args = ["clone", "web", "a", "--bare", "--connect", "--max-stun", "50", "--mac", "net0=52:54:00:00:00:07"]
    args += ["--nic", "net0=lab", "--nic", "net1=none"]
    uuid = "11111111-2222-3333-4444-555555555556"
    result = run(client, *args, "--uuid", uuid, "--set", "guestinfo.role=lab")
    assert result.exit_code == 0, result.output
    assert client.asked("clone_vm") == [
        (
            "web",
            CloneVm(
                names=("a",),
                bare=True,
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


def test_clone_asks_for_many_that_differ(client: FakeClient) -> None:
    args = ["--count", "3", "--name", "web-{n:02}", "--first", "7", "--ttl", "30m", "--key", "k", "--quiesce"]
    args += ["--customize", "hostname=h{n},address=10.0.0.{n}/24,gateway=10.0.0.1", "--customize", "dns=10.0.0.1"]
    args += ["--without", "ssh-keys,hooks", "--tcp", "drop", "--add-nic", "lab", "--add-disk", "2G"]
    args += ["--cpu-limit", "50", "--memory-target", "128M", "--no-pool", "--identity-timeout", "9s"]
    result = run(client, "clone", "web", *args)
    assert result.exit_code == 0, result.output
    ((_, request),) = client.asked("clone_vm")
    assert request == CloneVm(
        name="web-{n:02}",
        count=3,
        first=7,
        ttl_s=1800,
        key="k",
        quiesce=True,
        customize={"hostname": "h{n}", "address": "10.0.0.{n}/24", "gateway": "10.0.0.1", "dns": "10.0.0.1"},
        without=(Part.SSH_KEYS, Part.HOOKS),
        tcp=TcpPolicy.DROP,
        add_nics=(NicRequest(network="lab"),),
        add_disks=(AddDisk(size_mib=2048),),
        cpu_limit_percent=50,
        memory_target_mib=128,
        pool=False,
        identity_timeout_s=9,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v.toml", 'hostname = "h{n}"\ndns = ["10.0.0.1", "10.0.0.2"]\n[net1]\naddress = "dhcp"\n'),
        ("v.json", '{"hostname": "h{n}", "dns": ["10.0.0.1", "10.0.0.2"], "net1": {"address": "dhcp"}}'),
    ],
)
def test_customization_comes_from_a_file_too(client: FakeClient, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    run(client, "clone", "web", "a", "--customize", f"@{tmp_path / name}")
    ((_, request),) = client.asked("clone_vm")
    assert request.customize == {"hostname": "h{n}", "dns": "10.0.0.1+10.0.0.2", "net1.address": "dhcp"}


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_json_is_always_a_list_of_clones(client: FakeClient, names: list[str]) -> None:
    data = json.loads(run(client, "clone", "web", *names, "--json").stdout)
    assert [clone["name"] for clone in data] == names
    for clone in data:
        assert set(clone) >= {"name", "id", "task", "timings_ms", "ok", "identity", "addresses"}
        steps = {"check", "prepare", "stun", "fork", "qemu", "load", "running", "total", "identity", "network"}
        assert set(clone["timings_ms"]) == steps


def test_clone_prints_times(client: FakeClient) -> None:
    assert run(client, "clone", "web", "a").stdout == (
        "NAME  ID     STUN  RUNNING  IDENTITY  NETWORK  ADDRESS\na     id-a  14 ms   120 ms      bare        -  -\n"
    )


def test_of_a_partial_failure_the_good_are_shown_and_the_bad_decide_the_code(client: FakeClient) -> None:
    good = {"name": "a", "id": "1", "task": "t", "timings_ms": {}}
    off = {**good, "name": "b", "id": "2", "identity": "failed", "problem": "No answer."}
    bad = {**good, "name": "c", "id": "", "ok": False, "error": {"message": "The disk is full.", "hint": "Make room."}}
    client.clone_vm = lambda ref, request: task("clone", result=[good, off, bad])  # type: ignore[method-assign]
    result = run(client, "clone", "web", "a", "b", "c")
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["NAME", "a", "b"]
    assert "error: b runs, and stays off the network: No answer." in result.stderr
    assert "error: c: The disk is full.\nhint: Make room." in result.stderr


def test_warnings_go_to_stderr_once(client: FakeClient) -> None:
    client.warnings = ("10.9.0.5 would appear twice.",)
    result = run(client, "clone", "web", "a", "b", "--bare", "--connect", "--json")
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
        ("web", "names"),
        ("web a --name b-{n}", "names"),
        ("web --name b --count 2", "{n}"),
        ("web a b --count 3", "2 names"),
        ("web a --bare --customize hostname=x", "bare"),
        ("web a --customize hostname", "KEY=VALUE"),
        ("web a --customize @/no/such/file", "cannot be read"),
        ("web a --without colour", "no part"),
        ("web a --tcp maybe", "--tcp"),
        ("web a --ttl soon", "duration"),
        ("", "SOURCE"),
        ("web -a-", "No such option"),
        ("web a..", "not a usable name"),
        ("web a --connect --disconnect-nics", "exclude each other"),
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
