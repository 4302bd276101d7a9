"""``ramet vm``: what is asked of the daemon, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import BusyError, NotFoundError, StateError
from ramet.model.host import Image, Network
from ramet.model.machine import VmState
from ramet.model.requests import ChangeVm, CopyVm, CreateVm, NicRequest, StopVm
from tests.unit.cli.cli_kit import NOW, FakeClient, clone_of, run, stun, vm_view


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(vms={"web": vm_view("web")}, images=[Image(name="debian", recipe="debian", created_at=NOW)])


def created(client: FakeClient, *args: str) -> CreateVm:
    result = run(client, "vm", "create", "new", *args)
    assert result.exit_code == 0, result.output
    ((request,),) = client.asked("create_vm")
    assert isinstance(request, CreateVm)
    return request


def test_create_asks_for_everything(client: FakeClient, tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAA me\n")
    data = tmp_path / "data"
    data.write_text("#cloud-config\n")
    request = created(
        client,
        *("--image", "debian", "--memory", "1G", "--cpus", "4", "--disk", "2G", "--disk", "image=debian"),
        *("--nic", "default,model=e1000e,mac=52:54:00:00:00:09", "--nic", "none,disconnected"),
        *("--display", "vga", "--firmware", "uefi", "--cdrom", "a.iso", "--ssh-key", str(key)),
        *("--user-data", str(data), "--set", "guestinfo.a=b=c", "--autostart", "--accel", "tcg"),
        *("--cpu-limit", "50", "--start"),
    )
    assert (request.memory_mib, request.vcpus, request.image) == (1024, 4, "debian")
    assert [disk.size_mib for disk in request.disks] == [2048, None]
    assert request.nics is not None
    assert request.nics[0].model == "e1000e"
    assert request.nics[1] == NicRequest(network=None, connected=False)
    assert request.cdroms == (str(Path("a.iso").absolute()),)
    assert request.ssh_keys == ("ssh-ed25519 AAAA me",)
    assert request.user_data == "#cloud-config\n"
    assert request.extra_config == {"guestinfo.a": "b=c"}
    assert (request.display, request.firmware, request.accelerator) == ("vga", "uefi", "tcg")
    assert (request.autostart, request.cpu_limit_percent, request.start) == (True, 50, True)


def test_create_leaves_the_choice_to_the_daemon(client: FakeClient) -> None:
    assert created(client) == CreateVm(name="new")


def test_no_nic_is_not_the_default_nic(client: FakeClient) -> None:
    assert created(client, "--no-nic").nics == ()


def test_what_is_refused_by_design_is_asked_all_the_same(client: FakeClient) -> None:
    """The daemon has the reason."""
    request = created(client, "--tpm", "--passthrough", "0000:01:00.0")
    assert (request.tpm, request.passthrough) == (True, ("0000:01:00.0",))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--memory", "lots"], "'lots' is not a size"),
        (["--memory", "1.5K"], "whole number of MiB"),
        (["--memory", "1M"], "--memory (MiB): "),
        (["--nic", "default,model=ne2000"], "'ne2000' is not a NIC model"),
        (["--nic", "default,speed=1"], "'speed=1' is not understood"),
        (["--nic", "default,mac=01:00:00:00:00:00"], "unicast MAC"),
        (["--nic", "default", "--no-nic"], "exclude each other"),
        (["--set", "novalue"], "is not KEY=VALUE"),
        (["--ssh-key", "/does/not/exist"], "cannot be read"),
        (["--display", "cga"], "cga"),
        (["--cpus", "many"], "--cpus"),
        (["--cpus", "0"], "--cpus: "),
    ],
)
def test_usage_errors_ask_nothing_and_exit_2(client: FakeClient, args: list[str], says: str) -> None:
    result = run(client, "vm", "create", "new", *args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    assert client.asked("create_vm") == []


def test_a_private_key_is_not_sent(client: FakeClient, tmp_path: Path) -> None:
    key = tmp_path / "id"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    result = run(client, "vm", "create", "new", "--ssh-key", str(key))
    assert (result.exit_code, client.calls) == (2, [])
    assert f"{key}.pub" in result.stderr


def test_a_wrong_image_is_answered_with_near_ones(client: FakeClient) -> None:
    result = run(client, "vm", "create", "new", "--image", "debain")
    assert result.exit_code == 1
    assert "error: There is no image 'debain'." in result.stderr
    assert "hint: Did you mean 'debian'? See 'ramet image ls'." in result.stderr


def test_a_taken_name(client: FakeClient) -> None:
    result = run(client, "vm", "create", "web")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: There is a VM 'web' already.\nhint: Choose another name.\n",
    )


def test_ls_in_plain_text_is_aligned_and_has_no_lines(client: FakeClient) -> None:
    client.vms["web-2"] = clone_of("web-2", "web")
    client.vms["off"] = vm_view("off", state=VmState.OFF, memory=None, nics=())
    assert run(client, "vm", "ls").stdout == (
        "NAME   STATE    CPUS   MEMORY  RESIDENT  UNIQUE  ADDRESS   SOURCE\n"
        "web    running     2  512 MiB   200 MiB  50 MiB  10.9.0.5  debian\n"
        "web-2  running     2  512 MiB   200 MiB  50 MiB  10.9.0.5  web\n"
        "off    off         2  512 MiB         -       -  -         debian\n"
    )


def test_ls_on_a_terminal_has_colours_and_rules(client: FakeClient) -> None:
    text = run(client, "vm", "ls", terminal=True).stdout
    assert "\x1b[32mrunning\x1b[0m" in text
    assert "─" in text


def test_no_color_takes_the_colours_only(client: FakeClient) -> None:
    text = run(client, "vm", "ls", terminal=True, env={"NO_COLOR": "1"}).stdout
    assert "─" in text
    assert "\x1b[32m" not in text


def test_ls_quiet_prints_names(client: FakeClient) -> None:
    client.vms["db"] = vm_view("db")
    assert run(client, "vm", "ls", "-q").stdout == "web\ndb\n"
    assert run(client, "-q", "vm", "ls").stdout == "web\ndb\n"


def test_ls_json_is_one_list(client: FakeClient) -> None:
    data = json.loads(run(client, "vm", "ls", "--json").stdout)
    assert [vm["name"] for vm in data] == ["web"]
    assert data[0]["memory"]["unique_bytes"] == 50 << 20


def test_an_empty_ls_says_how_to_begin_on_stderr() -> None:
    result = run(FakeClient(), "vm", "ls")
    assert result.stdout == ""
    assert "ramet vm create" in result.stderr


PAGE = """\
web-2  running
  id           id-web-2
  uuid         11111111-2222-3333-4444-555555555555
  hardware     2 vCPU, 512 MiB, BIOS
  image        debian
  runs on      TCG, QEMU 7.2.22, pid 4242
  up           1 h 1 min
  cloned from  web, while it ran, 1 min ago

Memory
  configured   512 MiB
  resident     200 MiB
  unique       50 MiB  (25 % of resident)
  shared       150 MiB  (75 % of resident)
  QEMU itself  15 MiB

Network
  net0  virtio  52:54:01:61:2f:7a  default  connected  fe80::1, 10.9.0.5

Disks
  disk0  4 GiB, 2 layers
    aaaa  3 MiB  writable
    img-bbbb  700 MiB  read-only, shared by 3

Configuration
  guestinfo.role  web

Stuns
  14 ms  30 s ago  stop 1.0 ms + disks 2.0 ms + state 4.0 ms + fork 3.0 ms + resume 0.5 ms
"""


def test_show_is_a_page() -> None:
    vm = clone_of("web-2", "web").changed(stuns=(stun(14).model_dump(),), created_at=0.0)
    assert run(FakeClient(vms={"web-2": vm}), "vm", "show", "web-2").stdout == PAGE


def test_show_draws_the_chain_on_a_terminal(client: FakeClient) -> None:
    text = run(client, "vm", "show", "web", terminal=True, env={"NO_COLOR": "1"}).stdout
    assert "├─ " in text
    assert "└─ " in text


def test_show_says_why_a_vm_is_paused() -> None:
    vm = vm_view("web", state=VmState.PAUSED, pause_reason="io-error", busy_with="clone")
    assert run(FakeClient(vms={"web": vm}), "vm", "show", "web").stdout.startswith(
        "web  paused (io-error), busy with clone\n"
    )


def test_show_makes_escapes_of_a_guest_visible() -> None:
    nic: dict[str, Any] = vm_view("web").nics[0].model_dump()
    vm = vm_view("web", nics=({**nic, "addresses": ("\x1b]0;evil\x07",)},))
    for terminal in (False, True):
        text = run(FakeClient(vms={"web": vm}), "vm", "show", "web", terminal=terminal).stdout
        assert "\x1b]0" not in text
        assert "\\x1b]0;evil\\x07" in text


@pytest.mark.parametrize(
    ("command", "method", "state"),
    [
        ("start", "start_vm", "running"),
        ("stop", "stop_vm", "off"),
        ("restart", "restart_vm", "running"),
        ("suspend", "suspend_vm", "suspended"),
        ("resume", "resume_vm", "running"),
        ("freeze", "freeze_vm", "frozen"),
        ("thaw", "thaw_vm", "running"),
    ],
)
def test_every_move_of_the_lifecycle(client: FakeClient, command: str, method: str, state: str) -> None:
    result = run(client, "vm", command, "web", "--json")
    assert result.exit_code == 0, result.output
    assert client.asked(method)[0][0] == "web"
    (data,) = json.loads(result.stdout)
    assert (data["name"], data["state"]) == ("web", state)


def test_a_copy_is_linked_unless_full(client: FakeClient) -> None:
    assert run(client, "vm", "copy", "web", "copy").stdout.startswith("copy copied")
    run(client, "vm", "copy", "web", "other", "--full", "--start", "--set", "guestinfo.a=b")
    assert client.asked("copy_vm") == [
        ("web", CopyVm(name="copy")),
        ("web", CopyVm(name="other", linked=False, start=True, set_config={"guestinfo.a": "b"})),
    ]


def test_vms_are_unregistered_and_registered_again(client: FakeClient) -> None:
    assert run(client, "vm", "unregister", "web").stdout.startswith("web unregistered")
    assert "web" not in run(client, "vm", "ls").stdout
    assert "web" in run(client, "vm", "ls", "--unregistered").stdout
    assert run(client, "vm", "register", "web", "--name", "www").stdout.startswith("www registered")
    assert "www" in run(client, "vm", "ls").stdout


def test_moves_say_what_was_done(client: FakeClient) -> None:
    assert run(client, "vm", "freeze", "web").stdout.startswith("web frozen")
    assert run(client, "vm", "thaw", "web", "-q").stdout == ""


def test_stop_hard_and_its_timeout(client: FakeClient) -> None:
    run(client, "vm", "stop", "web", "--hard", "--timeout", "2m")
    assert client.asked("stop_vm") == [("web", StopVm(hard=True, timeout_s=120))]


def test_one_failure_among_several_is_told_and_does_not_stop_the_others(client: FakeClient) -> None:
    client.vms["db"] = vm_view("db")
    result = run(client, "vm", "stop", "web", "wbe", "db", "--json")
    assert result.exit_code == 1
    assert [vm["name"] for vm in json.loads(result.stdout)] == ["web", "db"]
    assert "error: wbe: There is no VM 'wbe'." in result.stderr
    assert "Did you mean 'web'?" in result.stderr


def test_an_unknown_vm_is_answered_with_near_names(client: FakeClient) -> None:
    result = run(client, "vm", "show", "wbe")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: There is no VM 'wbe'.\nhint: Did you mean 'web'? See 'ramet vm ls'.\n"


def test_what_is_there_is_not_suggested_for_what_is_not(client: FakeClient) -> None:
    client.fails["remove_disk"] = NotFoundError("'web' has no disk 'disk9'.", hint="It has: disk0.")
    assert run(client, "vm", "disk", "rm", "web", "disk9").stderr == (
        "error: 'web' has no disk 'disk9'.\nhint: It has: disk0.\n"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["clone", "web", "x", "--nic", "net0=lba"],
        ["vm", "create", "x", "--nic", "lba,model=e1000e"],
        ["vm", "nic", "add", "web", "lba"],
        ["vm", "nic", "set", "web", "net0", "--network", "lba"],
    ],
)
def test_near_port_groups_are_suggested(client: FakeClient, args: list[str]) -> None:
    client.networks = [Network(name="lab")]
    for method in ("clone_vm", "create_vm", "add_nic", "change_nic"):
        client.fails[method] = NotFoundError("There is no port group 'lba'.")
    result = run(client, *args)
    assert result.stderr == (
        "error: There is no port group 'lba'.\nhint: Did you mean 'lab'? See 'ramet network ls'.\n"
    )


def test_states_and_busy_vms_are_the_daemons_sentences(client: FakeClient) -> None:
    client.fails["start_vm"] = StateError("'web' is running.", hint="It need not be started.")
    assert run(client, "vm", "start", "web").stderr == "error: 'web' is running.\nhint: It need not be started.\n"
    client.fails["start_vm"] = BusyError("'web' is busy: clone is running.")
    assert run(client, "vm", "start", "web").exit_code == 1


def test_rename(client: FakeClient) -> None:
    result = run(client, "vm", "rename", "web", "www")
    assert client.asked("change_vm") == [("web", ChangeVm(name="www"))]
    assert result.stdout == "www was web\n"
    assert run(client, "vm", "rename", "www", "-bad-").exit_code == 2


def test_set(client: FakeClient) -> None:
    args = ("--memory", "2G", "--cpus", "3", "--set", "guestinfo.a=1", "--unset", "old", "--no-autostart")
    assert run(client, "vm", "set", "web", *args, "--cpu-limit", "0").exit_code == 0
    expected = ChangeVm(
        memory_mib=2048,
        vcpus=3,
        set_config={"guestinfo.a": "1"},
        unset_config=("old",),
        autostart=False,
        cpu_limit_percent=0,
    )
    assert client.asked("change_vm") == [("web", expected)]


def test_set_without_a_change_is_a_usage_error(client: FakeClient) -> None:
    result = run(client, "vm", "set", "web")
    assert (result.exit_code, client.calls) == (2, [])


def test_a_key_from_a_file(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("long\ntext")
    run(client, "vm", "set", "web", "--set", f"guestinfo.t=@{tmp_path}/f")
    assert client.asked("change_vm")[0][1].set_config == {"guestinfo.t": "long\ntext"}


def test_rm(client: FakeClient) -> None:
    result = run(client, "vm", "rm", "web", "--force", "--json")
    assert client.asked("remove_vm") == [("web", True)]
    assert json.loads(result.stdout) == [{"removed": "web"}]
    assert client.vms == {}


def test_the_client_is_closed_also_after_an_error(client: FakeClient) -> None:
    run(client, "vm", "show", "nobody")
    assert client.closed
