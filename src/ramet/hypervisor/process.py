"""QEMU processes: launched, forked or found again, watched by a pidfd until they end, and reaped when they are ours."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import re
import resource
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ramet.errors import DeadlineError, PrivilegeError
from ramet.hypervisor.plan import QEMU_LOG, LaunchPlan
from ramet.model.machine import Accelerator, Process

DEFAULT_USER = "ramet-qemu"

_START_TICKS_FIELD = 22
_LOG_TAIL_BYTES = 16384
_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT[0-9:.]+Z\s+")
_PROGRAM = re.compile(r"^(/\S*/)?qemu-system-\S+:\s+")


@dataclass(frozen=True, slots=True)
class QemuUser:
    """The unprivileged user that QEMU runs as."""

    name: str
    uid: int
    gid: int


def find_user(name: str = DEFAULT_USER) -> QemuUser | None:
    """That user, when this process can become it: only root can. None otherwise."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return QemuUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended. Both None: it was not our child, so the kernel does not tell us."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal.Signals(self.signal).name}"
        return f"exit code {self.code}" if self.code is not None else "ended"


class QemuProcess:
    """One QEMU, held by a pidfd, which cannot come to mean another process.

    It is watched from the start, and reaped when it ends if it is our child, whether or not anybody waits. `close`
    lets go of it without ending it; a running VM outlives the daemon. Needs a running event loop.
    """

    def __init__(self, pid: int, pidfd: int, start_ticks: int, *, log: Path | None = None, log_offset: int = 0) -> None:
        """Takes ownership of `pidfd`. Use `launch`, `from_fork` or `adopt`."""
        self.pid = pid
        self.start_ticks = start_ticks
        self.exit_status: ExitStatus | None = None
        self._pidfd = pidfd
        self._log = log
        self._log_offset = log_offset
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_end)

    @classmethod
    async def launch(cls, plan: LaunchPlan, user: QemuUser | None = None) -> Self:
        """Start QEMU as planned and close the plan: QEMU has the descriptors now, or never will.

        As `user`, with the group of /dev/kvm, when one is given; in a session of its own, so that a Ctrl-C meant for
        the daemon does not end VMs. Raises OSError when the program cannot be started. That it started says little:
        connect to its monitor, and on failure ask `exit_reason`. Raises PrivilegeError when that user may not read
        the library that is to be preloaded: the loader would go on without it, and the VM could never be cloned.
        """
        log = plan.log_dir / QEMU_LOG
        offset = log.stat().st_size if log.exists() else 0
        try:
            _check_preload(plan, user)
            pid = await asyncio.to_thread(_spawn, plan, user)
        finally:
            plan.close()
        return cls(pid, os.pidfd_open(pid), _start_ticks(pid), log=log, log_offset=offset)

    @classmethod
    def from_fork(cls, pid: int, pidfd: int, *, log_dir: Path | None = None) -> Self:
        """The child of a fork; takes ownership of `pidfd`. Raises ProcessLookupError when it has already ended."""
        try:
            ticks = _start_ticks(pid)
        except OSError as exc:
            os.close(pidfd)
            raise ProcessLookupError(f"process {pid} has already ended") from exc
        return cls(pid, pidfd, ticks, log=log_dir / QEMU_LOG if log_dir else None)

    @classmethod
    def adopt(cls, record: Process, *, log_dir: Path | None = None) -> Self | None:
        """The process that a former daemon recorded, or None when it has ended.

        The start time is read after the pidfd was opened: only then is it certain whose it is. Ask its monitor for its
        UUID before trusting it further.
        """
        if record.boot_id != boot_id():
            return None
        try:
            pidfd = os.pidfd_open(record.pid)
        except ProcessLookupError:
            return None
        try:
            same = _start_ticks(record.pid) == record.start_ticks and not _is_zombie(record.pid)
        except OSError:
            same = False
        if not same:
            _reap(pidfd)
            os.close(pidfd)
            return None
        return cls(record.pid, pidfd, record.start_ticks, log=log_dir / QEMU_LOG if log_dir else None)

    # -- the end ---------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self.exit_status is None

    async def wait_exit(self, timeout_s: float) -> ExitStatus:
        """Wait until it has ended. Raises DeadlineError."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError as exc:
            raise DeadlineError(f"QEMU (process {self.pid}) did not end within {timeout_s:g} s.") from exc
        assert self.exit_status is not None
        return self.exit_status

    def terminate(self) -> None:
        """SIGTERM: QEMU flushes its disks and ends. The guest does not notice."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def end(self, grace_s: float = 5.0, timeout_s: float = 30.0) -> ExitStatus:
        """SIGTERM, then SIGKILL, then gone. A process in the middle of a disk write can take its time."""
        self.terminate()
        with suppress(DeadlineError):
            return await self.wait_exit(grace_s)
        self.kill()
        return await self.wait_exit(timeout_s)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running and self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.exit_status = _reap(self._pidfd)
        self._ended.set()

    def close(self) -> None:
        """Let go of it: nothing is signalled, and a child that ends later is the next daemon's, or init's, to reap."""
        if self._pidfd < 0:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1

    def exit_reason(self) -> str:
        """Why it ended, in a few words: QEMU's first complaint since its start, else how it ended."""
        complaint = _first_complaint(self._log, self._log_offset) if self._log is not None else None
        return complaint or str(self.exit_status or "no reason is known")

    # -- for the record --------------------------------------------------------------------------------------------

    def record(self, accelerator: Accelerator, qemu_version: str, qemu_build: str, *, launched: bool) -> Process:
        """What a later daemon needs to find it again."""
        return Process(
            pid=self.pid,
            start_ticks=self.start_ticks,
            boot_id=boot_id(),
            accelerator=accelerator,
            qemu_version=qemu_version,
            qemu_build=qemu_build,
            launched=launched,
        )

    def set_oom_score(self, score: int) -> str | None:
        """-1000 (never chosen by the OOM killer) to 1000 (first). Returns why not, if so: lowering takes privilege."""
        try:
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(str(score))
        except OSError as exc:
            return f"the OOM score of process {self.pid} cannot be set: {exc.strerror}"
        return None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _spawn(plan: LaunchPlan, user: QemuUser | None) -> int:
    """Start it; blocking. Returns the pid of our child, which the caller has to reap."""
    credentials = {}
    if user is not None and user.uid != os.geteuid():
        credentials = {"user": user.uid, "group": user.gid, "extra_groups": kvm_groups()}
    with plan.stdio() as (stdin, stdout, stderr):
        child = subprocess.Popen(
            plan.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=plan.env,
            pass_fds=plan.table.fds,
            start_new_session=True,
            umask=0o077,
            cwd="/",
            **credentials,  # type: ignore[call-overload]
        )
    pid = int(child.pid)
    # The pidfd watches it from here on: without this, Popen's finaliser would wait for it too.
    child.returncode = 0
    with suppress(OSError):
        # A core would hold the guest's memory.
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    return pid


def _check_preload(plan: LaunchPlan, user: QemuUser | None) -> None:
    preload = plan.env.get("LD_PRELOAD")
    if preload is None or user is None:
        return
    path = Path(preload)
    for place, wanted in ((path, 0o4), *((parent, 0o1) for parent in path.parents)):
        status = place.stat()
        shift = 6 if status.st_uid == user.uid else 3 if status.st_gid == user.gid else 0
        if not status.st_mode >> shift & wanted:
            raise PrivilegeError(f"The user {user.name} may not read {path}.", hint=f"Open {place} to it.")


def kvm_groups(device: Path = Path("/dev/kvm")) -> list[int]:
    """Those that open it, one or none. Never root's: it has the device where there is no udev, and much else."""
    try:
        status = device.stat()
        return [status.st_gid] if status.st_gid != 0 and status.st_mode & 0o060 == 0o060 else []
    except OSError:
        with suppress(KeyError):
            return [grp.getgrnam("kvm").gr_gid]
        return []


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (the state) on: the name before it may hold blanks and parentheses."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def _start_ticks(pid: int) -> int:
    return int(_stat_fields(pid)[_START_TICKS_FIELD - 3])


def _is_zombie(pid: int) -> bool:
    return _stat_fields(pid)[0] in "ZX"


def is_alive(record: Process) -> bool:
    """Whether the process that a daemon recorded still runs, and is that one."""
    try:
        same = record.boot_id == boot_id() and _start_ticks(record.pid) == record.start_ticks
        return same and not _is_zombie(record.pid)
    except OSError:
        return False


def _reap(pidfd: int) -> ExitStatus:
    """The status of an ended child; an empty one when it was not our child (a fork of one that a former daemon
    launched is init's)."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return ExitStatus()
    if result is None:
        return ExitStatus()
    if result.si_code == os.CLD_EXITED:
        return ExitStatus(code=result.si_status)
    return ExitStatus(signal=result.si_status)


def _first_complaint(log: Path, offset: int) -> str | None:
    """The first line that QEMU wrote to its log since `offset` and that is not merely a warning or a hint."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(offset, size), size - _LOG_TAIL_BYTES))
            lines = file.read(_LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return None
    stripped = (_PROGRAM.sub("", _TIMESTAMP.sub("", line)).strip() for line in lines)
    return next((line for line in stripped if line and not line.startswith(("warning:", "info:"))), None)
