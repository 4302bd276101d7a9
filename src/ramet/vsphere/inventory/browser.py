"""DatastoreBrowser: the files of VMs and images in the state folder, by name and size.

What else lies in that folder (keys, sockets, the inventory) is nobody's to list from outside.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ramet.vsphere import ids
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.inventory.shape import utc
from ramet.vsphere.tasks.desk import Tasks
from ramet.vsphere.types import vim

_SHOWN = ("images", "layers", "vms")
_MOST_FILES = 20_000
Kinds = vim.host.DatastoreBrowser
_KINDS = {".qcow2": Kinds.VmDiskInfo, ".iso": Kinds.IsoImageInfo, ".log": Kinds.VmLogInfo}


class DatastoreBrowser(Mo):
    wire = vim.host.DatastoreBrowser

    @prop("datastore")
    def get_datastores(self) -> list[Any]:
        return [self.world.ref(ids.DATASTORE)]

    @prop("supportedType")
    def get_supported_types(self) -> list[Any]:
        return [Kinds.VmDiskQuery(), Kinds.IsoImageQuery(), Kinds.VmLogQuery(), Kinds.FolderQuery()]

    @operation("SearchDatastore_Task", privilege="Datastore.Browse")
    async def search(self, call: Call, datastorePath: str, searchSpec: Any = None) -> Any:
        return await self._search(call, "SearchDatastore_Task", datastorePath, searchSpec, deep=False)

    @operation("SearchDatastoreSubFolders_Task", privilege="Datastore.Browse")
    async def search_deep(self, call: Call, datastorePath: str, searchSpec: Any = None) -> Any:
        return await self._search(call, "SearchDatastoreSubFolders_Task", datastorePath, searchSpec, deep=True)

    async def _search(self, call: Call, name: str, path: str, spec: Any, *, deep: bool) -> Any:
        inner = inside(path)
        root = Path(self.world.host.settings.state_dir)
        found: list[Any] = []

        async def work(_: Any) -> None:
            found.extend(await asyncio.to_thread(_results, root, inner, spec or Kinds.SearchSpec(), deep))
            for one in found:
                one.datastore = self.world.ref(ids.DATASTORE)

        async def result(_: Any) -> Any:
            return Kinds.SearchResults.Array(found) if deep else found[0]

        store = self.world.find(ids.DATASTORE)
        return await self.world.part(Tasks).run_work(call, name, store, work, result=result)


def inside(path: str) -> PurePosixPath:
    """'[ramet] vms/1' -> vms/1. InvalidDatastorePath for what is elsewhere."""
    label, closed, rest = path.strip().partition("]")
    inner = PurePosixPath(rest.strip().lstrip("/"))
    named = label.removeprefix("[") == ids.DATASTORE_NAME and closed
    if not named or ".." in inner.parts or "\0" in path:
        raise vim.fault.InvalidDatastorePath(
            datastorePath=path, msg=f"{path!r} is no path like '[{ids.DATASTORE_NAME}] vms'."
        )
    return inner


def _results(root: Path, inner: PurePosixPath, spec: Any, deep: bool) -> list[Any]:
    """Blocking. A folder that is not there, or not shown, is FileNotFound."""
    folder = root / inner
    shown = not inner.parts or inner.parts[0] in _SHOWN
    if not shown or folder.is_symlink() or not folder.is_dir():
        raise vim.fault.FileNotFound(file=f"[{ids.DATASTORE_NAME}] {inner}", msg=f"There is no folder {str(inner)!r}.")
    found = []
    left = _MOST_FILES
    for one in _folders(root, inner) if deep else [inner]:
        files = _files(root, one, spec)[:left]
        left -= len(files)
        name = "" if str(one) == "." else f"{one}/"
        found.append(Kinds.SearchResults(folderPath=f"[{ids.DATASTORE_NAME}] {name}", file=files))
    return found


def _entries(root: Path, inner: PurePosixPath) -> list[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(root / inner), key=lambda entry: entry.name)
    except OSError:
        return []
    return [one for one in entries if inner.parts or one.name in _SHOWN]


def _folders(root: Path, inner: PurePosixPath) -> Iterator[PurePosixPath]:
    yield inner
    for entry in _entries(root, inner):
        if entry.is_dir(follow_symlinks=False):
            yield from _folders(root, inner / entry.name)


def _files(root: Path, inner: PurePosixPath, spec: Any) -> list[Any]:
    patterns = list(spec.matchPattern) or ["*"]
    fold = str.lower if spec.searchCaseInsensitive else str
    wanted = tuple(type(query).__name__.rpartition(".")[2].removesuffix("Query") for query in spec.query)
    found = []
    for entry in _entries(root, inner):
        if any(fnmatchcase(fold(entry.name), fold(pattern)) for pattern in patterns):
            info = _info(entry, spec.details)
            kind = type(info).__name__.rpartition(".")[2].removesuffix("Info")
            if info is not None and (not wanted or kind in wanted):
                found.append(info)
    return found


def _info(entry: os.DirEntry[str], details: Any) -> Any:
    """None for one that went meanwhile."""
    is_folder = entry.is_dir(follow_symlinks=False)
    kind = Kinds.FolderInfo if is_folder else _KINDS.get(Path(entry.name).suffix, Kinds.FileInfo)
    info = kind(path=entry.name)
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    if details is not None and details.fileSize:
        info.fileSize = status.st_blocks * 512
    if details is not None and details.modification:
        info.modification = utc(status.st_mtime)
    return info
