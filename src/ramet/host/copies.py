"""A second copy of every record, outside SQLite: one small file each, in ``records/`` of the state folder.

    copies = Copies(store, folder)
    await copies.run()                       # until cancelled: in step with the store, a moment behind it
    read_copies(folder) -> {key: Copied}     # for `ramet doctor --repair`; what is no copy is passed over
    newest_revision(folder) -> int

They are what an inventory that was damaged or lost is put together from; nothing else reads them. Tasks, the journal
and the index of names are not copied: what they say is past, or follows from the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import structlog

from ramet.errors import ConflictError
from ramet.host.store import MAX_VALUE_BYTES, Change, Store

log = structlog.stdlib.get_logger(__name__)

KINDS = ("vm", "image", "network", "moment", "pool", "setting", "user", "vsphere")
BEHIND_S = 0.2
"""How long changes are gathered: a clone's record is written several times within milliseconds."""
_SUFFIX = ".json"


@dataclass(frozen=True)
class Copied:
    """One record, as of a revision of the inventory."""

    value: dict[str, Any]
    revision: int


class Copies:
    """Writes the copies. A full disk, or any other trouble with them, is logged and hinders nobody."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            revision = await self.catch_up()
            with contextlib.suppress(ConflictError):  # fell behind what the store keeps: all of it again
                await self._follow(revision)
                return  # the store was closed

    async def catch_up(self) -> int:
        """Make the folder say what the store says; the revision of which that is true."""
        revision = await self._store.revision()
        entries = [entry for kind in KINDS for entry in await self._store.list(f"{kind}/")]
        changes = [Change(entry.key, entry.value, entry.revision) for entry in entries]
        await asyncio.to_thread(_replace_all, self._folder, changes)
        return revision

    async def _follow(self, revision: int) -> None:
        waiting: dict[str, Change] = {}
        writer: asyncio.Task[None] | None = None
        try:
            async for change in self._store.watch("", revision):
                if change.key.partition("/")[0] in KINDS:
                    waiting[change.key] = change
                    if writer is None or writer.done():
                        writer = asyncio.create_task(self._write_soon(waiting), name="copies of records")
        finally:
            if writer is not None:
                await asyncio.wait([writer])  # a moment, and the last word is written

    async def _write_soon(self, waiting: dict[str, Change]) -> None:
        while waiting:
            await asyncio.sleep(BEHIND_S)
            batch = list(waiting.values())
            waiting.clear()
            await asyncio.to_thread(_apply, self._folder, batch)


def _path(folder: Path, key: str) -> Path:
    kind, _, name = key.partition("/")
    return folder / kind / f"{quote(name, safe='')}{_SUFFIX}"


def _replace_all(folder: Path, changes: Iterable[Change]) -> None:
    """What is right already stays: to write ten thousand files anew takes ten seconds, to read them one."""
    wanted = {_path(folder, change.key): change for change in changes}
    try:
        for kind in KINDS:
            (folder / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (folder / kind).iterdir():
                if path not in wanted:
                    path.unlink()
    except OSError as exc:
        log.warning("the copies of records are not in order", error=str(exc))
    known = read_copies(folder)
    _apply(folder, [change for change in wanted.values() if not _is_copied(change, known.get(change.key))])


def _is_copied(change: Change, copied: Copied | None) -> bool:
    return copied is not None and (copied.revision, copied.value) == (change.revision, change.value)


def _apply(folder: Path, changes: Iterable[Change]) -> None:
    """Not synced: a copy that a loss of power undoes is one that is a little older."""
    for change in changes:
        path = _path(folder, change.key)
        try:
            if change.value is None:
                path.unlink(missing_ok=True)
                continue
            temporary = path.with_suffix(".tmp")
            text = json.dumps({"key": change.key, "revision": change.revision, "value": change.value})
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
            temporary.rename(path)
        except OSError as exc:
            log.warning("a record was not copied", key=change.key, error=str(exc))


def read_copies(folder: Path) -> dict[str, Copied]:
    """Whatever lies there. Blocking."""
    found = {}
    for kind in KINDS:
        for name in _names(folder / kind):
            key = f"{kind}/{unquote(name.removesuffix(_SUFFIX))}"
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                data = json.loads(_read(f"{folder}/{kind}/{name}"))
                if data["key"] == key and isinstance(data["value"], dict):
                    found[key] = Copied(data["value"], int(data["revision"]))
    return found


def _names(folder: Path) -> list[str]:
    """Of the copies in a folder, in order."""
    with contextlib.suppress(OSError):
        return sorted(name for name in os.listdir(folder) if name.endswith(_SUFFIX))
    return []


def _read(path: str) -> bytes:
    """By descriptors: there may be thousands. ValueError for what is too large to be a copy."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size > 2 * MAX_VALUE_BYTES:
            raise ValueError("too large")
        return os.read(fd, size)
    finally:
        os.close(fd)


def newest_revision(folder: Path) -> int:
    """Of the copies; an inventory that is older than they are has lost its last writes."""
    return max((copied.revision for copied in read_copies(folder).values()), default=0)
