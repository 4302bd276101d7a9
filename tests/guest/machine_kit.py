"""Waiting for what happens to a VM, and a second host beside the session's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from ramet.host.inventory import Inventory
from ramet.host.service import Host
from ramet.host.settings import Settings, load
from ramet.host.sqlite_store import SqliteStore
from ramet.hypervisor.accelerator import CACHE_NAME
from ramet.hypervisor.rundir import RunDir
from ramet.machine.paths import StatePaths
from ramet.model.host import Event
from ramet.model.machine import VmState
from tests.guest.leaks import left_behind

WAIT_S = 90.0


async def wait_event(host: Host, name: str, wanted: Callable[[Event], bool], since_seq: int) -> Event:
    """The first event of a VM after `since_seq` that is wanted."""
    async with asyncio.timeout(WAIT_S):
        async for event in host.events.follow(since_seq):
            if event.vm_name == name and wanted(event):
                return event
    raise AssertionError("the events ended")


async def wait_state(host: Host, name: str, state: VmState, since_seq: int) -> int:
    """Until the VM has come to be in a state after `since_seq`; the number of that event."""
    wanted = f"{name} is {state.value}."
    return (await wait_event(host, name, lambda e: e.kind == "vm.state" and e.message == wanted, since_seq)).seq


async def run_dir(host: Host, name: str) -> RunDir:
    """Where the sockets of a VM are."""
    return RunDir(StatePaths(host.settings.state_dir).vm_run((await host.show_vm(name)).id))


@contextlib.contextmanager
def state_folder() -> Iterator[Path]:
    """A state folder, short enough for sockets; what is left of it on the machine in the end is a failure."""
    path = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    left = left_behind(path)
    shutil.rmtree(path, ignore_errors=True)
    assert not left, left


async def furnish(host: Host, state_dir: Path) -> Settings:
    """Give another state folder, of no daemon yet, what took `host` time to make: its micro image, and its verdict on
    the accelerator."""
    paths = StatePaths(state_dir)
    paths.prepare()
    verdict = host.settings.state_dir / CACHE_NAME
    if verdict.exists():
        shutil.copy(verdict, state_dir)
    image = next(image for image in await host.list_images() if image.name == "micro")
    assert image.kernel is not None
    folder = paths.images / "micro"
    shutil.copytree(Path(image.kernel).parent, folder, copy_function=_link)
    files: dict[str, Any] = {"kernel": str(folder / "vmlinuz"), "initrd": str(folder / "initrd.img")}
    store = await SqliteStore.open(paths.inventory)
    try:
        async with Inventory.open(store) as inventory:
            await inventory.images.put(image.changed(**files))
    finally:
        await store.aclose()
    return load({"state_dir": state_dir}, env={})


def _link(source: str, target: str) -> None:
    """A file is taken over without a copy where that can be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.asynccontextmanager
async def second_host(host: Host) -> AsyncIterator[Host]:
    """A host of its own, with the micro image, and with nothing left in the end."""
    with state_folder() as path:
        async with Host.open(await furnish(host, path)) as second:
            try:
                yield second
            finally:
                await second.stop_all_vms()
