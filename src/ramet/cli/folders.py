"""Whole folders into guests and out of them: as a tar stream, packed at one end and unpacked at the other.

What comes out of a guest is hostile: Python's "data" filter keeps it inside the target folder, without devices.
"""

from __future__ import annotations

import base64
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from ramet.errors import GuestError, NotFoundError, RametError

if TYPE_CHECKING:
    from ramet.api.client import Client
    from ramet.model.execution import ExecEvent

_PIECE_BYTES = 512 * 1024
_UNPACK = 'mkdir -p "$1" && exec tar -xf - -C "$1"'
_TOLD_BYTES = 2000
_JOIN_S = 5.0


class _Events:
    """The events of a command, with what it complains about kept, and its failure raised at the end."""

    def __init__(self, events: Iterator[ExecEvent], what: str) -> None:
        self._events = events
        self._what = what
        self._complaint = b""
        self.count = 0

    def output(self) -> Iterator[bytes]:
        for event in self._events:
            data = base64.b64decode(event.data_base64 or "")
            if event.kind == "stdout":
                self.count += len(data)
                yield data
            elif event.kind == "stderr":
                self._complaint = (self._complaint + data)[-_TOLD_BYTES:]
            elif event.kind == "exited" and event.exit_code:
                why = self._complaint.decode(errors="replace").strip() or f"exit status {event.exit_code}"
                raise GuestError(f"{self._what} failed: {why}", hint="The guest needs tar.")


class _Source:
    """What tarfile reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, count: int) -> bytes:
        while len(self._left) < count and (chunk := next(self._chunks, b"")):
            self._left += chunk
        data, self._left = self._left[:count], self._left[count:]
        return data


class _Sink:
    """What tarfile writes to."""

    def __init__(self, client: Client, exec_id: str) -> None:
        self._client = client
        self._exec_id = exec_id
        self._held = bytearray()
        self.count = 0

    def write(self, data: bytes) -> int:
        self._held += data
        self.count += len(data)
        if len(self._held) >= _PIECE_BYTES:
            self.flush()
        return len(data)

    def flush(self, end: bool = False) -> None:
        data, self._held = bytes(self._held), bytearray()
        self._client.write_exec(self._exec_id, data, end=end)

    def give_up(self) -> None:
        self._client.signal_exec(self._exec_id, "KILL")


def copy_in(client: Client, ref: str, folder: Path, path: str) -> int:
    """The content of a folder into a folder of the guest, which is made if it is missing. Bytes, packed."""
    from ramet.model.execution import FollowExec

    request = FollowExec(argv=("sh", "-c", _UNPACK, "sh", path), stdin=True)
    with closing(client.follow_exec(ref, request)) as events:
        sink = _Sink(client, next(events).id or "")
        problems: list[Exception] = []
        packer = threading.Thread(target=_pack, args=(folder, sink, problems), name="packer", daemon=True)
        packer.start()
        try:
            for _ in _Events(events, f"Unpacking in {ref}").output():
                pass
        except GuestError:
            _raise_cause(packer, problems)
            raise
        _raise_cause(packer, problems)
        return sink.count


def _raise_cause(packer: threading.Thread, problems: list[Exception]) -> None:
    """What ended the packing is why the unpacking failed; but for the news that it has failed."""
    packer.join(_JOIN_S)
    if problems and not isinstance(problems[0], NotFoundError):
        raise problems[0]


def _pack(folder: Path, sink: _Sink, problems: list[Exception]) -> None:
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", sink), mode="w|", format=tarfile.PAX_FORMAT) as tar:
            tar.add(folder, arcname=".", filter=_as_root)
        sink.flush(end=True)
    except Exception as exc:
        problems.append(exc)
        with suppress(RametError):  # half an archive must not be taken for a whole one, nor waited for
            sink.give_up()


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def copy_out(client: Client, ref: str, path: str, target: Path) -> int:
    """A folder of the guest to `target`, which must not be there. Nothing is left when it fails. Bytes, packed."""
    from ramet.model.execution import FollowExec

    inside = PurePosixPath(path)
    request = FollowExec(argv=("tar", "-C", str(inside), "-cf", "-", "."))
    part = target.with_name(f".{target.name}.part")
    part.mkdir(parents=True)
    try:
        with closing(client.follow_exec(ref, request)) as events:
            told = _Events(events, f"Packing {path} in {ref}")
            chunks = told.output()
            _unpack(chunks, part)
            for _ in chunks:  # padding, and how it ended
                pass
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return told.count


def _unpack(chunks: Iterator[bytes], folder: Path) -> None:
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Source(chunks)), mode="r|") as tar:
            tar.extractall(folder, filter="data")
    except tarfile.TarError as exc:
        for _ in chunks:  # a guest without the folder says so in words of its own
            pass
        raise GuestError(f"What the guest packed cannot be taken: {exc}") from exc
