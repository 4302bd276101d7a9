"""Whether the daemon's inventory, the soak's own memory, and the machine say the same."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ramet.machine.paths import StatePaths
from ramet.model.machine import VmState
from ramet.model.views import VmView
from ramet.soak import census
from ramet.soak.stage import Stage
from ramet.soak.world import World

PATIENCE_S = 30.0
_ON = (VmState.RUNNING, VmState.PAUSED, VmState.FROZEN)


def untrue(stage: Stage, world: World) -> list[str]:
    """What does not agree between inventory, memory and processes, while others may still come and go (pools)."""
    views = {vm.name: vm for vm in stage.client.list_vms()}
    problems = []
    for name in sorted(views.keys() | world.guests.keys()):
        view, guest = views.get(name), world.guests.get(name)
        found, wanted = (view.state.value if view else "not there"), (guest.state.value if guest else "not there")
        if found != wanted:
            problems.append(f"{name} is {found}, and should be {wanted}")
    return problems + [problem for view in views.values() for problem in _process(view)]


def _process(view: VmView) -> list[str]:
    if view.state in _ON and (view.pid is None or not _lives(view.pid)):
        return [f"{view.name} is {view.state.value} and has no process"]
    if view.state not in _ON and view.pid is not None:
        return [f"{view.name} is {view.state.value} and has the process {view.pid}"]
    return []


def _lives(pid: int) -> bool:
    """Not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def without_process(view: VmView) -> bool:
    """It is on by its record, and its process has gone: that is about to be noticed."""
    return view.state in _ON and bool(_process(view))


def strays(stage: Stage, vm_ids: Iterable[str]) -> list[str]:
    """What belongs to nobody, on a host without frozen VMs and pools; waits a little for what is just going."""
    problems: list[str] = []

    def clean() -> bool:
        problems[:] = _strays(stage, vm_ids)
        return not problems

    with contextlib.suppress(Exception):
        stage.until(clean, "nothing is left", PATIENCE_S)
    return problems


def _strays(stage: Stage, vm_ids: Iterable[str]) -> list[str]:
    views = stage.client.list_vms()
    on = {view.id for view in views if view.state in _ON}
    pids = {view.pid for view in views if view.pid is not None}
    paths = StatePaths(stage.state_dir)
    layers = {layer.id for view in views for disk in view.disks for layer in disk.chain}
    running = {path.name for path in paths.run.iterdir() if path.is_dir()} - {paths.native.name}
    groups = {path.name.removeprefix("vm-") for path in census.control_groups(vm_ids) if path.name.startswith("vm-")}
    return [
        *differ("processes", census.with_library(stage), pids),
        *differ("run folders", running, on),
        *differ("VM folders", {path.name for path in (paths.root / "vms").iterdir()}, {view.id for view in views}),
        *differ("layers", {path.stem for path in paths.layers.glob("*.qcow2")}, layers),
        *differ("moments", {path.name for path in (paths.root / "moments").iterdir()}, set()),
        *(differ("control groups", groups, on) if groups else []),
    ]


def differ(what: str, found: set[str] | set[int], wanted: set[str] | set[int]) -> list[str]:
    if found == wanted:
        return []
    return [f"{what}: too many {sorted(found - wanted)}, missing {sorted(wanted - found)}"]


def log_problems(log: Path, since: int) -> tuple[list[str], int]:
    """Bugs that the daemon's log tells of from byte `since` on, and the byte where it ends. It may have been cut."""
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(since if since <= size else 0)
        lines = file.read().decode(errors="replace").splitlines()
    bugs = Counter(bug for line in lines if (bug := _bug(line)) is not None)
    return [f"the daemon's log has a bug: {bug} ({count} times)" for bug, count in bugs.items()], size


def _bug(line: str) -> str | None:
    """What failed unexpectedly, of a line of the log; what it warns of is no bug."""
    if not line.startswith("{"):
        return line[:300]  # nobody's words: an interpreter's, or a library's
    try:
        entry = json.loads(line)
    except ValueError:
        return line[:300]
    if entry.get("level") not in ("error", "critical") or "exception" not in entry:
        return None
    return f"{entry.get('event', '').strip()}: {entry['exception'].strip().splitlines()[-1][:300]}"
