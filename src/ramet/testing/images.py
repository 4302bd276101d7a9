"""The default guests for tests and benches: built once, and again only when what they are made of has changed."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ramet.guest
from ramet.guest.images.built import BuiltImage
from ramet.guest.images.debian import build_debian
from ramet.guest.images.micro import build_micro

_PATHS = ("kernel", "initrd", "disk")


async def micro_image(directory: Path) -> BuiltImage:
    """Takes 15 s the first time. `directory` keeps the image for the next run; of several at once, one builds."""
    return await kept_image(directory, build_micro)


async def debian_image(directory: Path) -> BuiltImage:
    """Like `micro_image`, with Python in it for programs of tests; takes a minute or two the first time."""
    return await kept_image(directory, functools.partial(build_debian, packages=("python3-minimal",)))


async def kept_image(directory: Path, build: Callable[[Path], Awaitable[BuiltImage]]) -> BuiltImage:
    """What `build` makes in `directory`, unless what is there is made of the same."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        return await _kept_image(directory, build)


async def _kept_image(directory: Path, build: Callable[[Path], Awaitable[BuiltImage]]) -> BuiltImage:
    record = directory / "built.json"
    image = _load(record)
    if image is None:
        record.unlink(missing_ok=True)
        image = await build(directory.resolve())
        record.write_text(json.dumps({**vars(image), "fingerprint": _fingerprint()}, default=str))
    return image


def _load(record: Path) -> BuiltImage | None:
    try:
        data: dict[str, Any] = json.loads(record.read_text())
    except (OSError, ValueError):
        return None
    if data.pop("fingerprint") != _fingerprint():
        return None
    image = BuiltImage(**{**data, **{name: Path(data[name]) for name in _PATHS if data[name]}})
    files = [path for path in (image.kernel, image.initrd, image.disk) if path is not None]
    return image if all(path.is_file() for path in files) else None


def _fingerprint() -> str:
    """Of the builders and of all that they put into guests (packages are not looked at)."""
    root = Path(ramet.guest.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("images/*.py"), *(root / "files").rglob("*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
