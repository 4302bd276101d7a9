"""``python -m ramet.guest.images micro|debian DEST``: build a default guest without a daemon, and say what it is."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from ramet.errors import RametError
from ramet.guest.images.built import BuiltImage
from ramet.guest.images.debian import build_debian
from ramet.guest.images.micro import build_micro


def _say(percent: float, doing: str) -> None:
    print(f"{percent:3.0f}% {doing}", file=sys.stderr)


def _shown(image: BuiltImage) -> str:
    return json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in vars(image).items()})


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("micro", "debian"):
        print("Usage: python -m ramet.guest.images micro|debian DESTINATION", file=sys.stderr)
        return 2
    destination = Path(arguments[1]).resolve()
    build = build_micro(destination, _say) if arguments[0] == "micro" else build_debian(destination, progress=_say)
    try:
        print(_shown(asyncio.run(build)))
    except RametError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
