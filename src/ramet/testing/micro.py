"""The micro guest for tests: built once, and again only when what it is made of has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ramet.guest
from ramet.guest.images.built import BuiltImage
from ramet.guest.images.micro import build_micro


def _fingerprint() -> str:
    """Of the builder and of all that it puts into the guest (packages are not looked at)."""
    root = Path(ramet.guest.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("images/*.py"), *(root / "files").rglob("*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _load(kept: Path) -> BuiltImage | None:
    try:
        data: dict[str, Any] = json.loads(kept.read_text())
    except (OSError, ValueError):
        return None
    if data.pop("fingerprint") != _fingerprint():
        return None
    image = BuiltImage(**{**data, "kernel": Path(data["kernel"]), "initrd": Path(data["initrd"])})
    return image if Path(data["kernel"]).is_file() and Path(data["initrd"]).is_file() else None


async def micro_image(directory: Path) -> BuiltImage:
    """Takes 15 s the first time. `directory` keeps the image for the next run; not for several runs at once."""
    kept = directory / "built.json"
    image = _load(kept)
    if image is None:
        kept.unlink(missing_ok=True)
        image = await build_micro(directory.resolve())
        data = {key: value for key, value in vars(image).items() if key != "disk"}
        kept.write_text(json.dumps({**data, "fingerprint": _fingerprint()}, default=str))
    return image
