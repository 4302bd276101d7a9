"""GuestProcessManager: programs in guests, started as a user of theirs, looked after, and ended."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ramet.errors import GuestError, RametError
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation
from ramet.vsphere.guest import scripts
from ramet.vsphere.guest.login import Guest, guest_of
from ramet.vsphere.types import vim, vmodl

KEPT_S = 300.0
"""How long an ended program is still told of, as in the original."""
MAX_STARTED = 256
"""Programs remembered of one VM; the oldest that have ended go first."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STAT = re.compile(r"(?P<pid>\d+) \((?P<name>.*)\) \S (?:\S+ ){18}(?P<ticks>\d+) ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Started:
    """A program that was started here."""

    pid: int
    path: str
    command: str
    owner: str
    at: float
    """Unix time, by the host's clock."""
    ended_at: float | None = None
    exit_code: int | None = None


class Programs:
    """What was started in guests, by VM. In memory: after a restart of the daemon only what runs is seen."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, Started]] = {}

    def add(self, vm_id: str, program: Started) -> None:
        known = self._of.setdefault(vm_id, {})
        self._forget_old(vm_id)
        known[program.pid] = program

    def of(self, vm_id: str) -> dict[int, Started]:
        self._forget_old(vm_id)
        return self._of.get(vm_id, {})

    def ended(self, vm_id: str, pid: int, exit_code: int | None) -> None:
        known = self._of.get(vm_id, {})
        if pid in known:
            known[pid] = replace(known[pid], ended_at=time.time(), exit_code=exit_code)

    def _forget_old(self, vm_id: str) -> None:
        known, now = self._of.get(vm_id, {}), time.time()
        over = [pid for pid, one in known.items() if one.ended_at is not None and now - one.ended_at > KEPT_S]
        surplus = sorted(known, key=lambda pid: (known[pid].ended_at is None, known[pid].at))
        for pid in {*over, *surplus[: max(0, len(known) - MAX_STARTED)]}:
            del known[pid]


class ProcessManager(Mo):
    wire = vim.vm.guest.ProcessManager

    @property
    def _programs(self) -> Programs:
        return self.world.part(Programs)

    @operation(
        "StartProgramInGuest", privilege="VirtualMachine.GuestOperations.Execute",
        partial="in guests with a POSIX shell",
    )
    async def start(self, call: Call, vm: Any, auth: Any, spec: Any) -> int:
        """The path is taken as it is, the arguments as a shell would: quotes and redirections mean what they say."""
        guest = guest_of(self.world, vm, auth)
        directory, environment = spec.workingDirectory or "", [_pair(text) for text in spec.envVariables or ()]
        if not spec.programPath:
            raise vmodl.fault.InvalidArgument(invalidProperty="spec.programPath", msg="A program is needed.")
        await guest.run(scripts.PROGRAM, spec.programPath, directory, path=spec.programPath)
        arguments = spec.arguments or ""
        pid = await guest.spawn(scripts.START, spec.programPath, directory, arguments, *environment)
        command = f'"{spec.programPath}" {arguments}'.strip()
        self._programs.add(guest.vm_id, Started(pid, spec.programPath, command, guest.user, time.time()))
        return pid

    @operation(
        "ListProcessesInGuest", privilege="VirtualMachine.GuestOperations.Query",
        partial="ended ones for five minutes, those that were started here",
    )
    async def list_processes(self, call: Call, vm: Any, auth: Any, pids: Sequence[int] = ()) -> list[Any]:
        """Those that run, and those started here that ended in the last five minutes. Unknown pids are left out."""
        guest = guest_of(self.world, vm, auth)
        wanted = " ".join(str(int(pid)) for pid in pids or ())
        output = await guest.run(scripts.PROCESSES, *([wanted] if wanted else ()))
        running = {one.pid: one for one in read_processes(output)}
        await self._look_after(guest)
        known = {pid: _told(one) for pid, one in self._programs.of(guest.vm_id).items()}
        found = {**known, **running, **{pid: one for pid, one in known.items() if one.endTime is not None}}
        return [found[pid] for pid in (pids or sorted(found)) if pid in found]

    async def _look_after(self, guest: Guest) -> None:
        """Ask the agent of each that is not known to have ended: it keeps their ends until it is asked."""
        for pid, program in list(self._programs.of(guest.vm_id).items()):
            if program.ended_at is None:
                try:
                    result = await self.world.host.ended_in_vm(guest.vm_id, pid)
                except GuestError:  # an agent that was started anew knows nothing of it, and nobody knows how it ended
                    self._programs.ended(guest.vm_id, pid, None)
                except (RametError, OSError):
                    continue
                else:
                    if result is not None:
                        self._programs.ended(guest.vm_id, pid, result.exit_code)

    @operation("TerminateProcessInGuest", privilege="VirtualMachine.GuestOperations.Execute")
    async def terminate(self, call: Call, vm: Any, auth: Any, pid: int) -> None:
        guest = guest_of(self.world, vm, auth)
        try:
            await guest.run(scripts.TERMINATE, str(int(pid)))
        except vim.fault.FileFault as fault:
            if "No such process" in (fault.msg or ""):
                raise vim.fault.GuestProcessNotFound(pid=pid, msg=f"There is no process {pid} in the guest.") from fault
            raise

    @operation("ReadEnvironmentVariableInGuest", privilege="VirtualMachine.GuestOperations.Query")
    async def read_environment(self, call: Call, vm: Any, auth: Any, names: Sequence[str] = ()) -> list[str]:
        guest = guest_of(self.world, vm, auth)
        known = [name for name in names or () if _NAME.fullmatch(name)]
        if names and not known:
            return []
        output = await guest.run(scripts.ENVIRONMENT, *known)
        return [line for line in output.decode(errors="replace").splitlines() if "=" in line]


def _pair(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise vmodl.fault.InvalidArgument(
            invalidProperty="spec.envVariables", msg=f"{text[:100]!r} is not of the form NAME=value."
        )
    return text


def _told(program: Started) -> Any:
    return vim.vm.guest.ProcessManager.ProcessInfo(
        name=program.path.rpartition("/")[2],
        pid=program.pid,
        owner=program.owner,
        cmdLine=program.command,
        startTime=datetime.fromtimestamp(program.at, UTC),
        endTime=None if program.ended_at is None else datetime.fromtimestamp(program.ended_at, UTC),
        exitCode=program.exit_code,
    )


def read_processes(output: bytes) -> Iterator[Any]:
    """What the script printed. It is the guest's word: what makes no sense is left out."""
    boot, ticks, users = 0, 100, dict[str, str]()
    uid: str = ""
    stat: re.Match[str] | None = None
    for line in output.decode(errors="replace").split("\n"):
        kind, _, rest = line.partition(" ")
        if kind == "B" and rest.isdigit():
            boot = int(rest[:12])
        elif kind == "T" and rest.isdigit():
            ticks = max(1, int(rest[:6]))
        elif kind == "U":
            number, _, name = rest.partition(" ")
            users.setdefault(number, name)
        elif kind == "P":
            uid, _, text = rest.partition(" ")
            stat = _STAT.match(text)
        elif kind == "C" and stat is not None:
            yield _running(stat, users.get(uid, uid), rest, boot, ticks)
            stat = None


def _running(stat: re.Match[str], owner: str, command: str, boot: int, ticks: int) -> Any:
    at = boot + min(int(stat["ticks"][:18]) / ticks, 1e9)
    name = printable(stat["name"])
    return vim.vm.guest.ProcessManager.ProcessInfo(
        name=name,
        pid=int(stat["pid"][:9]),
        owner=printable(owner),
        cmdLine=printable(command).strip() or f"[{name}]",
        startTime=datetime.fromtimestamp(at, UTC),
    )


def printable(text: str) -> str:
    """XML has no place for most control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:4096])
