"""The guests of a bench: built once, and kept in the user's cache."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

from ramet.guest.images.built import BuiltImage
from ramet.guest.images.debian import build_debian
from ramet.guest.images.micro import build_micro
from ramet.host.inventory import Inventory
from ramet.host.sqlite_store import SqliteStore
from ramet.hypervisor.accelerator import CACHE_NAME
from ramet.machine.paths import StatePaths
from ramet.model.host import Image
from ramet.testing.images import kept_image

MICRO, DEBIAN = "micro", "debian"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ramet" / "bench"


def built(recipe: str) -> BuiltImage:
    """From the cache, or built into it: half a minute, or some minutes for Debian. Raises RametError."""
    folder = cache_folder() / recipe
    folder.mkdir(parents=True, exist_ok=True)
    build = build_micro if recipe == MICRO else build_debian
    return asyncio.run(kept_image(folder, build))


def furnish(state_dir: Path, recipes: set[str]) -> None:
    """Put guests into a state folder that no daemon serves yet, and what is known of the host's accelerator."""
    paths = StatePaths(state_dir)
    paths.prepare()
    verdict = cache_folder() / CACHE_NAME
    if verdict.exists():
        shutil.copy(verdict, state_dir)
    if MICRO in recipes:
        asyncio.run(_put_micro(paths, built(MICRO)))


def remember(state_dir: Path) -> None:
    """Keep the verdict on the accelerator, which takes seconds to find: it holds until the host boots again."""
    verdict = state_dir / CACHE_NAME
    if verdict.exists():
        cache_folder().mkdir(parents=True, exist_ok=True)
        shutil.copy(verdict, cache_folder())


async def _put_micro(paths: StatePaths, image: BuiltImage) -> None:
    """A kernel and its initramfs are no disk that could be imported: their record says where they are."""
    assert image.kernel is not None
    assert image.initrd is not None
    folder = paths.images / MICRO
    folder.mkdir()
    kernel, initrd = (shutil.copy(path, folder) for path in (image.kernel, image.initrd))
    record = Image(
        name=MICRO, recipe=MICRO, kernel=str(kernel), initrd=str(initrd), append=image.append,
        memory_mib=image.memory_mib, sha256=image.sha256, created_at=time.time(),
    )  # fmt: skip
    store = await SqliteStore.open(paths.inventory)
    try:
        async with Inventory.open(store) as inventory:
            await inventory.images.put(record)
    finally:
        await store.aclose()
