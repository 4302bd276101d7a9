"""Inventories that a daemon must not start with: what it does not know of is removed at its start as nobody's.

An inventory that is gone, or has lost its last writes, is therefore refused like one that is damaged.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ramet.errors import DamagedError
from ramet.host.copies import newest_revision
from ramet.host.sqlite_store import WAY_BACK, SqliteStore
from ramet.host.store import Store
from ramet.machine.paths import StatePaths


async def open_inventory(paths: StatePaths) -> SqliteStore:
    """The inventory's store, which the caller closes. Raises DamagedError: when it is damaged, gone, or too old."""
    await asyncio.to_thread(check_not_lost, paths)
    store = await SqliteStore.open(paths.inventory)
    try:
        await check_not_old(paths, store)
    except BaseException:
        await store.aclose()
        raise
    return store


def check_not_lost(paths: StatePaths) -> None:
    """DamagedError when there is no inventory, or an empty file, beside what belongs to VMs. Blocking."""
    if paths.inventory.exists() and paths.inventory.stat().st_size:
        return
    if any(map(_has_files, (paths.root / "vms", paths.layers, paths.records / "vm"))):
        raise DamagedError(
            f"The inventory {paths.inventory} is gone, and there are VMs' files.",
            hint=WAY_BACK,
            path=str(paths.inventory),
        )


async def check_not_old(paths: StatePaths, store: Store) -> None:
    """DamagedError when copies of records are newer than the inventory."""
    newest = await asyncio.to_thread(newest_revision, paths.records)
    if newest > await store.revision():
        raise DamagedError(
            f"The inventory {paths.inventory} has lost its last writes.", hint=WAY_BACK, path=str(paths.inventory)
        )


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
