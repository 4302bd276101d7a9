"""Real guests for tests: one host in this process, the micro image, and a source that is booted once.

Everything lives under one short folder in the temporary directory (socket paths are short), and the last fixture to end
proves that nothing is left of it: no process, tap, namespace, mount.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from ramet.guest.images.built import BuiltImage
from ramet.host.selftest import finish
from ramet.host.service import Host
from ramet.host.settings import load
from ramet.model.requests import AddDisk, BuildImage, CloneVm, CreateVm, Exec, NicRequest
from ramet.model.views import CloneResult
from ramet.testing import memcheck
from ramet.testing.images import debian_image
from tests.guest.kernel_kit import GuestKernel, find_kernel, unpack_kernel
from tests.guest.leaks import left_behind

BOOT_TIMEOUT_S = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that stands here boots guests."""
    for item in items:
        if "tests/guest/" in str(item.path):
            item.add_marker(pytest.mark.guest)


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """An empty state folder; after the session, what is left of it is a failure."""
    path = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    left = left_behind(path)
    shutil.rmtree(path, ignore_errors=True)
    assert not left, left


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def host(state_dir: Path) -> AsyncIterator[Host]:
    """A host with the micro image."""
    settings = load({"state_dir": state_dir}, env={})
    async with Host.open(settings) as host:
        await finish(host, await host.build_image(BuildImage(recipe="micro")))
        yield host
        await host.stop_all_vms()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def debian_build() -> BuiltImage:
    """The Debian guest as its builder leaves it: built once, and kept between runs."""
    return await debian_image(Path(__file__).parents[2] / ".state" / "debian")


@pytest.fixture(scope="session")
def guest_kernel() -> Iterator[GuestKernel]:
    """For guests that are no image."""
    if (own := find_kernel()) is not None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="rk-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield asyncio.run(unpack_kernel(Path(name)))


@pytest.fixture
def folder() -> Iterator[Path]:
    """One whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="rg-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


class Guests:
    """What tests do with guests, in the fewest words."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._made: list[str] = []

    async def boot(self, name: str, memory_mib: int = 256, disk_mib: int | None = None, **more: object) -> str:
        """A micro guest whose agent answers."""
        nics = more.pop("nics", (NicRequest(network=None),))
        request = CreateVm(name=name, image="micro", memory_mib=memory_mib, nics=nics, start=disk_mib is None, **more)
        self._made.append(name)
        await finish(self.host, await self.host.create_vm(request))
        if disk_mib is not None:
            await self.host.add_disk(name, AddDisk(size_mib=disk_mib))
            await finish(self.host, await self.host.start_vm(name))
        await self.host.wait_agent(name, BOOT_TIMEOUT_S)
        return name

    async def clone(self, source: str, *names: str, **more: object) -> list[CloneResult]:
        self._made.extend(names)
        """Exact copies, if nothing else is asked for."""
        request = CloneVm(names=names, **{"bare": True, **more})
        result = await finish(self.host, await self.host.clone_vm(source, request))
        return [CloneResult.model_validate(one) for one in result]

    async def sh(self, name: str, script: str, check: bool = True) -> str:
        result = await self.host.exec_in_vm(name, Exec(argv=("/bin/sh", "-c", script), timeout_s=120))
        output = base64.b64decode(result.stdout_base64).decode()
        if check:
            assert result.exit_code == 0, f"{script!r} in {name}: {output} {base64.b64decode(result.stderr_base64)!r}"
        return output.strip()

    async def push(self, name: str, file: Path, target: str) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield file.read_bytes()

        await self.host.write_file(name, target, chunks(), 0o755)

    async def remove(self, name: str) -> None:
        await finish(self.host, await self.host.remove_vm(name, force=True))

    async def remove_all(self) -> None:
        present = {vm.name for vm in await self.host.list_vms()}
        for name in dict.fromkeys(self._made):
            if name in present:
                await self.remove(name)


@pytest_asyncio.fixture(loop_scope="session")
async def guests(host: Host) -> AsyncIterator[Guests]:
    """Guests made by a test are removed after it."""
    made = Guests(host)
    yield made
    await made.remove_all()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def source(host: Host, checker: Path) -> AsyncIterator[str]:
    """A running micro guest that rewrites and checks its memory all the time, with a file system on its disk.

    Tests clone it, and leave it as it was.
    """
    made = Guests(host)
    await made.boot("source", disk_mib=512, nics=(NicRequest(),))
    await made.push("source", checker, "/bin/memcheck")
    await made.sh("source", "mke2fs -q /dev/vda >/dev/null 2>&1; mkdir -p /data; mount /dev/vda /data")
    await made.sh("source", "echo base > /data/who; sync")
    await made.sh("source", "(/bin/memcheck 96 > /run/memcheck 2>&1 &) ; until grep -q tick /run/memcheck; do :; done")
    yield "source"
    await made.remove_all()


@pytest.fixture(scope="session")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory checker, a static program that any guest can run."""
    return memcheck.build(tmp_path_factory.mktemp("memcheck"))
