"""Limits by control groups: a group per lineage, in it a group per VM. Best effort, with the reason where it fails.

Memory is limited per lineage only: a page stays charged to the group that touched it first, and the copies that a
source makes after a clone are charged to the source: a tight limit on one VM would kill it for its clones. The groups
stand beside the daemon's own, because systemd could not start a service again in a group that has children.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("cpu", "pids", "memory")

_PERIOD_US = 100_000
_MIN_QUOTA_US = 1_000
_WEIGHT, _MAX_WEIGHT = 100, 10_000
_SHARES, _MAX_SHARES = 1024, 262_144
"""Of one task, and the most the kernel takes: cpu.weight of v2, cpu.shares of v1."""
_UNIFIED = ""
"""Stands for the one hierarchy of cgroup v2, where /proc/self/cgroup names no controller."""


@dataclass(frozen=True, slots=True)
class CgroupHost:
    """What this host offers. `bases`: by controller, the directory that holds our groups, and whether it is v2."""

    version: str
    """'v2', 'v1', 'hybrid' or 'none'."""
    bases: dict[str, tuple[Path, bool]]
    problems: tuple[str, ...] = ()
    """Why what is missing is missing, one sentence a controller."""

    def group(self, lineage_id: str, vm_id: str) -> VmGroup:
        return VmGroup(self, lineage_id, vm_id)

    def vms(self) -> set[str]:
        """Ids of the VMs that have a group, with or without processes in it."""
        bases = {base for base, _ in self.bases.values()}
        return {group.name.removeprefix("vm-") for base in bases for group in base.glob("lineage-*/vm-*")}


class VmGroup:
    """The group of one VM. Methods return None, or the reason why a limit could not be set; they raise nothing."""

    def __init__(self, host: CgroupHost, lineage_id: str, vm_id: str) -> None:
        self._host = host
        self._lineage_id = lineage_id
        self._vm_id = vm_id

    def _lineage(self, controller: str) -> tuple[Path, bool] | None:
        base = self._host.bases.get(controller)
        return None if base is None else (base[0] / f"lineage-{self._lineage_id}", base[1])

    def _directories(self) -> Iterator[Path]:
        """The VM's directories, one for each hierarchy."""
        found = (self._lineage(controller) for controller in CONTROLLERS)
        yield from dict.fromkeys(lineage[0] / f"vm-{self._vm_id}" for lineage in found if lineage is not None)

    def create(self) -> str | None:
        """Make the groups, those of the lineage too; harmless when they are there."""
        try:
            for directory in self._directories():
                directory.mkdir(parents=True, exist_ok=True)
            for controller in CONTROLLERS:
                lineage = self._lineage(controller)
                if lineage is not None and lineage[1]:
                    _enable(lineage[0], [controller])
        except OSError as exc:
            return _reason("the groups of the VM cannot be made", exc)
        self._weigh()
        return None

    def _weigh(self) -> None:
        """Give each VM the same share of its host, whatever lineage it is of, and all of them enough.

        A group weighs as much as one task unless it is told otherwise. cgroup v1 sets tasks of the top beside groups,
        so all VMs together would get what one busy shell gets, and a stun would wait its turn; with a share of each VM
        many of them would leave nothing to anybody else. In v2 our top has the weight of systemd's slices, as is the
        custom of the field.
        """
        lineage = self._lineage("cpu")
        if lineage is None:
            return
        directory, is_v2 = lineage
        count = max(1, _vms_in(directory))
        if is_v2:
            _write(directory / "cpu.weight", str(min(_MAX_WEIGHT, count * _WEIGHT)))
            return
        _write(directory / "cpu.shares", str(min(_MAX_SHARES, count * _SHARES)))
        _write(directory.parent / "cpu.shares", str(min(_MAX_SHARES, 2 * (os.cpu_count() or 1) * _SHARES)))

    def add(self, pid: int) -> str | None:
        """Move a process, all its threads, into the VM's group. Children that it forks are born there."""
        for directory in self._directories():
            problem = _write(directory / "cgroup.procs", str(pid))
            if problem is not None:
                return problem
        return None

    def set_cpu_limit(self, percent: int | None) -> str | None:
        """Percent of one processor: 150 is one and a half; None lifts the limit."""
        place = self._lineage("cpu")
        if place is None:
            return self._missing("cpu")
        directory = place[0] / f"vm-{self._vm_id}"
        quota = None if percent is None else max(_MIN_QUOTA_US, percent * _PERIOD_US // 100)
        if place[1]:
            return _write(directory / "cpu.max", f"{'max' if quota is None else quota} {_PERIOD_US}")
        problem = _write(directory / "cpu.cfs_period_us", str(_PERIOD_US))
        return problem or _write(directory / "cpu.cfs_quota_us", str(-1 if quota is None else quota))

    def set_pids_limit(self, count: int) -> str | None:
        """How many processes and threads the VM may have: what a QEMU that was broken into can start."""
        place = self._lineage("pids")
        if place is None:
            return self._missing("pids")
        return _write(place[0] / f"vm-{self._vm_id}" / "pids.max", str(count))

    def set_lineage_memory_limit(self, limit_bytes: int | None) -> str | None:
        """A hard limit on the memory of the whole family; None lifts it."""
        place = self._lineage("memory")
        if place is None:
            return self._missing("memory")
        if place[1]:
            return _write(place[0] / "memory.max", "max" if limit_bytes is None else str(limit_bytes))
        return _write(place[0] / "memory.limit_in_bytes", str(-1 if limit_bytes is None else limit_bytes))

    def remove(self) -> str | None:
        """Remove the VM's group when its processes have ended, and its lineage's with the last VM."""
        problems = [_remove(directory) for directory in self._directories()]
        self._weigh()
        return next((problem for problem in problems if problem is not None), None)

    def _missing(self, controller: str) -> str:
        reasons = (problem for problem in self._host.problems if problem.startswith(f"{controller}:"))
        return next(reasons, f"{controller}: this host has no such control group")


def detect(
    name: str = "ramet",
    *,
    mounts: Path = Path("/proc/self/mounts"),
    own: Path = Path("/proc/self/cgroup"),
) -> CgroupHost:
    """Find for each controller a directory that may hold our groups: `name` at the top (for root), else under this
    process's own group (where it was delegated to it). Changes nothing but the making of that directory."""
    hierarchies = _hierarchies(mounts)
    if not hierarchies:
        return CgroupHost("none", {}, tuple(f"{c}: control groups are not mounted" for c in CONTROLLERS))
    own_paths = _own_paths(own)
    bases: dict[str, tuple[Path, bool]] = {}
    problems: list[str] = []
    for controller in CONTROLLERS:
        found = _base(controller, name, hierarchies, own_paths)
        if isinstance(found, str):
            problems.append(f"{controller}: {found}")
        else:
            bases[controller] = found
    return CgroupHost(_version(hierarchies), bases, tuple(problems))


def _hierarchies(mounts: Path) -> dict[str, Path]:
    """Mount point of each v1 controller, and of v2 under `_UNIFIED`."""
    found: dict[str, Path] = {}
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            fields = line.split()
            if len(fields) < 4:
                continue
            if fields[2] == "cgroup2":
                found.setdefault(_UNIFIED, Path(fields[1]))
            elif fields[2] == "cgroup":
                for option in fields[3].split(","):
                    if option in CONTROLLERS:
                        found.setdefault(option, Path(fields[1]))
    return found


def _own_paths(own: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _number, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                found[controller] = path.lstrip("/")
    return found


def _version(hierarchies: dict[str, Path]) -> str:
    if _UNIFIED not in hierarchies:
        return "v1"
    return "hybrid" if len(hierarchies) > 1 else "v2"


def _base(
    controller: str, name: str, hierarchies: dict[str, Path], own_paths: dict[str, str]
) -> tuple[Path, bool] | str:
    """A directory of ours that has the controller, and whether it is v2; or the reason why there is none."""
    is_v2 = controller not in hierarchies
    if is_v2 and _UNIFIED not in hierarchies:
        return "this host has no such control group"
    top = hierarchies[_UNIFIED if is_v2 else controller]
    places = dict.fromkeys((top, top / own_paths.get(_UNIFIED if is_v2 else controller, "")))
    reason = "no place for our groups"
    for place in places:
        try:
            if is_v2:
                if controller not in (place / "cgroup.controllers").read_text().split():
                    reason = f"{place} has no such controller"
                    continue
                if place != top:
                    _step_aside(place)
                _enable(place, [controller])
            directory = place / name
            directory.mkdir(exist_ok=True)
            if is_v2:
                _enable(directory, [controller])
        except OSError as exc:
            reason = f"{place} is not ours to divide ({exc.strerror}): run as root, or delegate it (Delegate=yes)"
            continue
        if os.access(directory / "cgroup.procs", os.W_OK):
            return directory, is_v2
    return reason


def _step_aside(place: Path) -> None:
    """A v2 group with controllers for its children may hold no process itself: those in it, we among them, move to a
    child of it."""
    pids = (place / "cgroup.procs").read_text().split()
    if not pids:
        return
    leaf = place / "daemon"
    leaf.mkdir(exist_ok=True)
    for pid in pids:
        (leaf / "cgroup.procs").write_text(pid)


def _enable(directory: Path, controllers: list[str]) -> None:
    present = (directory / "cgroup.subtree_control").read_text().split()
    for controller in controllers:
        if controller not in present:
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")


def _vms_in(lineage: Path) -> int:
    with suppress(OSError):
        return sum(name.startswith("vm-") for name in os.listdir(lineage))
    return 0


def _remove(directory: Path) -> str | None:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return None
    except OSError as exc:
        return _reason(f"{directory} cannot be removed", exc)
    with suppress(OSError):
        directory.parent.rmdir()
    return None


def _write(path: Path, text: str) -> str | None:
    try:
        path.write_text(text)
    except OSError as exc:
        return _reason(f"{path} cannot be set to {text}", exc)
    return None


def _reason(what: str, exc: OSError) -> str:
    return f"{what}: {exc.strerror}"
