"""What a host at rest has of everything that could leak: counted in /proc, in the state folder, and in the kernel."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ramet.hypervisor import cgroup
from ramet.machine.paths import StatePaths
from ramet.network.namespace import in_namespace
from ramet.soak.stage import Stage
from ramet.testing import leaks

TOLERANCE: dict[str, float | None] = {
    "daemon descriptors": 3,
    "daemon threads": 2,
    "daemon memory KiB": 4096,
    "helper processes": 1,
    "helper descriptors": 3,
    "helper threads": 2,
    "helper memory KiB": 4096,
    "VM descriptors": 8,
    "VM threads": 4,
    "VM mappings": 24,
    "VM memory KiB": 24 * 1024,
    "processes": 1,
    "zombies": 0,
    "files": 8,
    "layers": 4,
    "sockets": 1,
    "run folders": 0,
    "VM folders": 0,
    "moments": 0,
    "journal entries": 0,
    "records": 2,
    "inventory KiB": 256,
    "logs KiB": 768,
    "namespaces": 0,
    "taps": 0,
    "links": 0,
    "control groups": 0,
    "mounts": 0,
    "host slab KiB": None,
    "host processes": None,
}
"""How much a series may grow over a run; None for what others on the host change as well."""
_NO_COUNTS = ("KiB",)


def is_count(name: str) -> bool:
    return not name.endswith(_NO_COUNTS)


def life_of(name: str, daemon: str, vm: str) -> str:
    """Whose life a series belongs to: it begins anew with that process."""
    if name.startswith(("daemon", "helper")):
        return daemon
    return vm if name.startswith("VM ") and name != "VM folders" else ""


def take(stage: Stage, vm_pid: int, vm_ids: Iterable[str]) -> dict[str, float]:
    """Every series' value now. `vm_pid` is the QEMU that is watched; `vm_ids` those of all VMs that ever were."""
    own = leaks.processes_of(stage.state_dir)
    parents = _parents()
    helpers = [pid for pid in _below(stage.pid, parents) if not _has_library(pid, stage)]
    found: dict[str, float] = {
        **_of_process("daemon", stage.pid),
        "helper processes": len(helpers),
        **_sums("helper", [_of_process("helper", pid) for pid in helpers]),
        **_of_process("VM", vm_pid),
        "VM mappings": _lines(Path(f"/proc/{vm_pid}/maps")),
        "processes": len(own),
        "zombies": sum(1 for pid, (parent, state) in parents.items() if state == "Z" and parent in {stage.pid, *own}),
        **_of_folder(StatePaths(stage.state_dir)),
        **_of_inventory(StatePaths(stage.state_dir).inventory),
        **_of_kernel(stage, vm_ids),
        "host slab KiB": _field(Path("/proc/meminfo"), "SUnreclaim:"),
        "host processes": len(parents),
    }
    return {name: found[name] for name in TOLERANCE if name in found}


def _of_process(whose: str, pid: int) -> dict[str, float]:
    status = Path(f"/proc/{pid}/status")
    with contextlib.suppress(OSError):
        return {
            f"{whose} descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
            f"{whose} threads": _field(status, "Threads:"),
            f"{whose} memory KiB": _field(status, "RssAnon:"),
        }
    return {}


def _sums(whose: str, many: list[dict[str, float]]) -> dict[str, float]:
    kinds = ("descriptors", "threads", "memory KiB")
    return {f"{whose} {kind}": sum(one.get(f"{whose} {kind}", 0) for one in many) for kind in kinds}


def _parents() -> dict[int, tuple[int, str]]:
    """Of each process on the host: its parent, and its state's letter."""
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
                found[int(directory.name)] = (int(parent), state)
    return found


def _below(pid: int, parents: dict[int, tuple[int, str]]) -> list[int]:
    children = [child for child, (parent, _) in parents.items() if parent == pid]
    return [*children, *(deep for child in children for deep in _below(child, parents))]


def _has_library(pid: int, stage: Stage) -> bool:
    """Whether it is a QEMU, or holds a guest's memory."""
    return pid in with_library(stage, [pid])


def with_library(stage: Stage, pids: Iterable[int] | None = None) -> set[int]:
    """Every process that forks, or was forked: the library is mapped in it."""
    wanted = f"{StatePaths(stage.state_dir).native}/"
    found = set()
    for pid in pids if pids is not None else _parents():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/maps").read_text():
                found.add(pid)
    return found


def _of_folder(paths: StatePaths) -> dict[str, float]:
    every = [path for path in paths.root.rglob("*") if not path.is_dir()]
    logs = [path for path in every if path.suffix in (".log", ".jsonl") or ".log." in path.name]
    return {
        "files": len(every),
        "layers": len(list(paths.layers.iterdir())),
        "sockets": sum(path.is_socket() for path in every),
        "run folders": sum(path.is_dir() for path in paths.run.iterdir()),
        "VM folders": len(list((paths.root / "vms").iterdir())),
        "moments": len(list((paths.root / "moments").iterdir())),
        "logs KiB": sum(_size(path) for path in logs) / 1024,
        "inventory KiB": sum(_size(path) for path in every if path.name.startswith(paths.inventory.name)) / 1024,
    }


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return 0


def _of_inventory(path: Path) -> dict[str, float]:
    """Tasks are left out: they are kept up to a bound, which the size shows."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        kinds = Counter(key.split("/")[0] for (key,) in db.execute("SELECT key FROM entries"))
    return {"journal entries": kinds.pop("journal", 0), "records": kinds.total() - kinds["task"]}


def _of_kernel(stage: Stage, vm_ids: Iterable[str]) -> dict[str, float]:
    names = leaks.namespaces_of(stage.state_dir)
    links = in_namespace(names[0], lambda links: [link.name for link in links.all()]) if names else []
    return {
        "namespaces": len(names),
        "links": len(links),
        "taps": sum(name.startswith("rt-") for name in links),
        "control groups": sum(1 for _ in control_groups(vm_ids)),
        "mounts": len(leaks.mounts_of(stage.state_dir)),
    }


def control_groups(vm_ids: Iterable[str]) -> Iterable[Path]:
    """Those of VMs, and of lineages, that are there: for each of the kernel's hierarchies."""
    for base in dict.fromkeys(base for base, _ in cgroup.detect().bases.values()):
        for vm_id in vm_ids:
            lineage = base / f"lineage-{vm_id}"
            if lineage.is_dir():
                yield lineage
                yield from lineage.glob("vm-*")


def _lines(path: Path) -> int:
    with contextlib.suppress(OSError):
        return len(path.read_text().splitlines())
    return 0


def _field(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
    return 0
