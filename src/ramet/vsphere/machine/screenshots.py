"""Pictures of VMs' displays, and screenshots that are kept beside a VM's other files.

    png = await picture(host, vm_id)         # of now
    name = await keep(host, vm_id)           # "screen-3.png", in the VM's folder

The last MOST are kept: a script that takes one each minute must not fill the disk. They go with their VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ramet.model.units import new_id

if TYPE_CHECKING:
    from ramet.host.service import Host

MOST = 20
_NAME = re.compile(r"screen-([0-9]{1,9})\.png")
_turns: WeakValueDictionary[tuple[Host, str], asyncio.Lock] = WeakValueDictionary()


async def picture(host: Host, vm_id: str) -> bytes:
    """PNG. One at a time of a VM: it goes over the monitor that clones and power need. Raises what the host raises."""
    async with _turn(host, vm_id):
        return await host.screenshot(vm_id)


async def keep(host: Host, vm_id: str) -> str:
    """Its file's name. Raises what the host's screenshot raises, and OSError for a full disk."""
    async with _turn(host, vm_id):
        taken = await host.screenshot(vm_id)
        return await asyncio.to_thread(_write, host.floor.rooms.paths.vm(vm_id), taken)


@contextlib.asynccontextmanager
async def _turn(host: Host, vm_id: str) -> AsyncIterator[None]:
    lock = _turns.setdefault((host, vm_id), asyncio.Lock())
    async with lock:
        yield


def _write(folder: Path, taken: bytes) -> str:
    """Whole under its name, or not there."""
    part = folder / f".{new_id()}.part"
    try:
        with part.open("xb") as file:
            file.write(taken)
            file.flush()
            os.fsync(file.fileno())
        return _publish(folder, part)
    finally:
        part.unlink(missing_ok=True)


def _publish(folder: Path, part: Path) -> str:
    """Under the next number, which another may have taken since it was looked for; the oldest go."""
    while True:
        names = [path.name for path in folder.iterdir()]
        numbers = sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)
        name = f"screen-{numbers[-1] + 1 if numbers else 1}.png"
        with contextlib.suppress(FileExistsError):
            (folder / name).hardlink_to(part)
            break
    for number in numbers[: max(0, len(numbers) + 1 - MOST)]:
        (folder / f"screen-{number}.png").unlink(missing_ok=True)
    return name
