"""A damaged inventory, put together again from everything that is whole. Works on the state folder, without a daemon.

    salvage(paths) -> Salvage            # reads, and changes nothing
    repair(state_dir) -> RepairView          # holds the daemon's lock; the damaged files go to damaged-DATE/

Records come from the inventory itself, as far as SQLite can still read it, from their copies (``host.copies``), and
from the copy of the last good start (``inventory.db.bak``): of each the newest that is valid. What refers to something
that is gone is dropped. VMs that run are left alone: the next daemon finds them by their records, as after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from ramet.errors import RametError
from ramet.host.copies import read_copies
from ramet.host.daemon import single_instance
from ramet.host.inventory import Setting
from ramet.host.repair_layers import Layers
from ramet.host.sqlite_store import SCHEMA, SCHEMA_VERSION, backup_path
from ramet.machine.paths import StatePaths
from ramet.model.access import User
from ramet.model.base import Model, explain
from ramet.model.host import Image, JournalEntry, Network, Task
from ramet.model.machine import Moment, Vm
from ramet.model.pool import PoolSpec
from ramet.model.views import RepairView


class Foreign(Model):
    """A record of a surface above this room: whole when it is JSON, and what it says is that one's business."""

    model_config = ConfigDict(frozen=True, extra="allow")


_MODELS: dict[str, type[Model]] = {
    "vm": Vm,
    "image": Image,
    "network": Network,
    "moment": Moment,
    "pool": PoolSpec,
    "setting": Setting,
    "user": User,
    "vsphere": Foreign,
    "journal": JournalEntry,
    "task": Task,
}
_HISTORY = ("journal", "task")
"""Only from an inventory that could be read to its end: an entry that was erased must not be carried out again."""


@dataclass(frozen=True)
class Found:
    """One record, and where it was found."""

    value: dict[str, Any]
    revision: int
    origin: str


@dataclass
class Salvage:
    """What can be put together."""

    records: dict[str, Found] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """Sentences about what cannot be kept."""
    altered: list[str] = field(default_factory=list)
    """Sentences about what is not quite as it was."""
    problem: str | None = None
    """What is wrong with the inventory; None when nothing is."""
    revision: int = 0

    def of(self, kind: str) -> dict[str, Found]:
        """Records of one kind, by their key without it."""
        start = f"{kind}/"
        return {key.removeprefix(start): found for key, found in self.records.items() if key.startswith(start)}

    def drop(self, key: str, why: str) -> None:
        del self.records[key]
        self.lost.append(why)


def salvage(paths: StatePaths) -> Salvage:
    """Read everything there is. Blocking; changes nothing."""
    result = Salvage()
    own, result.problem = _read_database(paths.inventory)
    older, _ = _read_database(backup_path(paths.inventory))
    copies = {key: Found(one.value, one.revision, "copy") for key, one in read_copies(paths.records).items()}
    if result.problem is None and max((f.revision for f in copies.values()), default=0) > _newest(own):
        result.problem = "it has lost its last writes"
    _choose(result, own, copies, older)
    result.revision = max(map(_newest, (own, copies, older)), default=0) + 1
    _check_references(result, Layers(paths))
    return result


def _newest(records: dict[str, Found]) -> int:
    return max((found.revision for found in records.values()), default=0)


def _read_database(path: Path) -> tuple[dict[str, Found], str | None]:
    """What SQLite can read of a file, on a copy of it: reading alone would roll its log. And what is wrong with it."""
    if not path.exists():
        return {}, "it is gone"
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="ramet-repair-") as folder:
        try:
            for suffix in ("", "-wal"):
                part = path.with_name(path.name + suffix)
                if part.exists():
                    shutil.copyfile(part, Path(folder) / f"db{suffix}")
            with contextlib.closing(sqlite3.connect(Path(folder) / "db")) as database:
                problem = _read_rows(database, path.name, found)
        except (sqlite3.Error, OSError, UnicodeDecodeError) as exc:
            problem = str(exc)
    return found, problem


def _read_rows(database: sqlite3.Connection, origin: str, found: dict[str, Found]) -> str | None:
    """Upwards until something cannot be read, then downwards: what lies between is lost."""
    database.text_factory = lambda raw: raw.decode(errors="replace")
    problems: list[str] = []
    for order in ("ASC", "DESC"):
        try:
            rows = database.execute(f"SELECT key, value, revision FROM entries ORDER BY key {order}")
            for key, text, revision in rows:
                problem = _take(found, origin, key, text, revision)
                problems += [problem] if problem else []
        except (sqlite3.Error, UnicodeDecodeError) as exc:  # its own words may be what is damaged
            problems.append(str(exc))
            continue
        break
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA_VERSION:
            problems.append(f"its format is {version}, not {SCHEMA_VERSION}")
        check = database.execute("PRAGMA quick_check").fetchone()[0]
        problems += [check] if check != "ok" else []
    except (sqlite3.Error, UnicodeDecodeError) as exc:  # its own words may be what is damaged
        problems.append(str(exc))
    return problems[0].splitlines()[0] if problems else None


def _take(found: dict[str, Found], origin: str, key: object, text: object, revision: object) -> str | None:
    """Keep a row that is a record; else say what it is."""
    try:
        value = json.loads(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        return f"the record {key!r:.80} is not JSON"
    if not isinstance(key, str) or not isinstance(value, dict) or not isinstance(revision, int):
        return f"the record {key!r:.80} is none"
    found[key] = Found(value, revision, origin)
    return None


def _choose(result: Salvage, own: dict[str, Found], copies: dict[str, Found], older: dict[str, Found]) -> None:
    """Of each record the newest that is valid. In an inventory that is whole, what is missing was deleted."""
    whole = result.problem is None
    keys = own.keys() if whole else own.keys() | copies.keys() | older.keys()
    for key in sorted(keys):
        kind = key.partition("/")[0]
        if kind not in _MODELS or (kind in _HISTORY and not whole):
            continue
        candidates = [source[key] for source in (own, copies, older) if key in source]
        valid = [one for one in candidates if _explain(kind, one.value) is None]
        if valid:
            result.records[key] = max(valid, key=lambda one: one.revision)
        if not valid or candidates[0] not in valid:
            why = _explain(kind, candidates[0].value)
            result.problem = result.problem or f"the record {key} is not valid: {why}"
        if not valid and kind not in _HISTORY:
            result.lost.append(f"The {kind} {_title(key, candidates[0])}: its record is not valid ({why}).")


def _explain(kind: str, value: dict[str, Any]) -> str | None:
    """Why this is no record of its kind; None when it is one."""
    try:
        _MODELS[kind].model_validate(value)
    except ValidationError as exc:
        return explain(exc)
    except (RametError, ValueError, TypeError) as exc:
        return str(exc)
    return None


def _title(key: str, found: Found) -> str:
    machine = found.value.get("machine")
    name = machine.get("name") if isinstance(machine, dict) else None
    return repr(name) if isinstance(name, str) else key.partition("/")[2]


# -- what belongs together ---------------------------------------------------------------------------------------------


def _check_references(result: Salvage, layers: Layers) -> None:
    """Drop what refers to something that is gone, and settle what two claim."""
    _check_vms(result, layers)
    _keep_copies(result)
    _check_names(result)
    for image_name, found in result.of("image").items():
        image = Image.model_validate(found.value)
        kernels = [path for path in (image.kernel, image.initrd) if path is not None]
        if not all(map(layers.is_whole, image.layers)) or not all(Path(path).exists() for path in kernels):
            result.drop(f"image/{image_name}", f"The image {image_name!r}: its files are gone.")
    vms = result.of("vm")
    for moment_id, found in result.of("moment").items():
        holder = vms.get(str(found.value.get("vm_id")))
        if holder is None or holder.value.get("moment_id") != moment_id:
            del result.records[f"moment/{moment_id}"]
    for vm_id in result.of("pool"):
        if vm_id not in vms:
            del result.records[f"pool/{vm_id}"]


def _check_vms(result: Salvage, layers: Layers) -> None:
    for vm_id, found in result.of("vm").items():
        vm = Vm.model_validate(found.value)
        broken = [disk.id for disk in vm.machine.disks if not layers.is_whole(disk.layer)]
        if broken and not layers.runs(vm):
            result.drop(f"vm/{vm_id}", f"The VM {vm.name!r}: the layers of {', '.join(broken)} are gone.")
            continue
        for disk in vm.machine.disks:
            if layers.is_shared(disk.layer) and not layers.runs(vm):
                result.altered.append(
                    f"{vm.name!r}: its record is older than its {disk.id}, which others have gone on from; it gets a "
                    "layer of its own over what the record names."
                )


def _keep_copies(result: Salvage) -> None:
    """A record that is a little too old may say of a finished copy that it is still being made: the next start would
    remove it."""
    for vm_id, found in result.of("vm").items():
        vm = Vm.model_validate(found.value)
        if vm.provisional:
            kept = vm.changed(provisional=False)
            result.records[f"vm/{vm_id}"] = Found(kept.model_dump(mode="json"), found.revision, found.origin)
            result.altered.append(f"{vm.name!r} ({vm_id}): it was being copied; it is kept, and may lack some changes.")


def _check_names(result: Salvage) -> None:
    """Two VMs of one name, of which one was renamed or removed: the newer record keeps it."""
    taken: set[str] = set()
    vms = sorted(result.of("vm").items(), key=lambda item: -item[1].revision)
    for vm_id, found in vms:
        vm = Vm.model_validate(found.value)
        if not vm.is_shown:
            continue
        if vm.name in taken:
            name = f"{vm.name[:50]}-{vm_id[:6]}"
            result.altered.append(f"{vm.name!r} ({vm_id}) is named {name!r} now: another VM has that name.")
            vm = vm.changed(machine=vm.machine.changed(name=name))
            result.records[f"vm/{vm_id}"] = Found(vm.model_dump(mode="json"), found.revision, found.origin)
        taken.add(vm.name)


# -- writing it --------------------------------------------------------------------------------------------------------


def repair(state_dir: Path) -> RepairView:
    """Put a new inventory in the place of the damaged one. Raises ConflictError while a daemon runs. Blocking."""
    paths = StatePaths(state_dir)
    paths.prepare()
    with single_instance(paths.root):
        found = salvage(paths)
        if found.problem is None:
            return _view(found, None, ())
        aside = paths.root / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        aside.mkdir(mode=0o700)
        layers = Layers(paths)
        _renew(found, layers)
        fresh = paths.inventory.with_name(paths.inventory.name + ".repaired")
        _write_database(fresh, found)
        _put_aside(paths, aside)
        fresh.replace(paths.inventory)
        kept = layers.put_aside(aside / "layers", _used(found))
        return _view(found, aside, kept)


def _renew(found: Salvage, layers: Layers) -> None:
    """A layer that others have gone on from must not be written to again: the VM gets one of its own over it."""
    for vm_id, record in found.of("vm").items():
        vm = Vm.model_validate(record.value)
        if layers.runs(vm):
            continue
        disks = tuple(
            disk.changed(layer=layers.over(vm_id, disk.id, disk.layer)) if layers.is_shared(disk.layer) else disk
            for disk in vm.machine.disks
        )
        if disks != vm.machine.disks:
            vm = vm.changed(machine=vm.machine.changed(disks=disks))
            found.records[f"vm/{vm_id}"] = Found(vm.model_dump(mode="json"), record.revision, record.origin)


def _write_database(path: Path, found: Salvage) -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        database.execute("BEGIN")
        for key, value in _entries(found):
            text = json.dumps(value, separators=(",", ":"), allow_nan=False)
            database.execute("INSERT INTO entries VALUES (?, ?, ?)", (key, text, found.revision))
        database.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (found.revision,))
        database.execute("COMMIT")
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _entries(found: Salvage) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records, and the index of names."""
    for key, record in found.records.items():
        yield key, record.value
    for vm_id, record in found.of("vm").items():
        vm = Vm.model_validate(record.value)
        if vm.is_shown:
            yield f"vm-name/{vm.name}", {"id": vm_id}


def _put_aside(paths: StatePaths, aside: Path) -> None:
    for path in paths.root.glob(paths.inventory.name + "*"):
        if path.suffix != ".repaired":
            path.rename(aside / path.name)


def _used(found: Salvage) -> set[str]:
    """The topmost layers that the new inventory needs."""
    disks = [
        disk for kind in ("vm", "moment") for one in found.of(kind).values() for disk in one.value["machine"]["disks"]
    ]
    images = [layer for one in found.of("image").values() for layer in one.value["layers"]]
    held = [layer for one in found.of("moment").values() for layer in one.value["layers"].values()]
    planned = [layer for one in found.of("journal").values() for layer in one.value["detail"].get("layers", ())]
    return {*(disk["layer"] for disk in disks), *images, *held, *planned}


def _view(found: Salvage, aside: Path | None, layers: tuple[str, ...]) -> RepairView:
    return RepairView(
        problem=found.problem,
        aside=str(aside) if aside else None,
        kept={kind: len(found.of(kind)) for kind in _MODELS if kind not in _HISTORY},
        vms=tuple(sorted(str(one.value["machine"]["name"]) for one in found.of("vm").values())),
        lost=tuple(found.lost),
        altered=tuple(found.altered),
        layers_aside=layers,
    )
