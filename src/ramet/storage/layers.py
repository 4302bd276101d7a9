"""The layer store: one directory of qcow2 files, each the delta over its parent.

A layer is written by at most one VM; once another layer has it as parent it is immutable. A file is named after its
layer, and its parent stands in its own header ("<parent>.qcow2", relative), so nothing else has to be kept in step.
Who uses a layer is never stored: it follows from the roots (disks of VMs, images, moments, the journal).
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import CapacityError, ConflictError, DamagedError, NotFoundError, UnsupportedError, UsageError
from ramet.model.units import format_bytes, new_id
from ramet.storage import qcow2

MAX_CHAIN = 256
"""Longer chains are taken for damage; the bound that is kept is far lower (see flatten)."""

_SUFFIX = ".qcow2"
_TEMPORARY = ".tmp-"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as it is on disk now."""

    id: str
    parent: str | None
    size_bytes: int
    """Of the disk a guest sees."""
    bytes_on_disk: int
    """Blocks of this file alone."""


class LayerStore:
    """The layers under one directory. Methods are short and blocking; only `collect` and `users` read many files.

    Safe to call from several threads. `owner` is the (uid, gid) that QEMU and its children run as; files are given to
    it when this process may do so.
    """

    def __init__(self, root: Path, owner: tuple[int, int] | None = None) -> None:
        self.root = root
        self.owner = owner if os.geteuid() == 0 else None
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()
        if not root.is_dir():
            root.mkdir(mode=0o711, parents=True)
        # QEMU's user reaches files whose names it was told, and cannot list the others.
        root.chmod(0o711)

    def path(self, layer_id: str) -> Path:
        """Where a layer is, or will be. Raises UsageError for what cannot be a layer's id."""
        return self.root / (_checked(layer_id) + _SUFFIX)

    def exists(self, layer_id: str) -> bool:
        return self.path(layer_id).exists()

    def ids(self) -> tuple[str, ...]:
        """Every layer there is, in no particular order."""
        names = (entry.name for entry in os.scandir(self.root))
        return tuple(name[: -len(_SUFFIX)] for name in names if _is_layer_file(name))

    # -- making ----------------------------------------------------------------------------------------------------

    def create_empty(self, size_bytes: int, *, layer_id: str | None = None, sync: bool = False) -> Layer:
        """A new layer without a parent, all zeros. See `create_overlay`."""
        return self._create(None, size_bytes, layer_id, sync)

    def create_overlay(
        self, parent: str, size_bytes: int | None = None, *, layer_id: str | None = None, sync: bool = False
    ) -> Layer:
        """A new empty layer over `parent`, of the parent's size unless told otherwise; takes about a millisecond.

        `layer_id` lets the caller journal the name first. Without `sync` a power cut may lose the new file until the
        guest's first flush or `sync`; it never leaves half of one under a layer's name.
        Raises NotFoundError (no such parent), ConflictError (the id is taken), CapacityError (disk full; nothing is
        left), UsageError (a size that cannot be).
        """
        return self._create(parent, size_bytes or self.layer(parent).size_bytes, layer_id, sync)

    def publish(self, temporary: Path, layer_id: str, *, sync: bool = False) -> Layer:
        """Turn a finished file from `temporary` into the layer `layer_id`; ConflictError when the id is taken."""
        target = self.path(layer_id)
        self._give_away(temporary)
        if sync:
            _fsync(temporary)
        try:
            # link and unlink rather than rename: never over a layer that exists
            os.link(temporary, target)
        except FileExistsError:
            raise ConflictError(f"There is a layer {layer_id} already.") from None
        temporary.unlink()
        if sync:
            _fsync(self.root)
        return self.layer(layer_id)

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A name for a file in the making, inside the store; the file is removed at the end unless published."""
        path = self.root / f"{_TEMPORARY}{new_id()}{_SUFFIX}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def remove_temporaries(self) -> int:
        """Remove what a killed process left in the making. Only when nothing of this store is under way: at start."""
        left = [entry.path for entry in os.scandir(self.root) if entry.name.startswith(_TEMPORARY)]
        for path in left:
            Path(path).unlink(missing_ok=True)
        return len(left)

    def sync(self, *layer_ids: str) -> None:
        """Make these layers, and their names, survive a power cut. Tens of milliseconds: not inside a stun."""
        for path in (*(self.path(layer_id) for layer_id in layer_ids), self.root):
            _fsync(path)

    # -- looking ---------------------------------------------------------------------------------------------------

    def layer(self, layer_id: str) -> Layer:
        """Raises NotFoundError, DamagedError (naming the file)."""
        path = self.path(layer_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFoundError(f"There is no layer {layer_id}.") from None
        try:
            header, status = _read_header(fd, path), os.fstat(fd)
        finally:
            os.close(fd)
        return Layer(layer_id, _parent_of(header, path), header.size_bytes, status.st_blocks * 512)

    def chain(self, layer_id: str) -> tuple[Layer, ...]:
        """The layer and its ancestors, topmost first.

        Raises NotFoundError for `layer_id` itself; DamagedError, naming the file, for a missing ancestor, a cycle, a
        damaged header or a parent outside the store.
        """
        layers = [self.layer(layer_id)]
        seen = {layer_id}
        while (parent := layers[-1].parent) is not None:
            child = self.path(layers[-1].id)
            if parent in seen:
                raise DamagedError(f"{child} is damaged: it is among its own ancestors.")
            if len(layers) >= MAX_CHAIN:
                raise DamagedError(f"{child} is damaged: it has more than {MAX_CHAIN} ancestors.")
            try:
                layers.append(self.layer(parent))
            except NotFoundError:
                raise DamagedError(f"{self.path(parent)} is missing; {child} needs it.") from None
            seen.add(parent)
        return tuple(layers)

    def depth(self, layer_id: str) -> int:
        """Number of layers a read may have to look through: 1 without a parent."""
        return len(self.chain(layer_id))

    def is_pristine(self, layer_id: str) -> bool:
        """Whether nothing was written, zeroed or discarded in this layer. Right to the moment for a stopped guest."""
        path = self.path(layer_id)
        try:
            with open(path, "rb", buffering=0) as file:
                return qcow2.is_pristine(file.fileno())
        except FileNotFoundError:
            raise NotFoundError(f"There is no layer {layer_id}.") from None

    def children(self, layer_id: str) -> tuple[str, ...]:
        """Layers directly over this one; a layer with children is immutable. Reads every header of the store."""
        return tuple(child for child, parent in self._parents().items() if parent == layer_id)

    def users(self, roots_by_owner: Mapping[str, Iterable[str]]) -> Counter[str]:
        """How many owners (VMs, images, moments) reach each layer: `shared_by`. An owner counts once a layer.

        Chains that are damaged are counted as far as they can be followed.
        """
        count: Counter[str] = Counter()
        parents = self._parents()
        for roots in roots_by_owner.values():
            count.update({reached for root in roots for reached in _ancestry(root, parents)})
        return count

    def free_bytes(self) -> int:
        """What the file system has left for the QEMU user."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    # -- ending ----------------------------------------------------------------------------------------------------

    @contextmanager
    def hold(self, *layer_ids: str) -> Iterator[None]:
        """Keep layers, and their ancestors, from `collect` while an operation of this process looks at them."""
        with self._lock:
            self._held.update(layer_ids)
        try:
            yield
        finally:
            with self._lock:
                self._held.subtract(layer_ids)
                self._held += Counter()  # drops the zeros

    def collect(self, roots: Iterable[str] | Callable[[], Iterable[str]]) -> tuple[str, ...]:
        """Delete every layer that no root reaches; returns their ids.

        `roots` names all layers in use, those of running operations included; a callable is asked *after* the
        directory was listed, so that a layer made meanwhile is never taken for garbage. Deletes children before
        parents: killed halfway, what is left is whole. When the chain of a root is damaged nothing is deleted, and
        DamagedError raised: what it needed cannot be known. Roots that do not exist (yet) are no damage.
        """
        present = set(self.ids())
        named = list(roots() if callable(roots) else roots)
        with self._lock:
            named += self._held
        reachable = {layer.id for root in set(named) if root in present for layer in self.chain(root)}
        doomed = present - reachable
        parents = {layer_id: parent for layer_id, parent in self._parents().items() if layer_id in doomed}
        order = sorted(doomed, key=lambda layer_id: len(list(_ancestry(layer_id, parents))), reverse=True)
        for layer_id in order:
            self.path(layer_id).unlink(missing_ok=True)
        return tuple(order)

    def remove(self, layer_id: str) -> None:
        """Delete one layer; without it already there is nothing to do. ConflictError when another layer needs it."""
        children = self.children(layer_id)
        if children:
            raise ConflictError(f"Layer {layer_id} is still needed by {', '.join(sorted(children)[:3])}.")
        self.path(layer_id).unlink(missing_ok=True)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _create(self, parent: str | None, size_bytes: int, layer_id: str | None, sync: bool) -> Layer:
        layer_id = layer_id or new_id()
        if parent is not None and not self.exists(parent):
            raise NotFoundError(f"There is no layer {parent}.")
        name = self.path(parent).name if parent is not None else None
        with full_disk_told(self), self.temporary() as temporary:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                qcow2.write_empty_overlay(fd, size_bytes, name)
            finally:
                os.close(fd)
            return self.publish(temporary, layer_id, sync=sync)

    def _give_away(self, path: Path) -> None:
        path.chmod(0o600)
        if self.owner is not None:
            os.chown(path, *self.owner)

    def _parents(self) -> dict[str, str | None]:
        """Parent of each layer that can be read; a damaged or just removed file counts as one without a parent."""
        parents: dict[str, str | None] = {}
        for layer_id in self.ids():
            try:
                parents[layer_id] = self.layer(layer_id).parent
            except NotFoundError:
                continue
            except DamagedError:
                parents[layer_id] = None
        return parents


@contextmanager
def full_disk_told(store: LayerStore) -> Iterator[None]:
    """Turn 'no space', 'quota exceeded' and 'file too large' into CapacityError."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        raise full_disk(store) from exc


def full_disk(store: LayerStore, needed_bytes: int | None = None) -> CapacityError:
    """The error for a store without room, in words that help."""
    free = store.free_bytes()
    need = f" {format_bytes(needed_bytes)} are needed," if needed_bytes is not None else ""
    return CapacityError(
        f"The disk under {store.root} is full:{need} {format_bytes(free)} are free.",
        hint="Remove VMs, moments or images that are no longer wanted, or make room on that file system.",
        free_bytes=free,
        needed_bytes=needed_bytes,
    )


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _checked(layer_id: str) -> str:
    if not _ID.fullmatch(layer_id):
        raise UsageError(f"{layer_id!r} is no id of a layer.")
    return layer_id


def _is_layer_file(name: str) -> bool:
    return name.endswith(_SUFFIX) and _ID.fullmatch(name[: -len(_SUFFIX)]) is not None


def _read_header(fd: int, path: Path) -> qcow2.Header:
    try:
        return qcow2.read_header(fd)
    except (DamagedError, UnsupportedError) as exc:
        # No layer is made encrypted or with an external data file: here both are damage.
        raise DamagedError(exc.message.replace(f"descriptor {fd}", str(path))) from None


def _parent_of(header: qcow2.Header, path: Path) -> str | None:
    """Only a plain name of a file beside it is a parent: QEMU would open any path or URL that a header names."""
    name = header.backing_name
    if name is None:
        return None
    if not _is_layer_file(name):
        raise DamagedError(f"{path} is damaged: its parent {name[:80]!r} is no layer of this store.")
    return name[: -len(_SUFFIX)]


def _ancestry(layer_id: str, parents: Mapping[str, str | None]) -> Iterator[str]:
    """The layer and its ancestors as far as `parents` knows them; stops at a cycle."""
    seen: set[str] = set()
    current: str | None = layer_id
    while current is not None and current in parents and current not in seen:
        seen.add(current)
        yield current
        current = parents[current]
