"""The demo's logic: what it shows, what it checks, and that it leaves nothing behind."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from ramet.cli import demo, demo_stage, demo_vsphere
from ramet.cli.demo_guest import (
    FREEZE_COMMAND,
    FREEZE_FILE,
    FREEZE_LOG,
    FREEZE_SCRIPT,
    NAME_KEY,
    PROVE,
    Proof,
    read_proof,
)
from ramet.cli.demo_identity import DRAW
from ramet.cli.session import begin
from ramet.clone.customize import numbered_names
from ramet.errors import GuestError, PeerError, StateError
from ramet.model.access import VsphereView
from ramet.model.host import Image, Network, Task
from ramet.model.identity import Acknowledgement, Identity, IdentityState, Plan
from ramet.model.machine import VmState
from ramet.model.requests import CloneVm, CreateVm, Exec
from ramet.model.views import CheckView, ExecResult, VmView
from tests.unit.cli.cli_kit import FakeClient, run, said, setup, task, vm_view

if TYPE_CHECKING:
    from ramet.api.client import Client


@dataclass
class Guest:
    """What is in one guest's memory."""

    token: str = ""
    name: str = ""
    script_waits: bool = False
    script: str = ""
    refusals: int = 2
    """How often its agent does not answer yet."""


@dataclass
class World(FakeClient):
    """Guests that do what the demo asks of them; `fault` names what goes wrong."""

    guests: dict[str, Guest] = field(default_factory=dict)
    fault: str = ""

    def create_vm(self, request: CreateVm) -> Task:
        self.guests[request.name] = Guest()
        return super().create_vm(request)

    def clone_vm(self, ref: str, request: CloneVm) -> Task:
        if self.fault == "interrupt" and len(self.asked("clone_vm")) == 1:
            self._note("clone_vm", ref, request)
            raise KeyboardInterrupt
        if self.fault == "signal" and len(self.asked("clone_vm")) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            self.known_tasks["begun"] = task("clone", "live-2", id="begun", state="running", cancellable=True)
            self.vms["somebodys"] = vm_view("somebodys")
        source = self.guests[ref]
        for _, name in numbered_names(request):
            own = request.extra_config.get(NAME_KEY, "") if self.fault != "name" else "somebody"
            script = own if source.script_waits and self.fault != "script" else ""
            token = source.token if self.fault != "token" or name != "live-1" else "other"
            self.guests[name] = Guest(token=token, name=own, script=script)
        return super().clone_vm(ref, request)

    def clone_by_vsphere(self, door: demo_vsphere.Door, source: str, name: str) -> float:
        assert (door.port, door.password) == (8443, "made-here")
        if self.fault == "vsphere":
            raise PeerError("The pyVmomi script failed: NoPermission")
        self.clone_vm(source, CloneVm(names=(name,), bare=True, extra_config={NAME_KEY: name}))
        return 123.0

    def show_vm(self, ref: str) -> VmView:
        said = Acknowledgement(generation=f"{ref}-generation", hostname=ref)
        plan = Plan(generation=said.generation, hostname=ref)
        identity = Identity(state=IdentityState.ACKNOWLEDGED, plan=plan, acknowledgement=said)
        return super().show_vm(ref).changed(identity=identity)

    def remove_vm(self, ref: str, force: bool = False) -> Task:
        self.guests.pop(ref, None)
        return super().remove_vm(ref, force)

    def exec_in_vm(self, ref: str, request: Exec) -> ExecResult:
        self._note("exec_in_vm", ref, request)
        guest, command = self.guests[ref], request.argv[-1]
        if guest.refusals:
            guest.refusals -= 1
            raise GuestError("The agent does not answer.")
        if command.startswith("echo "):
            guest.token = command.split()[1]
        elif command == f"cat {FREEZE_LOG}":
            return said("vmware-rpctool: not found\n")
        elif command == FREEZE_COMMAND:
            assert self.files[f"{ref}:{FREEZE_FILE}"].decode() == FREEZE_SCRIPT
            if self.fault == "freeze":
                return said("")
            guest.script_waits = True
            self._put(self._find(ref), state=VmState.FROZEN)
        elif command == DRAW:
            number = f"{list(self.guests).index(ref):08x}" if self.fault != "random" else "00000000"
            return said(f" {number}\n{ref}-generation\n")
        elif command == PROVE:
            return said("\n".join([guest.token, "42.5", guest.name, guest.script]))
        return said("")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    view = VsphereView(on=False, url="https://127.0.0.1:8443/", ca_file="/ca.pem")
    world = World(networks=[Network(name="default")], vsphere_view=view)
    monkeypatch.setattr(demo_vsphere, "run_script", world.clone_by_vsphere)
    monkeypatch.setattr(demo_vsphere, "fill_in_form", world.clone_by_vsphere)
    return world


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pauses; time passes with every look at the clock; a daemon that is not there cannot be ended."""
    now = iter(range(1_000_000))
    show = functools.partial(demo.Show, clock=lambda: next(now) / 10, pause=lambda s: None)
    monkeypatch.setattr(demo, "Show", show)
    monkeypatch.setattr(demo_stage, "_temporary_folder", lambda: _made(tmp_path / "stage"))
    monkeypatch.setattr(demo_stage, "end_process", lambda pid, timeout_s: True)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_whole_show(world: World, tmp_path: Path) -> None:
    result = run(world, "demo")
    assert result.exit_code == 0, result.output
    *ones, many, by_script, by_form = [request for _, request in world.asked("clone_vm")]
    names = [request.names[0] for request in ones]
    assert names == ["live-1", "live-2", "live-3", *(f"frozen-{n}" for n in range(1, 6))]
    assert (many.name, many.count) == ("pod-{n}", 12)
    assert (by_script.names, by_form.names) == (("by-script",), ("by-form",))
    text = result.stdout
    for command in (
        "$ ramet image build debian",
        "$ ramet vm create origin --image debian --memory 512M --start",
        "$ ramet clone origin live-3 --set guestinfo.demo.name=live-3",
        "$ ramet clone origin frozen-5 --set guestinfo.demo.name=frozen-5",
        "$ ramet vm rm --force origin",
    ):
        assert command in text
    assert 'vmware-rpctool "instantclone.freeze" || exit 1' in text
    assert "22 clones run and answer." in text
    assert "times faster" in text
    assert "unique" in text.lower()
    assert result.stderr.strip() == "Clearing the stage."


def test_nothing_is_left(world: World, tmp_path: Path) -> None:
    run(world, "demo", "--micro")
    assert world.vms == {}
    assert not (tmp_path / "stage").exists()
    assert world.closed


def test_the_source_is_gone_before_the_clones_are_asked_again(world: World) -> None:
    run(world, "demo")
    gone = world.calls.index(("remove_vm", "origin", True))
    later = [call[1] for call in world.calls[gone:] if call[0] == "exec_in_vm"]
    pods = [f"pod-{n}" for n in range(1, 13)]
    assert later == ["live-1", "live-2", "live-3", *(f"frozen-{n}" for n in range(1, 6)), *pods, *demo.VSPHERE_NAMES]


def test_an_image_that_is_there_is_not_built(world: World) -> None:
    world.images = [Image(name="micro", recipe="micro")]
    run(world, "demo", "--micro", "--live", "1", "--frozen", "1", "--many", "0")
    assert world.asked("build_image") == []
    assert len(world.asked("clone_vm")) == 2 + len(demo.VSPHERE_NAMES)


def test_vsphere_clients_are_served_for_their_scene_alone(world: World) -> None:
    run(world, "demo", "--micro")
    assert [request.on for (request,) in world.asked("set_vsphere")] == [True, False]
    ((request,),) = world.asked("add_user")
    assert (request.name, request.role.value) == ("ramet-demo", "operator")
    assert world.asked("remove_user") == [("ramet-demo",)]


def test_a_port_that_is_open_stays_open(world: World) -> None:
    world.vsphere_view = world.vsphere_view.changed(on=True)
    run(world, "demo", "--micro")
    assert world.asked("set_vsphere") == []
    assert world.asked("remove_user") == [("ramet-demo",)]


def test_a_script_that_fails_ends_the_show_and_leaves_no_user(world: World) -> None:
    world.fault = "vsphere"
    result = run(world, "demo", "--micro")
    assert result.exit_code == 1
    assert "The pyVmomi script failed: NoPermission" in result.stderr
    assert [request.on for (request,) in world.asked("set_vsphere")] == [True, False]
    assert world.asked("remove_user") == [("ramet-demo",)]
    assert world.vms == {}


def test_without_pyvmomi_the_scene_is_left_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_vsphere, "is_possible", lambda: False)
    result = run(world, "demo", "--micro")
    assert result.exit_code == 0, result.output
    assert world.asked("set_vsphere") == []
    assert "20 clones run and answer." in result.stdout


def test_without_port_groups_the_guest_has_user_networking(world: World) -> None:
    world.networks = []
    run(world, "demo", "--micro")
    ((request,),) = world.asked("create_vm")
    assert [nic.network for nic in request.nics] == ["user"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("token", "live-1 lost the token"),
        ("name", "reads 'somebody' as its guestinfo.demo.name"),
        ("script", "The script in frozen-1 did not go on"),
        ("random", "live-2 has the random of live-1: 00000000"),
    ],
)
def test_what_does_not_hold_is_an_error_at_the_end(world: World, fault: str, says: str, tmp_path: Path) -> None:
    world.fault = fault
    result = run(world, "demo", "--micro")
    assert result.exit_code == 1
    assert says in result.stderr
    assert "Times" in result.stdout
    assert world.vms == {}


def test_ctrl_c_clears_the_stage(world: World, tmp_path: Path) -> None:
    world.fault = "interrupt"
    result = run(world, "demo", "--micro")
    assert result.exit_code == 130
    assert world.vms == {}
    assert not (tmp_path / "stage").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_during_a_request_is_heard_after_its_answer(world: World, tmp_path: Path) -> None:
    world.fault = "signal"
    assert run(world, "demo", "--micro").exit_code == 130
    assert len(world.asked("clone_vm")) == 2
    assert world.asked("cancel_task") == [("begun",)]
    assert world.vms == {}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_task_that_cannot_be_cancelled_is_waited_for(world: World) -> None:
    world.fault = "signal"
    world.fails["cancel_task"] = StateError("It cannot be cancelled now.")
    assert run(world, "demo", "--micro").exit_code == 130
    assert ("begun",) in world.asked("wait_task")
    assert world.vms == {}


def test_ctrl_c_during_a_task_cancels_it_first(world: World) -> None:
    running = task("image.build", "micro", state="running", cancellable=True)
    world.running = [running]
    world.fails["wait_task"] = KeyboardInterrupt()  # type: ignore[assignment]
    assert run(world, "demo", "--micro").exit_code == 130
    assert world.asked("cancel_task") == [(running.id,)]


def test_an_error_clears_the_stage_and_is_told(world: World, tmp_path: Path) -> None:
    world.fails["write_file"] = GuestError("The disk of the guest is full.")
    result = run(world, "demo", "--micro")
    assert result.exit_code == 1
    assert "error: The disk of the guest is full.\n" in result.stderr
    assert world.vms == {}
    assert not (tmp_path / "stage").exists()


def test_a_vm_that_cannot_be_removed_does_not_keep_the_others(world: World) -> None:
    world.fails["write_file"] = GuestError("No.")
    original = world.remove_vm

    def remove(ref: str, force: bool = False) -> Task:
        if ref == "live-2":
            raise GuestError("It does not go.")
        return original(ref, force)

    world.remove_vm = remove  # type: ignore[method-assign]
    result = run(world, "demo", "--micro")
    assert "live-2 could not be removed" in result.stderr
    assert set(world.vms) == {"live-2"}


def test_what_cannot_be_removed_keeps_its_daemon(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(demo_stage, "end_process", lambda pid, timeout_s: ended.append(pid))
    world.fails["finish_task"] = GuestError("It does not go.")
    original = world.remove_vm
    world.remove_vm = lambda ref, force=False: task("vm.remove", ref) if ref == "live-2" else original(ref, force)  # type: ignore[method-assign]
    result = run(world, "demo", "--micro")
    assert f"live-2 could not be removed: the demo's daemon goes on, in {tmp_path}/stage" in result.stderr
    assert (tmp_path / "stage").exists()
    assert ended == []


def test_ctrl_c_while_the_daemon_starts_is_heard_when_it_answers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def end(pid: int, timeout_s: float) -> bool:
        ended.append(pid)
        return True

    monkeypatch.setattr(demo_stage, "end_process", end)

    def connect(state: Path, start: bool) -> Client:
        os.kill(os.getpid(), signal.SIGINT)
        return cast("Client", world)

    session = begin(replace(setup(world), connect=connect), state=None, as_json=False, quiet=True)
    with pytest.raises(KeyboardInterrupt), demo_stage.own_stage(session, keep=False):
        raise AssertionError("It was entered.")
    assert ended == [world.host_view().pid]
    assert world.closed
    assert not (tmp_path / "stage").exists()


def test_a_daemon_that_never_answers_is_ended(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(demo_stage, "end_process", lambda pid, timeout_s: ended.append(pid))

    def connect(state: Path, start: bool) -> Client:
        (state / "run").mkdir()
        (state / "run" / "daemon.lock").write_text("4321\n")
        raise PeerError("The daemon was not ready.")

    session = begin(replace(setup(world), connect=connect), state=None, as_json=False, quiet=True)
    with pytest.raises(PeerError), demo_stage.own_stage(session, keep=False):
        raise AssertionError("It was entered.")
    assert ended == [4321]
    assert not (tmp_path / "stage").exists()


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with demo_stage.ending_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_keep_leaves_the_clones_and_says_where(world: World, tmp_path: Path) -> None:
    result = run(world, "demo", "--micro", "--keep", "--live", "1", "--frozen", "1", "--many", "1")
    assert set(world.vms) == {"live-1", "frozen-1", "pod-1", *demo.VSPHERE_NAMES}
    assert f"ramet --state {tmp_path}/stage vm ls" in result.stdout
    assert (tmp_path / "stage").exists()


def test_a_state_of_the_users_is_not_removed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(demo_stage, "end_process", lambda pid, timeout_s: ended.append(pid))
    world.vms["mine"] = vm_view("mine")
    state = _made(tmp_path / "mine")
    run(world, "--state", str(state), "demo", "--micro")
    assert set(world.vms) == {"mine"}
    assert state.exists()
    assert ended == []
    assert [image.name for image in world.images] == ["micro"]


def test_json_has_the_numbers_alone(world: World) -> None:
    result = run(world, "demo", "--micro", "--json")
    data = json.loads(result.stdout)
    assert data["ok"] is True
    assert [machine["workflow"] for machine in data["machines"]] == [
        "boot",
        *["live"] * 3,
        *["frozen"] * 5,
        *["frozen, at once"] * 12,
        "pyVmomi",
        "browser form",
    ]
    assert len({one["random"] for one in data["identities"]}) == 20
    assert data["machines"][1]["stun_ms"] == 14
    assert data["machines"][1]["memory"]["unique_bytes"] == 50 << 20


def test_a_guest_that_never_answers_ends_the_show(world: World) -> None:
    world.fails["exec_in_vm"] = GuestError("The agent does not answer.")
    result = run(world, "demo", "--micro")
    assert result.exit_code == 1
    assert "did not answer within 240 s: The agent does not answer." in result.stderr


def test_a_script_that_fails_in_the_guest_is_quoted(world: World) -> None:
    world.fault = "freeze"
    result = run(world, "demo", "--micro")
    assert result.exit_code == 1
    assert "origin did not freeze within 60 s.\nhint: Its script said: vmware-rpctool: not found\n" in result.stderr


def test_the_hosts_checks_come_first(world: World) -> None:
    world.checks = [
        CheckView(name="accelerator", status="warning", found="TCG", remedy="Load kvm."),
        CheckView(name="busybox", status="ok", found="/bin/busybox"),
    ]
    text = run(world, "demo", "--micro").stdout
    assert "warning  accelerator  TCG\n                        -> Load kvm.\n" in text
    assert "busybox" not in text
    assert [call[0] for call in world.calls][:2] == ["list_vms", "doctor"]


def test_proofs() -> None:
    assert read_proof("t\n12.5\nn\ns\n") == Proof("t", 12.5, "n", "s")
    assert read_proof("t\n12.5\n") == Proof("t", 12.5, None, None)
    assert read_proof("") == Proof(None, 0.0, None, None)


def test_the_guests_scripts_are_posix_sh() -> None:
    for script in (FREEZE_SCRIPT, PROVE):
        shells = [shell for shell in ("dash", "busybox") if shutil.which(shell)] or ["sh"]
        for shell in shells:
            argv = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
            subprocess.run(argv, input=script, text=True, check=True, timeout=20)


def test_end_process_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    child = subprocess.Popen(["sleep", "60"])
    reaper = threading.Thread(target=child.wait)
    reaper.start()
    assert demo_stage.end_process(child.pid, 20)
    reaper.join()
    assert child.returncode == -signal.SIGTERM
    assert demo_stage.end_process(child.pid, 1)


def test_end_process_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            assert not demo_stage.end_process(child.pid, 0.05)
        finally:
            child.kill()
