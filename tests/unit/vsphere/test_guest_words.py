"""What guests say, read as hostile, and who their users are."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.errors import BusyError, CapacityError, ConflictError, DamagedError, DeadlineError, GuestError, StateError
from ramet.model.machine import Machine, Vm, VmState
from ramet.model.views import ExecResult
from ramet.vsphere import ids
from ramet.vsphere.guest import scripts
from ramet.vsphere.guest.files import read_files
from ramet.vsphere.guest.login import fault_for, guest_of, told, unreachable
from ramet.vsphere.guest.processes import KEPT_S, Programs, Started, read_processes
from ramet.vsphere.machine.refusals import refusal
from ramet.vsphere.types import vim

PROCESSES = b"""B 1700000000
T 100
U 0 root
U 1000 eve
P 0 1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 250 1 2
C /sbin/init --x\x20
P 1000 42 (a) b (c) R 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1 2
C
P 0 senseless
C lost
"""

FILES = b"""F|41ed|4096|1700000000|1700000001|0|0|.
F|81a4|12|1700000000|1700000001|1000|100|./a|b
F|a1ff|3|1700000000|1700000001|0|0|./link
F|what|ever
L|./link
a|b
"""


def test_processes_are_read_whatever_they_are_called() -> None:
    first, second = read_processes(PROCESSES)
    assert (first.pid, first.name, first.owner, first.cmdLine) == (1, "init", "root", "/sbin/init --x")
    assert first.startTime.timestamp() == 1700000002.5
    assert (second.pid, second.name, second.owner, second.cmdLine) == (42, "a) b (c", "eve", "[a) b (c]")


def test_files_are_read_whatever_they_are_called() -> None:
    files, links = read_files(FILES)
    assert [(one.name, one.size, one.uid, one.mode) for one in files] == [
        (".", 4096, 0, 0o40755),
        ("a|b", 12, 1000, 0o100644),
        ("link", 3, 0, 0o120777),
    ]
    assert links == {"link": "a|b"}


@given(st.binary(max_size=400))
def test_what_makes_no_sense_is_left_out(said: bytes) -> None:
    list(read_processes(said))
    read_files(said)
    list(read_processes(b"B 1\nT 0\nP 0 1 (x) S " + said + b"\nC x\n"))
    read_files(b"F|" + said)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("rm: can't remove '/x': No such file or directory", vim.fault.FileNotFound),
        ("mkdir: cannot create directory '/x': Permission denied", vim.fault.GuestPermissionDenied),
        ("mkdir: can't create directory '/x': File exists", vim.fault.FileAlreadyExists),
        ("rmdir: failed to remove '/x': Directory not empty", vim.fault.DirectoryNotEmpty),
        ("cat: /x: Is a directory", vim.fault.NotAFile),
        ("/x: Not a regular file", vim.fault.NotAFile),
        ("cd: /x: Not a directory", vim.fault.NotADirectory),
        ("something else", vim.fault.FileFault),
    ],
)
def test_the_words_of_the_c_library_say_which_fault(words: str, fault: Any) -> None:
    made = fault_for(words, "/x")
    assert type(made) is fault
    assert words in made.msg
    assert getattr(made, "file", "/x") == "/x"


def result(exit_code: int, stderr: str = "", stdout: bytes = b"") -> ExecResult:
    def encoded(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return ExecResult(exit_code=exit_code, stdout_base64=encoded(stdout), stderr_base64=encoded(stderr.encode()))


def test_the_login_says_why_it_refuses() -> None:
    assert told(result(0, "noise", b"out")) == b"out"
    with pytest.raises(vim.fault.InvalidGuestLogin):
        told(result(97, "ramet: wrong password\n"))
    with pytest.raises(vim.fault.OperationNotSupportedByGuest, match="nothing that passwords"):
        told(result(96, "ramet: there is nothing that passwords could be checked with"))
    with pytest.raises(vim.fault.FileFault):
        told(result(97, "a script's own"))


# -- who somebody is ---------------------------------------------------------------------------------------------------


class FakeHost:
    """Answers what runs in a guest; remembers what was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[Any]()
        self.tasks = SimpleNamespace(list=list)
        self.floor = SimpleNamespace(machines={})

    async def exec_in_vm(self, vm_id: str, request: Any) -> ExecResult:
        self.asked.append(request)
        answer = self.answers.pop(0) if self.answers else result(0)
        if isinstance(answer, BaseException):
            raise answer
        found: ExecResult = answer
        return found


class FakeWorld:
    def __init__(self, host: Any) -> None:
        self.host = host

    def find(self, moid: str, call: Any = None, reference: Any = None) -> Any:
        return SimpleNamespace(moid=moid, world=self)


def auth(user: str = "root", password: str = "secret", **more: Any) -> Any:
    return vim.vm.guest.NamePasswordAuthentication(
        username=user, password=password, **{"interactiveSession": False, **more}
    )


VM = vim.VirtualMachine(ids.vm_moid("00000000000a"))


async def test_a_password_is_on_standard_input_and_nowhere_else() -> None:
    host = FakeHost()
    guest = guest_of(FakeWorld(host), VM, auth(password="ünsafe $x"))  # type: ignore[arg-type]
    await guest.run("true", "one", stdin=b"more")
    (request,) = host.asked
    assert request.argv[3:6] == ("sh", "root", "/bin/sh")
    assert not any("nsafe" in part for part in request.argv)
    assert base64.b64decode(request.stdin_base64) == "ünsafe $x\nmore".encode()
    assert "nsafe" not in repr(guest)


@pytest.mark.parametrize(
    "given",
    [auth("", ""), auth("a b"), auth("x" * 300), auth(password="a\nb"), auth(password="a\0"), auth("-x"), auth("a:b")],
)
def test_what_cannot_be_a_login_never_reaches_the_guest(given: Any) -> None:
    with pytest.raises(vim.fault.InvalidGuestLogin):
        guest_of(FakeWorld(FakeHost()), VM, given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given"),
    [auth(interactiveSession=True), vim.vm.guest.SAMLTokenAuthentication(token="x", interactiveSession=False)],
)
def test_other_ways_in_are_not_supported(given: Any) -> None:
    with pytest.raises(vim.fault.OperationNotSupportedByGuest):
        guest_of(FakeWorld(FakeHost()), VM, given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (DeadlineError("No answer."), vim.fault.GuestOperationsUnavailable),
        (GuestError("Refused."), vim.fault.GuestOperationsUnavailable),
        (GuestError("No.", error_class="CommandNotFound"), vim.fault.OperationNotSupportedByGuest),
        (ConnectionRefusedError("no QEMU"), vim.fault.GuestOperationsUnavailable),
        (StateError("It is off."), vim.fault.InvalidState),
    ],
)
def test_a_guest_that_cannot_be_reached_is_a_fault_of_its_own(error: Exception, fault: Any) -> None:
    mo = FakeWorld(FakeHost()).find(VM._moId)
    assert type(unreachable(mo, error)) is fault


# -- refusals ----------------------------------------------------------------------------------------------------------


def machine(state: VmState) -> tuple[Any, Any]:
    vm = Vm(id="00000000000a", machine=Machine(name="web"), state=state)
    host = FakeHost()
    host.floor.machines[vm.id] = SimpleNamespace(vm=vm)
    host.floor.inventory = SimpleNamespace(find_vm=lambda name: vm)
    return FakeWorld(host).find(VM._moId), host


def test_refusals_name_what_the_api_wants_named() -> None:
    mo, host = machine(VmState.OFF)
    taken = refusal(mo, ConflictError("There is one.", name="web"))
    assert (taken.name, taken.object._moId) == ("web", VM._moId)
    host.tasks.list = lambda: [SimpleNamespace(vm_id="00000000000a", id="0f", state=SimpleNamespace(is_final=False))]
    assert refusal(mo, BusyError("Busy.")).task._moId == "task-15"
    off = refusal(mo, StateError("It is off."), "poweredOn")
    assert (off.requestedState, off.existingState, off.msg) == ("poweredOn", "poweredOff", "It is off.")
    assert isinstance(refusal(mo, StateError("Hm.")), vim.fault.InvalidState)
    assert isinstance(refusal(mo, CapacityError("No room.")), vim.fault.InsufficientResourcesFault)
    assert isinstance(refusal(mo, DamagedError("Broken.")), vim.fault.FileFault)
    assert refusal(mo, ValueError("a bug")) is None


# -- programs ----------------------------------------------------------------------------------------------------------


def test_ended_programs_are_told_of_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    programs, now = Programs(), [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    programs.add("vm", Started(7, "/bin/x", "x", "eve", 1000.0))
    programs.ended("vm", 7, 3)
    assert programs.of("vm")[7].exit_code == 3
    now[0] += KEPT_S + 1
    assert programs.of("vm") == {}


# -- the scripts -------------------------------------------------------------------------------------------------------

SCRIPTS = {name: text for name, text in vars(scripts).items() if name.isupper() and isinstance(text, str)}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
async def test_scripts_are_posix_sh(name: str) -> None:
    def parsed() -> int:
        return subprocess.run(["sh", "-n"], input=SCRIPTS[name].encode(), timeout=10, check=False).returncode

    assert await asyncio.to_thread(parsed) == 0
