"""Images, port groups, tasks, events, and the commands about the host itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ramet
from ramet.cli.portgroups import egress_rule
from ramet.errors import PeerError
from ramet.model.host import EgressRule, Event, Image, Network
from ramet.model.requests import BuildImage, ChangeNetwork, CreateNetwork, ImportImage
from ramet.model.views import CheckView
from tests.unit.cli.cli_kit import NOW, FakeClient, run, steps, task, vm_view


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")})


# -- images


def test_image_build(client: FakeClient) -> None:
    packages = ["--package", "nginx", "--package", "curl"]
    result = run(client, "image", "build", "debian", "--name", "web", "--size", "8G", *packages, "--force")
    expected = BuildImage(recipe="debian", name="web", size_mib=8192, packages=("nginx", "curl"), force=True)
    assert client.asked("build_image") == [(expected,)]
    assert result.stdout == "web built\n"
    assert run(client, "image", "build", "windows").exit_code == 2


def test_image_import_takes_the_name_of_the_file(client: FakeClient) -> None:
    result = run(client, "image", "import", "old.vmdk", "--firmware", "uefi", "--json")
    path = str(Path("old.vmdk").absolute())
    assert client.asked("import_image") == [(ImportImage.model_validate({"path": path, "firmware": "uefi"}),)]
    assert json.loads(result.stdout)["name"] == "old"


def test_image_ls(client: FakeClient) -> None:
    client.images = [
        Image(name="debian", recipe="debian", layers=("a",), sizes_bytes=(4 << 30,), created_at=NOW - 60),
        Image(name="micro", recipe="micro", kernel="/k", memory_mib=128, created_at=NOW - 7200),
    ]
    assert run(client, "image", "ls").stdout == (
        "NAME    RECIPE  DISKS   MEMORY  FIRMWARE  MADE\n"
        "debian  debian  4 GiB  512 MiB  bios      1 min ago\n"
        "micro   micro   none   128 MiB  kernel    2 h ago\n"
    )
    assert [image["name"] for image in json.loads(run(client, "image", "ls", "--json").stdout)] == ["debian", "micro"]


def test_image_rm_suggests(client: FakeClient) -> None:
    client.images = [Image(name="micro", recipe="micro")]
    result = run(client, "image", "rm", "micor")
    assert (result.exit_code, "Did you mean 'micro'?" in result.stderr) == (1, True)
    assert run(client, "image", "rm", "micro").stdout == "micro removed\n"


# -- port groups


def test_network_create_ls_rm(client: FakeClient) -> None:
    result = run(client, "network", "create", "lab", "--cidr", "10.9.0.1/24", "--dhcp", "--nat", "--isolated")
    assert result.stdout == "lab created\n"
    expected = CreateNetwork(name="lab", cidr="10.9.0.0/24", dhcp=True, nat=True, isolated=True)
    assert client.asked("create_network") == [(expected,)]
    assert run(client, "network", "ls").stdout == (
        "NAME  CIDR         DHCP  NAT  KIND      EGRESS\nlab   10.9.0.0/24  yes   yes  isolated  everything\n"
    )
    assert run(client, "network", "rm", "lab").stdout == "lab removed\n"


def test_network_create_with_everything_new(client: FakeClient) -> None:
    words = "network create a --fenced --egress-default deny --allow 10.0.0.0/8:443/tcp --allow any:53-54/udp"
    assert run(client, *words.split(), "--deny", "10.1.0.0/16").exit_code == 0
    rules = (
        EgressRule(action="deny", cidr="10.1.0.0/16"),
        EgressRule(cidr="10.0.0.0/8", protocol="tcp", ports=(443, 443)),
        EgressRule(protocol="udp", ports=(53, 54)),
    )
    assert client.asked("create_network") == [
        (CreateNetwork(name="a", fenced=True, egress_default="deny", egress=rules),)
    ]
    run(client, "network", "create", "b", "--uplink", "eth1.100")
    assert client.networks[1].uplink == "eth1.100"


def test_network_set_and_show(client: FakeClient) -> None:
    kept = EgressRule(cidr="10.0.0.0/8", protocol="tcp", ports=(443, 443))
    denied = EgressRule(action="deny", cidr="10.1.0.0/16")
    client.networks = [Network(name="lab", nat=True, cidr="10.9.0.0/24", egress=(kept, denied), bridge="rb-x")]
    assert run(client, "network", "set", "lab", "--no-nat", "--allow", "192.0.2.7").stdout == "lab changed\n"
    assert run(client, "network", "set", "lab", "--remove", "10.1.0.0/16", "--egress-default", "deny").exit_code == 0
    assert client.asked("change_network") == [
        ("lab", ChangeNetwork(nat=False, add_rules=(EgressRule(cidr="192.0.2.7/32"),))),
        ("lab", ChangeNetwork(egress_default="deny", remove_rules=(denied,))),
    ]
    assert run(client, "network", "set", "lab").exit_code == 2
    page = run(client, "network", "show", "lab").stdout
    assert page.splitlines()[-4:] == [
        "Egress",
        "  deny   10.1.0.0/16",
        "  allow  10.0.0.0/8:443/tcp",
        "  allow  everything else",
    ]
    assert "2 rules" in run(client, "network", "ls").stdout


@pytest.mark.parametrize(
    "rule", ["10.0.0.0/8:443", "x", "10.0.0.0/8:0/tcp", "any:9-2/tcp", "any/sctp", "10.0.0.0/99", ""]
)
def test_an_egress_rule_that_cannot_be(client: FakeClient, rule: str) -> None:
    result = run(client, "network", "create", "lab", "--nat", "--allow", rule)
    assert (result.exit_code, client.calls) == (2, [])


@given(
    st.builds(
        lambda address, prefix, protocol, ports: EgressRule.model_validate(
            {
                "cidr": f"{address}/{prefix}",
                "protocol": protocol,
                "ports": ports if protocol in ("tcp", "udp") else None,
            }
        ),
        st.ip_addresses(v=4),
        st.integers(0, 32),
        st.sampled_from([None, "tcp", "udp", "icmp"]),
        st.none() | st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda p: (min(p), max(p))),
    )
)
def test_an_egress_rule_is_written_as_it_is_read(rule: EgressRule) -> None:
    assert egress_rule(rule.text, "allow") == rule


@pytest.mark.parametrize("cidr", ["10.9.0.0/31", "nonsense", "fe80::/64"])
def test_a_network_that_cannot_be(client: FakeClient, cidr: str) -> None:
    result = run(client, "network", "create", "lab", "--cidr", cidr)
    assert (result.exit_code, client.calls) == (2, [])


def test_networks_may_be_none(client: FakeClient) -> None:
    client.networks = [Network(name="lab")]
    assert "lab   -" in run(client, "network", "ls").stdout


# -- tasks and events


def test_task_ls_and_show(client: FakeClient) -> None:
    done = task("clone", "web-2", steps=steps("stun", "load"))
    client.known_tasks = {done.id: done}
    assert run(client, "task", "ls").stdout == (
        "ID            KIND   TARGET  STATE    PROGRESS   TOOK  STARTED\n"
        "task00000001  clone  web-2   success     100 %  1.0 s  5 s ago\n"
    )
    assert run(client, "task", "show", done.id).stdout == (
        "task00000001  clone web-2  success\n"
        "  progress  100 %\n"
        "  started   5 s ago\n"
        "  took      1.0 s\n"
        "\n"
        "Steps\n"
        "  stun  12 ms\n"
        "  load  12 ms\n"
    )
    assert json.loads(run(client, "task", "show", done.id, "--json").stdout)["steps"][0]["name"] == "stun"
    assert run(client, "task", "show", "nope").exit_code == 1


def test_task_show_of_a_failed_one(client: FakeClient) -> None:
    failed = task("clone", state="error", error={"message": "The disk is full.", "hint": "Make room."})
    client.known_tasks = {failed.id: failed}
    result = run(client, "task", "show", failed.id)
    assert result.exit_code == 0
    assert "The disk is full." in result.stdout


def test_task_show_can_wait(client: FakeClient) -> None:
    running = task("image.build", state="running", ended_at=None)
    client.known_tasks = {running.id: running}
    client.running = [running, task("image.build")]
    assert "success" in run(client, "task", "show", running.id, "--wait").stdout


def test_task_cancel(client: FakeClient) -> None:
    running = task("image.build", state="running")
    client.known_tasks = {running.id: running}
    assert run(client, "task", "cancel", running.id).stdout == f"{running.id} is being cancelled\n"
    assert client.asked("cancel_task") == [(running.id,)]


def test_events_one_json_object_a_line(client: FakeClient) -> None:
    client.happened = [
        Event(seq=1, at=NOW, kind="vm.created", vm_name="web", message="web was created."),
        Event(seq=2, at=NOW, kind="host.warning", message="\x1b[2Jboo"),
    ]
    lines = run(client, "events", "--json", "--follow").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2]
    assert client.asked("events") == [(None, True)]
    text = run(client, "events", "--since", "1").stdout
    assert "vm.created  web  web was created." in text
    assert "\\x1b[2Jboo" in text


# -- the host


def test_doctor_lists_checks_and_remedies(client: FakeClient) -> None:
    client.checks = [
        CheckView(name="QEMU", status="ok", found="7.2.22"),
        CheckView(name="accelerator", status="warning", found="TCG", remedy="Load kvm."),
    ]
    result = run(client, "doctor")
    assert result.exit_code == 0
    assert result.stdout == (
        "ok       QEMU         7.2.22\nwarning  accelerator  TCG\n                      -> Load kvm.\n"
    )


def test_doctor_fails_when_something_is_missing(client: FakeClient) -> None:
    client.checks = [CheckView(name="QEMU", status="missing", found="not found", remedy="Install it.")]
    assert run(client, "doctor").exit_code == 1
    assert json.loads(run(client, "doctor", "--json").stdout)[0]["status"] == "missing"


def test_doctor_selftest(client: FakeClient) -> None:
    result = run(client, "doctor", "--selftest")
    assert client.asked("selftest") == [()]
    assert "ok  live clone  checksums are equal\n" in result.stdout


def test_doctor_works_where_no_daemon_starts(client: FakeClient) -> None:
    client.fails["doctor"] = PeerError("The daemon did not start: no QEMU.", hint="Look at the log.")
    result = run(client, "doctor", "--json")
    checks = json.loads(result.stdout)
    assert result.exit_code == 1
    assert checks[0] == {
        "name": "daemon",
        "status": "missing",
        "found": "The daemon did not start: no QEMU.",
        "remedy": "Look at the log.",
    }
    assert "kernel" in [check["name"] for check in checks]


def test_tools_install(client: FakeClient) -> None:
    assert run(client, "tools", "install", "web").stdout == "web has the tools now\n"


def test_version(client: FakeClient) -> None:
    assert run(client, "version").stdout == f"ramet {ramet.__version__}\n"
    assert json.loads(run(client, "version", "--json").stdout)["ramet"] == ramet.__version__
    assert client.calls == []


def test_serve_hands_settings_on(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import ramet.serve

    asked: list[Any] = []

    def serve(state_dir: Path | None, *, stop_vms: bool, flags: dict[str, str]) -> int:
        asked.append((state_dir, stop_vms, flags))
        return 3

    monkeypatch.setattr(ramet.serve, "run", serve)
    args = ["serve", "--state", "/s", "--chain-bound", "4", "--stop-vms", "--log-level=debug"]
    assert run(client, *args).exit_code == 3
    assert run(client, "serve").exit_code == 3
    assert asked == [(Path("/s"), True, {"chain_bound": "4", "log_level": "debug"}), (None, False, {})]
    assert run(client, "serve", "--chain-bound").exit_code == 2
    assert run(client, "serve", "there").exit_code == 2
