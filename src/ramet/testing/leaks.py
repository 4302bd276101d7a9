"""What a state folder may leave on the machine after its daemon and its VMs have ended: nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ramet.network.namespace import namespace_name


def left_behind(state_dir: Path) -> list[str]:
    """Processes, mounts and the namespaces that belong to `state_dir`, in words."""
    processes = [f"process {pid}: {name}" for pid, name in processes_of(state_dir).items()]
    return [*processes, *mounts_of(state_dir), *(f"namespace {path}" for path in namespaces_of(state_dir))]


def processes_of(state_dir: Path) -> dict[int, str]:
    """Pid -> name, by what is open, mapped or named: a clone's command line alone may be its ancestor's."""
    wanted = str(state_dir) + "/"
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            texts = [(directory / name).read_text(errors="replace") for name in ("maps", "cmdline")]
            text = " ".join(texts).replace("\0", " ")
            opened = [str(link.readlink()) for link in (directory / "fd").iterdir()]
            if int(directory.name) != _self() and (wanted in text or any(path.startswith(wanted) for path in opened)):
                found[int(directory.name)] = (directory / "comm").read_text().strip()
    return found


def _self() -> int:
    return int(Path("/proc/self").readlink().name)


def mounts_of(state_dir: Path) -> list[str]:
    return [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state_dir) in line]


def namespaces_of(state_dir: Path) -> list[Path]:
    """The daemon's own, and those of fences."""
    return sorted(Path("/run/netns").glob(f"{namespace_name(state_dir)}*"))
