"""GuestFileManager: files in guests, as a user of theirs sees them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.objects import Mo, operation
from ramet.vsphere.guest import scripts
from ramet.vsphere.guest.login import Guest, guest_of
from ramet.vsphere.guest.processes import printable
from ramet.vsphere.guest.transfer import MODIFY, QUERY, Transfer, url_of
from ramet.vsphere.machine.tickets import Tickets
from ramet.vsphere.types import vim, vmodl

DEFAULT_RESULTS = 50
TRANSFER_LIFE_S = 600.0
"""From the address to the beginning of the transfer."""
_FIELDS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """One file, as the guest's `stat` says."""

    name: str
    mode: int
    size: int
    modified: int
    accessed: int
    uid: int
    gid: int


class FileManager(Mo):
    wire = vim.vm.guest.FileManager

    @operation("ListFilesInGuest", privilege=QUERY)
    async def list_files(
        self,
        call: Call,
        vm: Any,
        auth: Any,
        filePath: str,
        index: int | None = None,
        maxResults: int | None = None,
        matchPattern: str | None = None,
    ) -> Any:
        """A directory's files, itself and its parent among them, or one file. The pattern is the guest's to match."""
        guest = self._guest(vm, auth, filePath)
        pattern = matchPattern or ""
        output = await guest.run(scripts.LIST, filePath, pattern, path=filePath)
        files, links = read_files(output)
        first, most = max(0, index or 0), DEFAULT_RESULTS if maxResults is None else max(0, maxResults)
        shown = files[first : first + most]
        return vim.vm.guest.FileManager.ListFileInfo(
            files=[_info(one, links.get(one.name)) for one in shown],
            remaining=max(0, len(files) - first - len(shown)),
        )

    @operation("MakeDirectoryInGuest", privilege=MODIFY)
    async def make_directory(
        self, call: Call, vm: Any, auth: Any, directoryPath: str, createParentDirectories: bool
    ) -> None:
        guest = self._guest(vm, auth, directoryPath)
        await guest.run(scripts.MAKE_DIRECTORY, directoryPath, _yes(createParentDirectories), path=directoryPath)

    @operation("DeleteFileInGuest", privilege=MODIFY)
    async def delete_file(self, call: Call, vm: Any, auth: Any, filePath: str) -> None:
        await self._guest(vm, auth, filePath).run(scripts.DELETE_FILE, filePath, path=filePath)

    @operation("DeleteDirectoryInGuest", privilege=MODIFY)
    async def delete_directory(self, call: Call, vm: Any, auth: Any, directoryPath: str, recursive: bool) -> None:
        guest = self._guest(vm, auth, directoryPath)
        await guest.run(scripts.DELETE_DIRECTORY, directoryPath, _yes(recursive), path=directoryPath)

    @operation("MoveFileInGuest", privilege=MODIFY)
    async def move_file(
        self, call: Call, vm: Any, auth: Any, srcFilePath: str, dstFilePath: str, overwrite: bool
    ) -> None:
        guest = self._guest(vm, auth, srcFilePath, dstFilePath)
        how = "overwrite" if overwrite else "keep"
        await guest.run(scripts.MOVE, srcFilePath, dstFilePath, how, path=srcFilePath)

    @operation("MoveDirectoryInGuest", privilege=MODIFY)
    async def move_directory(
        self, call: Call, vm: Any, auth: Any, srcDirectoryPath: str, dstDirectoryPath: str
    ) -> None:
        guest = self._guest(vm, auth, srcDirectoryPath, dstDirectoryPath)
        await guest.run(scripts.MOVE, srcDirectoryPath, dstDirectoryPath, "directory", path=srcDirectoryPath)

    @operation("CreateTemporaryFileInGuest", privilege=MODIFY)
    async def temporary_file(
        self, call: Call, vm: Any, auth: Any, prefix: str, suffix: str, directoryPath: str | None = None
    ) -> str:
        return await self._temporary(vm, auth, prefix, suffix, directoryPath, "file")

    @operation("CreateTemporaryDirectoryInGuest", privilege=MODIFY)
    async def temporary_directory(
        self, call: Call, vm: Any, auth: Any, prefix: str, suffix: str, directoryPath: str | None = None
    ) -> str:
        return await self._temporary(vm, auth, prefix, suffix, directoryPath, "directory")

    async def _temporary(self, vm: Any, auth: Any, prefix: str, suffix: str, directory: str | None, kind: str) -> str:
        for part in (prefix, suffix):
            if "/" in (part or ""):
                raise vmodl.fault.InvalidArgument(invalidProperty="prefix", msg="It must not have a '/' in it.")
        guest = guest_of(self.world, vm, auth)
        output = await guest.run(
            scripts.TEMPORARY, directory or "", prefix or "", suffix or "", kind, path=directory or ""
        )
        return printable(output.decode(errors="replace").strip())

    @operation("ChangeFileAttributesInGuest", privilege=MODIFY, partial="of POSIX")
    async def change_attributes(self, call: Call, vm: Any, auth: Any, guestFilePath: str, fileAttributes: Any) -> None:
        guest = self._guest(vm, auth, guestFilePath)
        await guest.run(scripts.ATTRIBUTES, guestFilePath, *attributes(fileAttributes), path=guestFilePath)

    # -- transfers -------------------------------------------------------------------------------------------------

    @operation("InitiateFileTransferFromGuest", privilege=QUERY)
    async def transfer_from(self, call: Call, vm: Any, auth: Any, guestFilePath: str) -> Any:
        """An address from which the file can be read once, within ten minutes."""
        guest = self._guest(vm, auth, guestFilePath)
        files, _ = read_files(await guest.run(scripts.READABLE, guestFilePath, path=guestFilePath))
        if not files:
            raise vim.fault.FileNotFound(file=guestFilePath, msg="The guest does not say what it is.")
        transfer = Transfer(guest, guestFilePath, size=files[0].size)
        return vim.vm.guest.FileManager.FileTransferInformation(
            attributes=_attributes(files[0], None), size=files[0].size, url=self._issue(call, "download", transfer)
        )

    @operation("InitiateFileTransferToGuest", privilege=MODIFY)
    async def transfer_to(
        self,
        call: Call,
        vm: Any,
        auth: Any,
        guestFilePath: str,
        fileAttributes: Any,
        fileSize: int,
        overwrite: bool,
    ) -> str:
        """An address to which the file can be put once, within ten minutes."""
        guest = self._guest(vm, auth, guestFilePath)
        wanted = attributes(fileAttributes)
        await guest.run(scripts.WRITABLE, guestFilePath, _yes(overwrite), path=guestFilePath)
        transfer = Transfer(guest, guestFilePath, size=int(fileSize), attributes=wanted, overwrite=bool(overwrite))
        return self._issue(call, "upload", transfer)

    def _issue(self, call: Call, purpose: str, transfer: Transfer) -> str:
        session = call.session_or_fault(self)
        return url_of(self.world, self.world.part(Tickets).issue(purpose, transfer, session, TRANSFER_LIFE_S))

    def _guest(self, vm: Any, auth: Any, *paths: str) -> Guest:
        for path in paths:
            if not path or "\0" in path:
                raise vmodl.fault.InvalidArgument(invalidProperty="path", msg="A path in the guest is needed.")
        return guest_of(self.world, vm, auth)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def attributes(wanted: Any) -> tuple[str, str, str, str]:
    """Owner, mode, times of change and of access, as commands take them; '' leaves what is."""
    if wanted is None:
        return "", "", "", ""
    owner = mode = ""
    if isinstance(wanted, vim.vm.guest.FileManager.PosixFileAttributes):
        uid, gid = wanted.ownerId, wanted.groupId
        owner = "" if uid is None and gid is None else f"{'' if uid is None else uid}{'' if gid is None else f':{gid}'}"
        mode = "" if not wanted.permissions else f"{int(wanted.permissions) & 0o7777:o}"
    return owner, mode, _time(wanted.modificationTime), _time(wanted.accessTime)


def _time(at: datetime | None) -> str:
    """A form that all kinds of `touch` know; in seconds."""
    return "" if at is None else f"@{int(at.timestamp())}"


def read_files(output: bytes) -> tuple[list[Found], dict[str, str]]:
    """Files sorted by name, and where links lead. It is the guest's word: what makes no sense is left out."""
    found: list[Found] = []
    links: dict[str, str] = {}
    lines = iter(output.decode(errors="replace").split("\n"))
    for line in lines:
        kind, _, rest = line.partition("|")
        if kind == "L":
            links[_base(rest)] = next(lines, "")
        elif kind == "F":
            found.extend(_found(rest))
    return sorted(found, key=lambda one: one.name), links


def _found(text: str) -> Iterator[Found]:
    fields = text.split("|", _FIELDS - 2)
    if len(fields) == _FIELDS - 1:
        try:
            numbers = [int(field[:18]) for field in fields[1:6]]
            yield Found(_base(fields[6]), int(fields[0][:8], 16), *numbers)
        except ValueError:
            return


def _base(name: str) -> str:
    """'./etc' -> 'etc'; a file that was asked for by its path keeps that."""
    return printable(name.removeprefix("./"))


def _info(one: Found, target: str | None) -> Any:
    kind = "directory" if stat.S_ISDIR(one.mode) else "symlink" if stat.S_ISLNK(one.mode) else "file"
    return vim.vm.guest.FileManager.FileInfo(
        path=one.name, type=kind, size=one.size, attributes=_attributes(one, target)
    )


def _attributes(one: Found, target: str | None) -> Any:
    return vim.vm.guest.FileManager.PosixFileAttributes(
        modificationTime=_utc(one.modified),
        accessTime=_utc(one.accessed),
        symlinkTarget=printable(target) if target is not None else None,
        ownerId=min(one.uid, 0x7FFFFFFF),
        groupId=min(one.gid, 0x7FFFFFFF),
        permissions=stat.S_IMODE(one.mode),
    )


def _utc(at: int) -> datetime:
    return datetime.fromtimestamp(max(0, min(at, 253402300799)), UTC)
