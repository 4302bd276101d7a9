"""What a repair asks of the disks' layers: which are whole, who stands on them, which are in use."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ramet.errors import RametError
from ramet.hypervisor.process import is_alive
from ramet.machine.paths import StatePaths
from ramet.model.machine import Vm
from ramet.model.units import new_id
from ramet.storage.layers import LayerStore


class Layers:
    """The layers of a state folder without a daemon. Blocking."""

    def __init__(self, paths: StatePaths) -> None:
        self._store = LayerStore(paths.layers)
        self._parents: dict[str, str | None] = {}
        for layer_id in self._store.ids():
            with contextlib.suppress(RametError, OSError):
                self._parents[layer_id] = self._store.layer(layer_id).parent

    def is_whole(self, layer_id: str) -> bool:
        """It and all that is under it are there."""
        try:
            self._store.chain(layer_id)
        except (RametError, OSError):
            return False
        return True

    def is_shared(self, layer_id: str) -> bool:
        """Another layer stands on it, so that nobody may write to it."""
        return layer_id in self._parents.values()

    def runs(self, vm: Vm) -> bool:
        """Its QEMU is alive: that knows its layers better than any record."""
        return vm.process is not None and is_alive(vm.process)

    def over(self, vm_id: str, disk_id: str, layer_id: str) -> str:
        """A new empty layer over one that others stand on."""
        return self._store.create_overlay(layer_id, layer_id=f"{new_id()}-{disk_id}", sync=True).id

    def put_aside(self, folder: Path, tops: set[str]) -> tuple[str, ...]:
        """Move away what no top needs and nobody has open: the next daemon would delete it as nobody's."""
        needed = self._with_ancestors({*tops, *self._open()})
        moved = tuple(layer_id for layer_id in sorted(self._store.ids()) if layer_id not in needed)
        for layer_id in moved:
            folder.mkdir(mode=0o700, exist_ok=True)
            path = self._store.path(layer_id)
            path.rename(folder / path.name)
        return moved

    def _with_ancestors(self, tops: set[str]) -> set[str]:
        found: set[str] = set()
        for top in tops:
            layer_id: str | None = top
            while layer_id is not None and layer_id not in found:
                found.add(layer_id)
                layer_id = self._parents.get(layer_id)
        return found

    def _open(self) -> set[str]:
        """Layers that some process has open: a VM whose record is lost still runs on them."""
        found = set()
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit():
                with contextlib.suppress(OSError):
                    for link in (directory / "fd").iterdir():
                        with contextlib.suppress(OSError):
                            target = link.readlink()
                            if target.parent == self._store.root:
                                found.add(target.stem)
        return found
