"""The library under a stock QEMU, without a guest: filtered by seccomp, as another user, for generations."""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ramet.hypervisor.fork import (
    ZYGOTE,
    ForkClient,
    ForkRequest,
    NativePaths,
    create_ram,
    environment,
    listen_control,
)

QEMU = shutil.which("qemu-system-x86_64")
RAM_MIB = 64
TIMEOUT_S = 60.0
NOBODY = 65534
SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,resourcecontrol=deny")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")]


class Qmp:
    """Just enough QMP over one end of a socket pair. Owns it."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(TIMEOUT_S)
        self._socket = end
        self._file = end.makefile("rb")
        greeting = self._file.readline()
        if not greeting:
            self.close()
            raise EOFError
        self("qmp_capabilities")
        capability = {"capability": "x-ignore-shared", "state": True}  # no property of the command line's in QEMU 7.2
        self("migrate-set-capabilities", capabilities=[capability])

    def __call__(self, command: str, fd: int | None = None, **arguments: Any) -> Any:
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._socket.sendmsg([json.dumps({"execute": command, "arguments": arguments}).encode()], rights)
        while "return" not in (message := json.loads(self._file.readline())):
            assert "error" not in message, message
        return message["return"]

    def status(self) -> str:
        return str(self("query-status")["status"])

    def memory_at(self, address: int) -> int:
        words = {"command-line": f"xp /1xw {address:#x}"}
        text = self("human-monitor-command", None, **words)
        return int(text.split(":")[1], 16)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def end(pidfd: int) -> None:
    """Kills, reaps and closes."""
    with suppress(ProcessLookupError, ChildProcessError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)


@dataclass
class Vm:
    pid: int
    pidfd: int
    control: Path
    log: Path
    qmp: Qmp

    def proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text(encoding="utf-8")

    def field(self, name: str) -> str:
        return dict(line.split(":\t", 1) for line in self.proc("status").splitlines() if ":\t" in line)[name]

    def shape(self) -> tuple[int, list[str]]:
        """Mappings and descriptors, which must not grow from generation to generation."""
        return len(self.proc("maps").splitlines()), sorted(os.listdir(f"/proc/{self.pid}/fd"), key=int)

    def end(self) -> None:
        self.qmp.close()
        end(self.pidfd)


def arguments(ram_fd: int, qmp_fd: int, *more: str) -> tuple[str, ...]:
    backend = f"memory-backend-file,id=ram,size={RAM_MIB}M,mem-path=/proc/self/fd/{ram_fd},share=on,merge=off,dump=off"
    return (
        *(str(QEMU), "-accel", "tcg,tb-size=16", "-machine", "q35,memory-backend=ram", "-m", str(RAM_MIB), "-S"),
        *("-nodefaults", "-display", "none", "-object", backend),
        *("-chardev", f"socket,id=q,fd={qmp_fd}", "-mon", "chardev=q,mode=control", *more),
    )


class Farm:
    """Launches and forks QEMUs, which write to `directory` through descriptors only; ends them all."""

    def __init__(self, directory: Path, paths: NativePaths) -> None:
        self._directory = directory
        self._paths = paths
        self._count = 0
        self._saved = b""
        self.vms: list[Vm] = []

    @contextmanager
    def _ends(self) -> Iterator[tuple[int, socket.socket, Path, socket.socket, socket.socket, int, Path]]:
        self._count += 1
        with ExitStack() as stack:
            ram = create_ram(RAM_MIB << 20)
            stack.callback(os.close, ram)
            control, log_path = self._directory / f"{self._count}.fork", self._directory / f"{self._count}.log"
            log = os.open(log_path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            stack.callback(os.close, log)
            listener = stack.enter_context(listen_control(control))
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            stack.enter_context(ours)
            yield ram, listener, control, ours, theirs, log, log_path

    def launch(self, *more: str) -> Vm:
        root = os.getuid() == 0
        with self._ends() as (ram, listener, control, ours, theirs, log, log_path):
            child = subprocess.Popen(
                arguments(ram, theirs.fileno(), *SANDBOX, *more),
                env=environment(self._paths, ram_fd=ram, control_fd=listener.fileno(), owner_uid=os.getuid()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ram, listener.fileno(), theirs.fileno()],
                user=NOBODY if root else None,
                group=NOBODY if root else None,
                extra_groups=[] if root else None,
            )
            child.returncode = 0  # reaped by Vm.end
            theirs.close()
            return self._keep(child.pid, os.pidfd_open(child.pid), control, log_path, ours)

    @contextmanager
    def zygote(self, source: Vm) -> Iterator[tuple[int, Path]]:
        """Its process and where it serves."""
        with self._ends() as (ram, listener, control, _, _, log, _):
            env = environment(self._paths, ram_fd=3, control_fd=4, owner_uid=os.getuid()) | {ZYGOTE: "1"}
            with ForkClient.connect(source.control, TIMEOUT_S) as client:
                child = client.fork(ForkRequest((str(QEMU),), env, (log, log, log, ram, listener.fileno()), "zygote"))
        try:
            yield child.pid, control
        finally:
            end(child.pidfd)

    def fork(self, source: Vm, zygote: Path | None = None) -> Vm:
        """A QEMU over a fork of the source's RAM, with its devices' state loaded."""
        with self._ends() as (ram, listener, control, ours, theirs, log, log_path), ExitStack() as stack:
            state = os.memfd_create("state")
            stack.callback(os.close, state)
            if source.qmp.status() == "postmigrate":  # what it holds cannot be saved again
                os.write(state, self._saved)
            else:
                save(source.qmp, state)
                self._saved = os.pread(state, 16 << 20, 0)
            client = stack.enter_context(ForkClient.connect(zygote or source.control, TIMEOUT_S))
            request = ForkRequest(
                argv=arguments(3, 5, "-incoming", "defer"),
                env=environment(self._paths, ram_fd=3, control_fd=4, owner_uid=os.getuid()),
                fds=(log, log, log, ram, listener.fileno(), theirs.fileno()),
                name=f"vm-{self._count}",
            )
            child = client.fork(request)
            theirs.close()
            vm = self._keep(child.pid, child.pidfd, control, log_path, ours)
            load(vm.qmp, state)
        return vm

    def _keep(self, pid: int, pidfd: int, control: Path, log: Path, ours: socket.socket) -> Vm:
        try:
            vm = Vm(pid, pidfd, control, log, Qmp(ours.dup()))
        except BaseException as error:
            end(pidfd)
            error.add_note(f"QEMU ended before its greeting: {log.read_text()}")
            raise
        self.vms.append(vm)
        return vm


def save(qmp: Qmp, state: int) -> None:
    qmp("getfd", fd=state, fdname="state")
    qmp("migrate", uri="fd:state")
    while (status := qmp("query-migrate")["status"]) != "completed":
        assert status != "failed", qmp("query-migrate")


def load(qmp: Qmp, state: int) -> None:
    os.lseek(state, 0, os.SEEK_SET)
    qmp("getfd", fd=state, fdname="state")
    qmp("migrate-incoming", uri="fd:state")
    while qmp.status() == "inmigrate":
        pass


@pytest.fixture
def farm(tmp_path: Path, native_paths: NativePaths) -> Iterator[Farm]:
    farm = Farm(tmp_path, native_paths)
    try:
        yield farm
    finally:
        for vm in farm.vms:
            vm.end()


def test_a_filtered_unprivileged_qemu_is_forked(farm: Farm) -> None:
    source = farm.launch("-device", "loader,addr=0x1000000,data=0x5eed,data-len=4")
    assert source.qmp.memory_at(0x1000000) == 0x5EED
    clone = farm.fork(source)
    assert clone.qmp.memory_at(0x1000000) == 0x5EED  # nothing loads it there in the clone: it is the source's memory
    assert clone.qmp.memory_at(0xFFFFFFF0) == source.qmp.memory_at(0xFFFFFFF0)  # firmware, in the state
    assert clone.field("Uid") == source.field("Uid")
    assert clone.field("Seccomp") == "2"
    assert clone.proc("cmdline").split("\0")[:2] == [str(QEMU), "-accel"]
    assert clone.proc("comm") == "vm-2\n"
    assert clone.log.read_text() == ""


def test_generations_of_qemu_do_not_wear(farm: Farm) -> None:
    vm = farm.launch("-device", "loader,addr=0x1000000,data=0x5eed,data-len=4")
    shapes = []
    for _ in range(8):
        child = farm.fork(vm)
        farm.vms.remove(vm)
        vm.end()
        vm = child
        shapes.append(vm.shape())
        assert vm.field("Seccomp_filters") == "1"
        assert vm.qmp.memory_at(0x1000000) == 0x5EED
    mappings = [mapping_count for mapping_count, _ in shapes]
    assert max(mappings) - min(mappings) < 24, mappings  # threads and arenas come and go
    assert all(fds == shapes[0][1] for _, fds in shapes)


def test_qemus_of_a_zygote_share_what_linking_made_and_nothing_else(farm: Farm) -> None:
    source = farm.launch("-device", "loader,addr=0x1000000,data=0x5eed,data-len=4")
    plain = farm.fork(source)
    with farm.zygote(source) as (pid, control):
        clones = [farm.fork(source, control) for _ in range(2)]
        assert len(os.listdir(f"/proc/{pid}/task")) == 1  # the thread of QEMU's constructor is begun in its children
    for clone in clones:
        assert clone.qmp.memory_at(0x1000000) == 0x5EED
        assert clone.field("Seccomp_filters") == "1"
        assert clone.proc("comm").startswith("vm-")
        assert clone.proc("cmdline") == plain.proc("cmdline")
        assert clone.log.read_text() == ""
        assert len(clone.shape()[1]) == len(plain.shape()[1])
    assert private_kib(clones[1]) < private_kib(plain) - 1024
    grandchild = farm.fork(clones[1])
    assert grandchild.qmp.memory_at(0x1000000) == 0x5EED


def private_kib(vm: Vm) -> int:
    rows = dict(line.split(":") for line in vm.proc("smaps_rollup").splitlines()[1:])
    return sum(int(rows[name].split()[0]) for name in ("Private_Dirty", "Private_Clean"))
