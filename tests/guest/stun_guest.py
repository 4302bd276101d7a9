"""A real QEMU to stun, without the rest of the house: a guest that checks its memory, and a wire that can be cut.

The guest fills its memory, keeps rewriting it, and prints a line whenever a sum over all of it is right (OK) or wrong
(BAD). Between the helper and QEMU's monitor lies a proxy that calls back when a command passes.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ramet.hypervisor.fork import ForkRequest, create_ram, environment, library, listen_control
from ramet.hypervisor.stun_monitor import Monitor
from ramet.hypervisor.stun_plan import SnapshotStep, StunPlan

RAM_MIB = 96
BOOT_S = 90.0
QUIET_S = 30.0

GUEST_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int c, char **v) {
  size_t n = (size_t)atoi(v[1]) << 8; char *p = malloc(n * 4096); unsigned r = 1;
  for (size_t i = 0; i < n; i++) p[i * 4096] = 7, p[i * 4096 + 8] = 0;
  for (int k = 0;; k++, usleep(5000)) {
    for (int j = 0; j < 50; j++) r = r * 1664525 + 1013904223, p[(r >> 4) % n * 4096 + 8] ^= 1;
    if (k % 20) continue;
    size_t s = 0; for (size_t i = 0; i < n; i++) s += p[i * 4096];
    printf("tick %d %s\n", k, s == 7 * n ? "OK" : "BAD"); fflush(stdout);
  }
}"""


def build_initrd(directory: Path, kernel: Path) -> Path:
    """An initrd; the kernel that it is booted with lies beside it."""
    (directory / "vmlinuz").symlink_to(kernel)
    root = directory / "root"
    (root / "bin").mkdir(parents=True)
    (directory / "guest.c").write_text(GUEST_C)
    work = root / "bin" / "work"
    subprocess.run(["gcc", "-O2", "-static", "-o", work, directory / "guest.c"], check=True, timeout=60)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    (root / "init").write_text(f"#!/bin/busybox sh\nexec /bin/work {RAM_MIB // 4}\n")
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))).encode()
    initrd = directory / "initrd"
    with open(initrd, "wb") as file:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names, stdout=file, check=True)
    return initrd


@dataclass
class Machine:
    """A QEMU process with the library, launched or forked, and its files in `directory`."""

    directory: Path
    name: str
    process: subprocess.Popen[bytes] | None = None
    disks: dict[str, Path] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    overlays: int = 0

    @property
    def process_name(self) -> str:
        """Of a fork: no other test run's, so that what this one leaves behind can be told."""
        return f"{self.directory.name.removeprefix('stun-')[:6]}-{self.name}"

    def path(self, kind: str) -> Path:
        return self.directory / f"{self.name}.{kind}"

    def argv(self, ram_fd: int, *more: str) -> list[str]:
        ram = f"memory-backend-file,id=ram,size={RAM_MIB}M,mem-path=/proc/self/fd/{ram_fd},share=on,merge=off,dump=off"
        argv = ["/usr/bin/qemu-system-x86_64", "-name", self.name, "-accel", "tcg,thread=multi,tb-size=32"]
        argv += ["-machine", "q35,memory-backend=ram", "-nodefaults", "-display", "none", "-m", str(RAM_MIB)]
        argv += ["-object", ram, "-chardev", f"file,id=c0,path={self.path('log')}", "-serial", "chardev:c0"]
        for kind in ("qmp", "real"):
            argv += ["-qmp", f"unix:{self.path(kind)},server=on,wait=off"]
        for node, file in self.disks.items():
            argv += ["-blockdev", json.dumps(node_options(node, file)), "-device", f"virtio-blk-pci,drive={node}"]
        return [*argv, *self.devices, *more]

    def launch(self, initrd: Path) -> None:
        ram, control = create_ram(RAM_MIB << 20), listen_control(self.path("fork"))
        env = environment(library(), ram_fd=ram, control_fd=control.fileno(), owner_uid=os.geteuid())
        boot = ("-kernel", str(initrd.with_name("vmlinuz")), "-initrd", str(initrd), "-append", "console=ttyS0 quiet")
        with control, open(self.path("err"), "wb") as log:
            self.process = subprocess.Popen(
                self.argv(ram, *boot),
                env={"PATH": os.defpath, **env},
                pass_fds=[ram, control.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(ram)

    @contextlib.contextmanager
    def request(self) -> Iterator[ForkRequest]:
        """To fork some other machine into this one, which then waits for its device state."""
        with contextlib.ExitStack() as stack:
            control = stack.enter_context(listen_control(self.path("fork")))
            log = stack.enter_context(open(self.path("err"), "wb"))
            null = stack.enter_context(open("/dev/null", "rb"))
            ram = create_ram(RAM_MIB << 20)
            stack.callback(os.close, ram)
            env = environment(library(), ram_fd=3, control_fd=4, owner_uid=os.geteuid())
            fds = (null.fileno(), log.fileno(), log.fileno(), ram, control.fileno())
            yield ForkRequest(tuple(self.argv(3, "-S", "-incoming", "defer")), env, fds, self.process_name)

    def monitor(self, timeout_s: float = QUIET_S) -> Monitor:
        """A session of the test's own, beside the helper's."""
        deadline = time.monotonic() + timeout_s
        while not self.path("qmp").exists():
            assert time.monotonic() < deadline, self.path("err").read_text()
            time.sleep(0.005)
        return Monitor(str(self.path("qmp")), deadline=deadline)

    def status(self) -> str:
        with self.monitor() as monitor:
            return str(monitor.call("query-status")["status"])

    def ticks(self) -> list[str]:
        try:
            return [
                line for line in self.path("log").read_text(errors="replace").splitlines() if line.startswith("tick")
            ]
        except FileNotFoundError:
            return []

    def wait_ticks(self, more: int = 3, timeout_s: float = QUIET_S) -> None:
        """The guest runs: it prints `more` lines from now on; and it never printed a wrong sum."""
        seen, deadline = len(self.ticks()), time.monotonic() + timeout_s
        while len(self.ticks()) < seen + more + 1:
            gone = self.process is not None and self.process.poll() is not None
            alive = not gone and time.monotonic() < deadline
            assert alive, (self.name, self.ticks()[-3:], self.path("err").read_text())
            time.sleep(0.02)
        assert not [line for line in self.ticks()[:-1] if not line.endswith("OK")]

    def add_overlay(self, active: str) -> SnapshotStep:
        """An overlay for the node `active`, added and ready."""
        self.overlays += 1
        node = f"{self.name}-overlay{self.overlays}"
        file = self.directory / f"{node}.qcow2"
        base = ["-b", str(self.disks["base"]), "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", *base, file, "64M"], check=True, timeout=20)
        with self.monitor() as monitor:
            monitor.call("blockdev-add", **node_options(node, file), backing=None)
        return SnapshotStep(active, node)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def node_options(node: str, file: Path) -> dict[str, Any]:
    return {"driver": "qcow2", "node-name": node, "file": {"driver": "file", "filename": str(file)}}


Hook = Callable[[], None]


class Wire:
    """Stands between the helper and QEMU's monitor; `before` and `after` are called once when a command passes."""

    def __init__(self, machine: Machine) -> None:
        self.before: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}
        self._machine = machine
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(machine.path("stun")))
        self._listener.listen(8)
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(QUIET_S)
        for connection in [self._listener, *self._connections]:
            connection.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._connections.append(client)
                qemu = socket.socket(socket.AF_UNIX)
                self._connections.append(qemu)
                try:
                    qemu.connect(str(self._machine.path("real")))
                except OSError:
                    client.close()
                    continue
                self._start(self._copy_commands, client, qemu)
                self._start(self._copy_answers, qemu, client)

    def _copy_commands(self, client: socket.socket, qemu: socket.socket) -> None:
        buffer, fds = b"", array.array("i")
        with contextlib.suppress(OSError):
            while True:
                data, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(64))
                if not data:
                    break
                for _, _, payload in ancillary:
                    fds.frombytes(payload)
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._pass(qemu, line + b"\n", fds)
        self._cut(client, qemu)

    def _pass(self, qemu: socket.socket, line: bytes, fds: array.array[int]) -> None:
        command = json.loads(line)["execute"]
        self.before.pop(command, lambda: None)()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        qemu.sendmsg([line], rights)
        for fd in fds:
            os.close(fd)
        del fds[:]
        self.after.pop(command, lambda: None)()

    def _copy_answers(self, qemu: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := qemu.recv(65536):
                client.sendall(data)
        self._cut(client, qemu)

    @staticmethod
    def _cut(*sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def plan(machine: Machine, state_fd: int, **changes: Any) -> StunPlan:
    given: dict[str, Any] = {"qmp_path": str(machine.path("stun")), "fork_path": str(machine.path("fork"))}
    return StunPlan(**{**given, "state_fd": state_fd, "bound_ms": 20_000.0, **changes})
