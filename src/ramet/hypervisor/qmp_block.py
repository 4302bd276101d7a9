"""Block nodes of a running QEMU: layers added, made immutable, put under one another, taken away."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from ramet.errors import QemuError
from ramet.hypervisor.blocknodes import (
    WRITABLE_SUFFIX,
    DiskChain,
    LayerFile,
    distinct_layers,
    file_node,
    file_options,
    format_node,
    format_options,
    writable_opaque,
)
from ramet.hypervisor.qmp_executor import Executor


class BlockCommands(Executor):
    async def query_block_nodes(self) -> dict[str, dict[str, Any]]:
        """Every named node, by name, as QEMU describes it (without the chain below each)."""
        nodes = await self.execute("query-named-block-nodes", {"flat": True})
        return {node["node-name"]: node for node in nodes}

    async def add_layer_node(self, layer: LayerFile, backing_id: str | None = None) -> None:
        """Make the nodes of a layer, its file opened afresh. Nothing is left behind on failure.

        An overlay that a snapshot is to put on top is added over nothing: the snapshot gives it its backing.
        """
        fdset_id = await self._add_descriptors(layer)
        try:
            await self.execute("blockdev-add", file_options(layer, fdset_id))
            try:
                await self.execute("blockdev-add", format_options(layer, backing_id))
            except BaseException:
                await self.execute("blockdev-del", {"node-name": file_node(layer.id)})
                raise
        except BaseException:
            await self._remove_descriptors(file_node(layer.id))
            raise

    async def add_chain(self, chain: DiskChain) -> None:
        """Make the nodes of a disk, from the bottom up; those that are there already are shared."""
        present = await self.query_block_nodes()
        made: list[str] = []
        try:
            for layer, backing_id in distinct_layers([chain]):
                if format_node(layer.id) not in present:
                    await self.add_layer_node(layer, backing_id)
                    made.append(layer.id)
        except BaseException:
            await self.del_nodes(reversed(made))
            raise

    async def del_node(self, layer_id: str) -> None:
        """Take the nodes of a layer away and let go of its file. Raises QemuError while something still uses them."""
        await self.execute("blockdev-del", {"node-name": format_node(layer_id)})
        await self.execute("blockdev-del", {"node-name": file_node(layer_id)})
        await self._remove_descriptors(file_node(layer_id))

    async def del_nodes(self, layer_ids: Iterable[str]) -> None:
        """Take away those of these layers, topmost first, that nothing uses any more."""
        for layer_id in layer_ids:
            with suppress(QemuError):
                await self.del_node(layer_id)

    async def snapshot_transaction(self, pairs: Sequence[tuple[str, str]], *, timeout_s: float = 30.0) -> None:
        """Put overlays on top of disks, all or none. `pairs`: (layer id now on top, id of the layer to go over it)."""
        actions = [
            {
                "type": "blockdev-snapshot",
                "data": {"node": format_node(active), "overlay": format_node(overlay)},
            }
            for active, overlay in pairs
        ]
        await self.execute("transaction", {"actions": actions}, timeout_s=timeout_s)

    async def seal_layer(self, layer: LayerFile) -> None:
        """A layer that went under an overlay: give up the descriptor that could still write to it.

        Others share the layer by now; after this, not even a QEMU that a guest took over can change it under them.
        Call it while the guest runs: QEMU before 9.1 keeps removed descriptors of a stopped guest.
        """
        sealed = LayerFile(layer.id, layer.path, writable=False)
        number = await self._fdset_of(file_node(layer.id))
        if number is None:
            return
        await self.execute("blockdev-reopen", {"options": [file_options(sealed, number["fdset-id"])]})
        for descriptor in number["fds"]:
            if descriptor.get("opaque") == writable_opaque(layer.id):
                await self.execute("remove-fd", {"fdset-id": number["fdset-id"], "fd": descriptor["fd"]})

    async def reopen_backing(self, layer: LayerFile, backing: DiskChain | None, *, timeout_s: float = 30.0) -> None:
        """Put another backing chain under a layer, live: the same content in fewer files.

        `backing` (None: nothing) is opened here where it is not open yet. The former layers stay open; `del_nodes`
        takes those away that nothing else uses.
        """
        if backing is not None:
            await self.add_chain(backing)
        options = format_options(layer, backing.top.id if backing is not None else None)
        await self.execute("blockdev-reopen", {"options": [options]}, timeout_s=timeout_s)

    async def block_resize(self, layer_id: str, size_bytes: int) -> None:
        """Grow the disk whose topmost layer this is; the guest sees it at once."""
        await self.execute("block_resize", {"node-name": format_node(layer_id), "size": size_bytes})

    # -- descriptor sets -------------------------------------------------------------------------------------------

    async def _add_descriptors(self, layer: LayerFile) -> int:
        """A new descriptor set of a layer: read-write and read-only for a writable one."""
        number: int | None = None
        try:
            for mode in (os.O_RDWR, os.O_RDONLY) if layer.writable else (os.O_RDONLY,):
                fd = os.open(layer.path, mode | os.O_CLOEXEC)
                opaque = writable_opaque(layer.id) if mode == os.O_RDWR else file_node(layer.id)
                arguments: dict[str, Any] = {"opaque": opaque}
                if number is not None:
                    arguments["fdset-id"] = number
                try:
                    number = int((await self.execute_with_fd(fd, "add-fd", arguments))["fdset-id"])
                finally:
                    os.close(fd)
        except BaseException:
            await self._remove_descriptors(file_node(layer.id))
            raise
        assert number is not None
        return number

    async def _remove_descriptors(self, node: str) -> None:
        found = await self._fdset_of(node)
        if found is not None:
            await self.execute("remove-fd", {"fdset-id": found["fdset-id"]})

    async def _fdset_of(self, node: str) -> dict[str, Any] | None:
        for fdset in await self.execute("query-fdsets"):
            if any(fd.get("opaque", "").removesuffix(WRITABLE_SUFFIX) == node for fd in fdset["fds"]):
                return dict(fdset)
        return None
