"""For tests of the vSphere surface: a real host without guests, its world, and that world behind a port.

host      a real host; nothing runs on it            record_vm(host, name) of the kit puts VMs in it
world     its managed objects                        await seen(world, vm) -> its VirtualMachine
call      one call by somebody who may do anything   await invoke(world, call, moid, method, arguments)
surface   SOAP on a port of 127.0.0.1                surface.port, surface.user, surface.password
connect   await connect() -> a ServiceInstance of pyVmomi; blocking, as all of it: call it in a thread
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pyVmomi import SoapStubAdapter

from ramet.host.service import Host
from ramet.host.settings import load
from ramet.vsphere.core.calls import Call
from ramet.vsphere.core.world import World
from ramet.vsphere.opening import open_world
from tests.vsphere.kit import Surface, root_call, serving


@pytest.fixture(autouse=True)
def _closed_connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """pyVmomi keeps connections, and leaves them to the garbage collector when nobody logs out: a warning by then would
    be an error of whichever test runs, or be printed when all have ended."""
    made: list[Any] = []
    init = SoapStubAdapter.__init__

    def noted(self: Any, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        made.append(self)

    monkeypatch.setattr(SoapStubAdapter, "__init__", noted)
    yield
    for stub in made:
        stub.DropConnections()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short: the path of a Unix socket has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="rv-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest_asyncio.fixture
async def host(state_dir: Path) -> AsyncIterator[Host]:
    """A host of its own; nothing runs on it."""
    async with Host.open(load({"state_dir": state_dir}, env={})) as host:
        yield host


@pytest_asyncio.fixture
async def world(host: Host) -> AsyncIterator[World]:
    async with open_world(host) as world:
        yield world


@pytest.fixture
def call() -> Call:
    """By somebody who may do anything."""
    return root_call()


@pytest_asyncio.fixture
async def surface(world: World) -> AsyncIterator[Surface]:
    async with serving(world) as surface:
        yield surface


@pytest.fixture
def connect(surface: Surface) -> Callable[[], Awaitable[Any]]:
    return surface.connect
